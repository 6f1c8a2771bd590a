# `make demo` and `make test` are all the set-up there is: each makes .venv first, when it is not there.

# The environment is outside of what git keeps; PYTHON=... names the interpreter it is made with.
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
READY   := $(VENV)/.kernels
CANARY  := .venv-canary
export PYTHON

# What `make test` draws from the slow suites: this part of every file, the same one as long as the seed is the same.
SLOW_SEED     ?= 3
SLOW_FRACTION ?= 0.02

# Every test runs on one thread, so that each core takes some; more than four would need much memory.
PARALLEL ?= --numprocesses=auto --maxprocesses=4 --dist=worksteal

.PHONY: demo test verify models check bench canary docs clean help

demo: $(READY) ## Run the example job on the model that comes with the package, and score its answers
	@mkdir -p build
	@$(BIN)/headrace run examples/orders.jsonl -o build/answers.jsonl --model demo --overwrite
	@$(BIN)/python -m headrace.demo.scoring build/answers.jsonl examples/orders_expected.jsonl

test: $(READY) ## Run the tests, with a seeded sample of the slow suites (what CI runs)
	@$(BIN)/python -m pytest $(PARALLEL) -m "not gpu" --sample-slow=$(SLOW_SEED):$(SLOW_FRACTION)

verify: $(READY) ## Run everything, slow suites included, and write docs/verified.md
	@mkdir -p build
	@$(MAKE) --no-print-directory check
	@$(BIN)/python -m pytest $(PARALLEL) --thorough --junitxml=build/verify.xml --figures=build/figures.json
	@$(MAKE) --no-print-directory demo >build/demo.txt || { cat build/demo.txt; exit 1; }
	@$(BIN)/python scripts/write_verified.py --junit build/verify.xml --figures build/figures.json --demo build/demo.txt
	@$(BIN)/python scripts/write_models_page.py --junit build/verify.xml

models: $(READY) ## Run every architecture against transformers, and write docs/models.md
	@mkdir -p build
	@$(BIN)/python -m pytest $(PARALLEL) --junitxml=build/models.xml tests/parity/test_all_types.py
	@$(BIN)/python scripts/write_models_page.py --junit build/models.xml

check: $(READY) ## Check format, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: $(READY) ## Measure a job against transformers' generate on this machine
	@$(BIN)/python -m benchmarks.job_vs_generate

canary: $(CANARY)/.installed ## Run the parity tests with the newest transformers release
	@$(CANARY)/bin/python -m pip install --quiet --upgrade transformers
	@$(CANARY)/bin/python -c 'import transformers; print("transformers", transformers.__version__)'
	@$(CANARY)/bin/python -m pytest -m "not gpu" tests/parity

docs: $(READY) ## Write docs/cli.md from the commands
	@$(BIN)/python scripts/write_cli_docs.py

clean: ## Remove what was built, measured and cached, and the canary's environment; .venv stays
	rm -rf build dist $(CANARY) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests scripts examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PRECIOUS: %/.installed

# Without a compiler torch does what the library would: slower.
%/.kernels: %/.installed $(wildcard src/headrace/kernels/*.cpp src/headrace/kernels/*.h) src/headrace/kernels/build.py
	@$*/bin/python -m headrace.kernels.build >/dev/null || true
	@touch $@

%/.installed: pyproject.toml hatch_build.py constraints.txt scripts/make_environment.sh
	@scripts/make_environment.sh $*
	@touch $@
