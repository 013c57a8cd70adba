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

test: lint .venv/ready .venv-openclip/ready .venv-lavis-new/ready
	@echo "== OpenCLIP, newest =="
	.venv-openclip/bin/python -m pytest -q
	@echo "== LAVIS' pins =="
	.venv/bin/python -m pytest -q
	@echo "== LAVIS beside newer libraries =="
	.venv-lavis-new/bin/python -m pytest -q tests/test_lavis*.py

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
	rm -rf .venv .venv-openclip .venv-lavis-new demo build dist
