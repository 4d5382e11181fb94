# The project's verbs. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# processes that share the tests of `make test` and `make test-hostile`, each a file at a time
JOBS ?= 2
SHARED = --dist loadfile --tx "$(JOBS)*popen//python=$(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help install hospitals lock demo study-pages test test-hostile coverage test-slow docs-test compose-test check format bench bench-base same-bits chaos fuzz bench-fleet docs proto clean

help: ## List the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED) ## Make .venv with the exact packages of requirements.lock, and fedloom in it

$(INSTALLED): requirements.lock requirements-torch.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "fedloom needs Python >= 3.11; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-torch.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	$(BIN)/python -m pip check
	touch $@

lock: ## Write the hashes of the versions in requirements.lock anew; needs uv (pip install uv)
	mkdir -p build
	sed -E '/^ +--hash/d; s/ *\\$$//' requirements.lock >build/versions.in
	$(PYTHON) -m uv pip compile --universal --no-deps --generate-hashes --no-header --no-annotate --quiet \
	  --python-version 3.11 build/versions.in --output-file build/hashed.txt
	{ grep '^#' requirements.lock; cat build/hashed.txt; } >build/requirements.lock
	mv build/requirements.lock requirements.lock

DEMO = runs/demo-$(shell date +%Y%m%d-%H%M%S)
demo: install ## SFedCA against random selection, spiking networks on digits: Ray spawns the clients, gRPC carries updates
	@set -e; out=$(DEMO); for run in random-snn sfedca remembered-snn; do \
	  $(BIN)/fedloom run digits-$$run --runtime ray --out $$out/$$run; done; \
	  $(BIN)/fedloom compare $$out/random-snn $$out/sfedca $$out/remembered-snn --out $$out/comparison.html

hospitals: install ## Three hospitals and a server as separate programs: three methods, a crash, a revocation, the results
	$(BIN)/python examples/hospitals/hospitals.py

test: install ## Run the tests that take seconds
	$(BIN)/python -I -m pytest -m "not slow" $(SHARED) -I"

test-hostile: install ## Run them where locale, time zone, umask, instruction set and leftovers differ; measure coverage
	rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/python .ci/hostile.py $(BIN)/python -I -X warn_default_encoding -m coverage run -m pytest -m "not slow" \
	  $(SHARED) -I -X warn_default_encoding"

coverage: ## Report what the tests of `make test-hostile` executed; fails below the floor
	-$(BIN)/coverage combine -q # a process that was killed leaves a file that cannot be read
	$(BIN)/coverage report

test-slow: install ## Run the tests that take minutes
	$(BIN)/python -I -m pytest -m "slow and not containers"

docs-test: install ## Type every command of README, pages and help texts, with few rounds: minutes
	$(BIN)/python -I -m pytest tests/docs

compose-test: install ## Build the image and bring up every compose profile with Podman
	$(BIN)/python -I -m pytest -m containers -rs -s tests/deploy

check: install ## Lint, types, layers, generated code and reference docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	PYTHON=$(BIN)/python bash proto/generate.sh --check
	$(BIN)/python -m fedloom.cli.reference --check docs/reference

format: install ## Put the code in the project's form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## Measure against a bare PyTorch loop and Flower's engine
	$(BIN)/python -m benchmarks

same-bits: install ## Compare the bits of every preset's results with those of BASE=COMMIT, of the presets ONLY="..." alone
	$(BIN)/python -m benchmarks.same_bits $(if $(BASE),--base $(BASE)) $(if $(ONLY),--only $(ONLY))

bench-base: install ## Measure rounds here against those of commit BASE, in pairs
	$(BIN)/python -m benchmarks.paired $(if $(BASE),--base $(BASE))

bench-fleet: install ## Measure idle agents, a broadcast to fifty, acknowledgements, and memory over a thousand rounds
	$(BIN)/python -m benchmarks.idle
	$(BIN)/python -m benchmarks.idle --members
	$(BIN)/python -m benchmarks.sites
	$(BIN)/python -m benchmarks.broadcast
	$(BIN)/python -m benchmarks.acknowledgement
	$(BIN)/python -m benchmarks.endurance

chaos: install ## A hundred runs with faults drawn from a seed (as root the nodes get networks of their own), and twenty kills
	$(BIN)/python -m benchmarks.chaos
	$(BIN)/python -m benchmarks.chaos.kills

fuzz: install ## A hundred thousand broken messages to every call of a server
	$(BIN)/python -m benchmarks.fuzz

study-pages: install ## Compare the pages of studies with their published numbers; python -m fedloom.studies.pages writes them
	$(BIN)/python -m fedloom.studies.pages --check

docs: install ## Write docs/reference from the code
	$(BIN)/python -m fedloom.cli.reference docs/reference

proto: install ## Generate the wire code
	PYTHON=$(BIN)/python bash proto/generate.sh

clean: ## Remove what the verbs made (runs/ stays)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .cache/same-bits
