# Two commands: `make demo` trains a small pruned CLIP, `make test` checks everything.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
SHELL := /bin/bash

# .venv: LAVIS' own pins with the OpenCLIP they resolve to; .venv-openclip: the newest OpenCLIP.
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q -e '.[all,test]'
	touch $@

.venv-openclip/ready: pyproject.toml
	$(PYTHON) -m venv .venv-openclip
	.venv-openclip/bin/pip install -q -e '.[open-clip,demo,test]'
	touch $@

.PHONY: demo test test-fast lint clean

demo: .venv/ready
	.venv/bin/python examples/demo.py --out demo

test: lint .venv/ready .venv-openclip/ready
	@echo "== OpenCLIP, newest =="
	.venv-openclip/bin/python -m pytest -q
	@echo "== LAVIS' pins =="
	.venv/bin/python -m pytest -q

# The default suite alone: no training commands, no compiler.
test-fast: .venv/ready .venv-openclip/ready
	.venv-openclip/bin/python -m pytest -q -m "not slow"
	.venv/bin/python -m pytest -q -m "not slow"

lint: .venv-openclip/ready
	.venv-openclip/bin/ruff check .
	.venv-openclip/bin/ruff format --check .
	.venv-openclip/bin/mypy
	.venv-openclip/bin/pydoclint -q elip_plugin

clean:
	rm -rf .venv .venv-openclip demo build dist
