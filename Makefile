# Two commands: `make demo` trains a small pruned CLIP, `make test` checks everything.
SHELL := /bin/bash

# The first of some Pythons that is 3.10 to 3.$(2), makes environments, and runs: a shim of pyenv
# may be there and not run.
find_python = $(shell for python in $(1); do \
  "$$python" -c "import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info < (3, $(2) + 1))" \
    2> /dev/null && { command -v "$$python"; break; }; done)
PYTHON ?= $(call find_python,python3 python3.13 python3.12 python3.11 python3.10,13)
# LAVIS' pins have wheels for Python up to 3.11 only.
PYTHON_LAVIS ?= $(call find_python,$(PYTHON) python3.11 python3.10,11)

# Packages are compiled when they are imported, which most of their modules never are; and what was
# compiled is kept, whatever the caller's environment says: many tests start processes, each of which
# would compile torch and its neighbors again (8 seconds).
export PYTHONDONTWRITEBYTECODE :=

# .venv: LAVIS' own pins with the OpenCLIP they resolve to; .venv-openclip: the newest OpenCLIP.
.venv/ready: pyproject.toml elip.pth
	$(PYTHON_LAVIS) -m venv .venv
	.venv/bin/pip install -q --no-compile -e '.[all,test]'
	touch $@

.venv-openclip/ready: pyproject.toml elip.pth
	@test -n "$(PYTHON)" || { echo "no Python 3.10 to 3.13 with venv was found: install one, or" \
	  "name one by PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .venv-openclip
	.venv-openclip/bin/pip install -q --no-compile -e '.[open-clip,transformers,export,demo,test]' 'peft>=0.14' 'torchao>=0.10'
	touch $@

# LAVIS beside libraries newer than its pins, which it is installed without.
.venv-lavis-new/ready: pyproject.toml elip.pth
	$(PYTHON_LAVIS) -m venv .venv-lavis-new
	.venv-lavis-new/bin/pip install -q --no-compile -e '.[lavis-new,transformers,demo,test]' 'peft>=0.14' \
	  'sentence-transformers[train]>=5'
	.venv-lavis-new/bin/pip install -q --no-compile --no-deps salesforce-lavis==1.0.2
	touch $@

# Two tests at a time, each with one thread; neighbours run in one process, which makes their models
# once, until the other process has nothing left.
PYTEST = -m pytest -q -n 2 --dist worksteal

# What needs no host of an age is tested with the newest libraries alone: the tools, of which LAVIS'
# environment runs what is named after LAVIS (tests/test_selection.py sees that all of it is).
TOOLS = $(addprefix tests/,benchmarks check cli data docs examples export faults measure visualize)
# And what differs with the libraries is tested in every environment: models, and how they are found.
MODELS = $(addprefix tests/,core hosts patches patching reducers test_golden.py test_kept.py test_threads.py test_import_order.py test_release.py cli/test_doctor.py data/test_vocab.py)
# Processes that load several runtimes, or run many threads, are not those that then fork loaders.
APART = tests/export tests/test_threads.py
# Trainings in forked processes, which a torch built for CUDA refuses where the parent has trained.
FORKED = tests/faults/test_kills.py
# But what does not depend on versions, and takes long, runs once: see the markers in pyproject.toml.
ONCE = -m "not newest"
ONCE_OF_LAVIS = -m "not newest and not pins"

.PHONY: demo test test-open-clip test-lavis test-fast test-fast-lavis lint clean

demo: .venv-openclip/ready
	.venv-openclip/bin/python examples/demo.py --out demo

# Three at a time what uses a core each, or waits for a network: the environments, lint, the wheel. The
# tests take both cores.
test:
	$(MAKE) --no-print-directory -j 3 -O .venv-openclip/ready $(LAVIS_READY) lint test-wheel $(LAVIS_NEW_READY)
	$(MAKE) --no-print-directory test-open-clip
	$(MAKE) --no-print-directory test-lavis

test-open-clip: .venv-openclip/ready
	@echo "== OpenCLIP, newest =="
	.venv-openclip/bin/python $(PYTEST) $(addprefix --ignore ,$(APART) $(FORKED))
	.venv-openclip/bin/python $(PYTEST) $(FORKED)
	.venv-openclip/bin/python $(PYTEST) $(APART)

# What is left out is said last; with ELIP_TEST_ALL=1, as in CI, leaving out is an error.
ifneq ($(PYTHON_LAVIS),)
LAVIS_READY = .venv/ready
LAVIS_NEW_READY = .venv-lavis-new/ready
test-lavis: $(LAVIS_READY) $(LAVIS_NEW_READY)
	@echo "== LAVIS' pins =="
	.venv/bin/python $(PYTEST) $(MODELS) --ignore tests/hosts/anyvit $(ONCE)
	.venv/bin/python $(PYTEST) $(TOOLS) -k lavis
	@echo "== LAVIS beside newer libraries =="
	.venv-lavis-new/bin/python $(PYTEST) tests/hosts/lavis tests/hosts/transformers tests/hosts/test_adapters.py tests/hosts/test_int8.py tests/hosts/anyvit/test_found.py tests/test_kept.py $(ONCE_OF_LAVIS)
else
LEFT_OUT = left out: the tests of LAVIS, since no Python 3.10 or 3.11 was found (name one by PYTHON_LAVIS=)
ifdef ELIP_TEST_ALL
$(error $(LEFT_OUT))
endif
test-lavis:
	@echo "== $(LEFT_OUT) =="
endif

# The released files: the wheel is built from the sdist, and tested without the checkout in reach.
.PHONY: release test-wheel
release: .venv-openclip/ready
	rm -rf dist
	.venv-openclip/bin/python -m build --outdir dist . > /dev/null
	.venv-openclip/bin/twine check --strict dist/*
	.venv-openclip/bin/check-wheel-contents dist/*.whl

test-wheel: release
	rm -rf .venv-wheel
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/pip install -q --no-compile "$$(ls dist/*.whl)[open-clip,demo]" 'pytest>=8' 'pytest-xdist>=3.5'
	cd dist && ELIP_EXPECT_WHEEL=1 ../.venv-wheel/bin/python $(PYTEST) -c ../pyproject.toml -o pythonpath=tests \
	  -m "not slow" $(addprefix ../tests/,core test_golden.py test_plan.py hosts/open_clip/test_open_clip.py hosts/test_names.py measure/test_preview.py visualize)

# The default suite alone, with the newest libraries: no training commands, no compiler.
test-fast: .venv-openclip/ready
	.venv-openclip/bin/python $(PYTEST) -m "not slow"

# The same with LAVIS.
test-fast-lavis: $(LAVIS_READY)
	@$(if $(LAVIS_READY),,echo "== $(LEFT_OUT) ==")
	$(if $(LAVIS_READY),.venv/bin/python $(PYTEST) -m "not slow" $(MODELS))
	$(if $(LAVIS_READY),.venv/bin/python $(PYTEST) -m "not slow" $(TOOLS) -k lavis)

# Every fault and input of research/faults.md, and its tables; `make test` tries a part.
.PHONY: faults mutants
faults: .venv-openclip/ready
	.venv-openclip/bin/python -m benchmarks.faults run
	.venv-openclip/bin/python -m benchmarks.faults planted
	.venv-openclip/bin/python -m benchmarks.faults report --write

# A sample of mutants, of those that were not tested yet; such as make mutants SAMPLE=500 SEED=1.
SAMPLE ?= 200
SEED ?= 0
mutants: .venv-openclip/ready
	.venv-openclip/bin/pip install -q 'cosmic-ray>=8.3'
	.venv-openclip/bin/python -m benchmarks.faults mutants --sample $(SAMPLE) --seed $(SEED)
	.venv-openclip/bin/python -m benchmarks.faults report --write

# The oldest and the newest versions that pyproject.toml promises, each in a fresh environment.
.PHONY: matrix
matrix: .venv-openclip/ready
	.venv-openclip/bin/python -m benchmarks.faults matrix --oldest "$(call find_python,python3.10,10)" \
	  --newest "$(call find_python,python3.13,13)"
	.venv-openclip/bin/python -m benchmarks.faults report --write

# What this version makes of small models, for tests/test_kept.py; once per release.
.PHONY: keep
keep: .venv-openclip/ready $(LAVIS_READY)
	.venv-openclip/bin/python -m benchmarks.faults keep open_clip transformers timm torchvision
	$(if $(LAVIS_READY),.venv/bin/python -m benchmarks.faults keep lavis)

# A warning is an error, links between pages included; all pages are read anew.
SPHINX = .venv-openclip/bin/sphinx-build -q -W --keep-going -E docs site

lint: .venv-openclip/ready
	.venv-openclip/bin/ruff check .
	.venv-openclip/bin/ruff format --check .
	.venv-openclip/bin/mypy
	.venv-openclip/bin/pydoclint -q elip_plugin
	.venv-openclip/bin/typos $$(git ls-files '*.md' 'lavis_configs/*.yaml' 'elip_plugin/*.py')
	$(SPHINX)

.PHONY: docs
docs: .venv-openclip/ready
	$(SPHINX)
	@echo "open site/index.html in a browser"

clean:
	rm -rf .venv .venv-openclip .venv-lavis-new .venv-wheel demo build dist site
