# The pipeline's commands. Each sets up .venv by itself, once: see `make help`.

PYTHON ?= python3
SHELL := bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed$(if $(CUDA),-cuda)
LOCK := requirements$(if $(CUDA),-cuda).txt

COMPILE := uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-header --no-annotate

# Whether .venv can be used. Not if it was moved or copied, or if the Python is gone that it was made
# from: then it is made anew. It may be a link to another clone's.
USABLE := $(shell made=$$(grep -som1 '/[^"]*/bin/python' $(BIN)/dvc) && [ "$${made%/*}" -ef $(BIN) ] \
	&& [ -x $(BIN)/python ] && echo yes)
ifneq ($(USABLE),yes)
$(shell rm -f $(VENV)/installed*)
endif

# Stages are started by DVC as `python -m stages...`: the environment's Python comes first. The PATH is
# why SHELL is no /bin/bash: macOS's make would then look for commands in its own.
export PATH := $(abspath $(BIN)):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup setup-git demo report results export test browser servers realdata slow repro gate bench check doctor lock clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "make CUDA=1 ... the same with TensorFlow's CUDA libraries (Linux, NVIDIA GPU)"

setup: $(STAMP)  ## install the locked, hashed packages into .venv

# Without site_cache_dir, DVC keeps notes, which it unpickles, where everyone may write: in /var/tmp.
$(STAMP): $(LOCK)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else \
		f"error: Python 3.11 to 3.13 is needed. Received: {v.major}.{v.minor}. Name one: make PYTHON=python3.12 ...")'
	@cmp -s $(LOCK) $@ || { \
		! [ -L $(VENV) ] || { echo "error: $(VENV) is a link to an environment of another $(LOCK). Remove it."; exit 1; }; \
		echo "Setting up $(VENV), once; this takes a few minutes."; \
		[ -n '$(USABLE)' ] || $(PYTHON) -m venv --clear $(VENV); \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCK); }
	@$(BIN)/python -m tools.plots_page
	@install -d -m 700 .dvc/tmp/site
	@$(BIN)/dvc config --local core.site_cache_dir '$(CURDIR)/.dvc/tmp/site'
	@cp $(LOCK) $@

setup-git: $(STAMP)  ## git's merge drivers for dvc.lock and results/, and the checks before commits
	@git config merge.dvc-lock.name "dvc.lock, stage by stage"
	@git config merge.dvc-lock.driver '"$(abspath $(BIN))/python" -m tools.merge_lock %O %A %B || { git merge-file %A %O %B && echo "<<<<<<< by lines" >> %A; false; }'
	@git config merge.dvc-result.name "ours, until dvc repro writes it anew; theirs where git takes it for one of ours renamed"
	@git config merge.dvc-result.driver 'git cat-file -e HEAD:%P 2> /dev/null || cp %B %A'
	@pre-commit install

demo: $(STAMP)  ## the whole pipeline on the embedded dataset, then its results
	@python -m stages.shared.params
	@dvc repro plot@shapes
	@python -m tools.show shapes

test: $(STAMP)  ## the tests that need neither the real data, nor a browser, nor servers
	@python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

browser: $(STAMP)  ## the tests of the report in Chromium, if there is one
	@python -m pytest -rs -m browser $$(grep -l mark.browser tests/test_*.py)

servers: $(STAMP)  ## the tests of DVC remotes on real servers, and of a cluster of two nodes
	@python -m pytest -rs -m "servers and not slow" $$(grep -l mark.servers tests/test_*.py) \
		--numprocesses 2 --dist worksteal

realdata: $(STAMP)  ## the tests on the real CIFAR: CIFAR_MIRROR names the archives' folder
	@python -m pytest -m "realdata and not slow" $$(grep -l mark.realdata tests/test_*.py)

report: $(STAMP)  ## the results as a folder of HTML that opens offline: report/index.html
	@python -m tools.report

results: $(STAMP)  ## the tables of results on real data, from what git has
	@python -m tools.readme

export: $(STAMP)  ## every trained variant as SavedModel and ONNX, checked, in exports/
	@python -m tools.export

repro: $(STAMP)  ## bring every result up to date: dvc repro; JOBS=auto or a number: in parallel
	@python -m stages.shared.params
	@$(if $(JOBS),python -m tools.launch --jobs $(JOBS),dvc repro)

check: $(STAMP)  ## lint, formatting and types
	@ruff check .
	@ruff format --check .
	@mypy

doctor: $(STAMP)  ## check the environment and the workspace, and say what to do
	@python -m tools.doctor

slow: $(STAMP)  ## the tests that take long: faults in every stage, up to 10,000 mutations of each input
	@python -m pytest -m slow -s -o faulthandler_timeout=0

gate: $(STAMP)  ## may this branch be merged? needs no data
	@python -m tools.gate

bench: $(STAMP)  ## the benchmarks, JSON in benchmarks/results; best on an idle machine
	@dvc repro --quiet plot@shapes
	@for each in tutorial to_accuracy torch_air checkpoint_cost overhead floor launch; do \
		python -m benchmarks.$$each || exit 1; done

lock: $(STAMP)  ## resolve the newest versions that pyproject.toml allows into the lock files
	@$(COMPILE) --extra dev --extra export --extra cluster --extra remote --output-file requirements.txt
	@$(COMPILE) --extra dev --extra export --extra cluster --extra remote --extra cuda --output-file requirements-cuda.txt

clean:  ## remove logs, reports and exports, and nothing that a stage at work needs
	@rm -rf dvc_plots report exports logs
