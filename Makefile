# Two commands: `make demo` trains a small pruned CLIP, `make test` checks everything.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
SHELL := /bin/bash

# .venv: LAVIS' own pins with the OpenCLIP they resolve to; .venv-openclip: the newest OpenCLIP.
.venv/ready: pyproject.toml elip.pth
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -e '.[all,test]'
	touch $@

.venv-openclip/ready: pyproject.toml elip.pth
	$(PYTHON) -m venv .venv-openclip
	.venv-openclip/bin/pip install -q -e '.[open-clip,transformers,demo,test]'
	touch $@

# LAVIS beside libraries newer than its pins, which it is installed without.
.venv-lavis-new/ready: pyproject.toml elip.pth
	$(PYTHON) -m venv .venv-lavis-new
	.venv-lavis-new/bin/pip install -q -e '.[lavis-new,transformers,demo,test]'
	.venv-lavis-new/bin/pip install -q --no-deps salesforce-lavis==1.0.2
	touch $@

# Two tests at a time, each with one thread.
PYTEST = -m pytest -q -n 2

.PHONY: demo test test-fast lint clean

demo: .venv/ready
	.venv/bin/python examples/demo.py --out demo

test: lint test-wheel .venv/ready .venv-openclip/ready .venv-lavis-new/ready
	@echo "== OpenCLIP, newest =="
	.venv-openclip/bin/python $(PYTEST)
	@echo "== LAVIS' pins =="
	.venv/bin/python $(PYTEST)
	@echo "== LAVIS beside newer libraries =="
	.venv-lavis-new/bin/python $(PYTEST) tests/hosts/lavis tests/hosts/transformers tests/patches

# The released files: the wheel is built from the sdist, and tested without the checkout in reach.
.PHONY: release test-wheel
release: .venv-openclip/ready
	rm -rf dist
	.venv-openclip/bin/python -m build --outdir dist . > /dev/null

test-wheel: release
	rm -rf .venv-wheel
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/pip install -q "$$(ls dist/*.whl)[open-clip,demo]" 'pytest>=8' 'pytest-xdist>=3.5'
	cd dist && ELIP_EXPECT_WHEEL=1 ../.venv-wheel/bin/python $(PYTEST) -c ../pyproject.toml -o pythonpath=tests \
	  -m "not slow" $(addprefix ../tests/,core test_golden.py test_plan.py hosts/open_clip/test_open_clip.py hosts/test_names.py measure/test_preview.py visualize)

# The default suite alone: no training commands, no compiler.
test-fast: .venv/ready .venv-openclip/ready
	.venv-openclip/bin/python -m pytest -q -n 2 -m "not slow"
	.venv/bin/python -m pytest -q -n 2 -m "not slow"

# A warning is an error, links between pages included; all pages are read anew.
SPHINX = .venv-openclip/bin/sphinx-build -q -W --keep-going -E docs site

lint: .venv-openclip/ready
	.venv-openclip/bin/ruff check .
	.venv-openclip/bin/ruff format --check .
	.venv-openclip/bin/mypy
	.venv-openclip/bin/pydoclint -q elip_plugin
	$(SPHINX)

.PHONY: docs
docs: .venv-openclip/ready
	$(SPHINX)
	@echo "open site/index.html in a browser"

clean:
	rm -rf .venv .venv-openclip .venv-lavis-new .venv-wheel demo build dist site
