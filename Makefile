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
	.venv-openclip/bin/pip install -q -e '.[open-clip,demo,bench,test]'
	touch $@

# LAVIS beside libraries newer than its pins, which it is installed without.
.venv-lavis-new/ready: pyproject.toml elip.pth
	$(PYTHON) -m venv .venv-lavis-new
	.venv-lavis-new/bin/pip install -q -e '.[lavis-new,demo,test]'
	.venv-lavis-new/bin/pip install -q --no-deps salesforce-lavis==1.0.2
	touch $@

.PHONY: demo test test-fast lint clean

demo: .venv/ready
	.venv/bin/python examples/demo.py --out demo

test: lint test-wheel .venv/ready .venv-openclip/ready .venv-lavis-new/ready
	@echo "== OpenCLIP, newest =="
	.venv-openclip/bin/python -m pytest -q
	@echo "== LAVIS' pins =="
	.venv/bin/python -m pytest -q
	@echo "== LAVIS beside newer libraries =="
	.venv-lavis-new/bin/python -m pytest -q tests/test_lavis*.py

# The released files: the wheel is built from the sdist, and tested without the checkout in reach.
.PHONY: release test-wheel
release: .venv-openclip/ready
	rm -rf dist
	.venv-openclip/bin/python -m build --outdir dist . > /dev/null

test-wheel: release
	rm -rf .venv-wheel
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/pip install -q "$$(ls dist/*.whl)[open-clip,demo]" 'pytest>=8'
	cd dist && ELIP_EXPECT_WHEEL=1 ../.venv-wheel/bin/python -m pytest -q -c ../pyproject.toml \
	  -m "not slow" $(addprefix ../tests/test_,core.py golden.py plan.py open_clip.py names.py preview.py show.py trace.py)

# The default suite alone: no training commands, no compiler.
test-fast: .venv/ready .venv-openclip/ready
	.venv-openclip/bin/python -m pytest -q -m "not slow"
	.venv/bin/python -m pytest -q -m "not slow"

lint: .venv-openclip/ready
	.venv-openclip/bin/ruff check .
	.venv-openclip/bin/ruff format --check .
	.venv-openclip/bin/mypy
	.venv-openclip/bin/pydoclint -q elip_plugin
	NO_MKDOCS_2_WARNING=1 .venv-openclip/bin/mkdocs build -q --strict

.PHONY: docs
docs: .venv-openclip/ready
	.venv-openclip/bin/mkdocs serve

clean:
	rm -rf .venv .venv-openclip .venv-lavis-new .venv-wheel demo build dist site
