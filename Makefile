# The targets a person runs are the ones CI runs (.ci/run).
PYTHON ?= python3
# PyTorch's own index of CPU builds, for instance; empty: whatever pip is set up to use.
TORCH_INDEX ?=
# Handed to pytest, or to the benchmarks: make test ARGS="-k snapshot"
ARGS ?=
# How long `make fuzz` takes.
SECONDS ?= 60

BIN := .venv/bin
PACKAGES := contracts features streamer learner serving cli
READY := .venv/.ready
BENCH_READY := .venv/.bench-ready
KAFKA_READY := .kafka/.ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup kafka demo test crash-matrix soak fuzz fuzz-merge check fix bench bench-quality compose-check clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  Variables: PYTHON=python3.12 (3.11 or newer)  TORCH_INDEX=URL (PyTorch's index of small CPU builds)  ARGS='-k name'"

setup: $(READY) ## Make .venv with everything that running and testing need
kafka: $(KAFKA_READY) ## Fetch Apache Kafka's jars by Maven, for the tests marked `kafka`

demo: $(READY) ## Broker, simulated shop, learner and scorer on this machine; prints the learning curve
	$(BIN)/anabranch demo

test: $(READY) ## Run every test (those that need Apache Kafka skip, and say so, before `make kafka`)
	$(BIN)/pytest -q -rs -n 2 --dist loadfile $(ARGS)

crash-matrix: $(READY) ## Kill the learner at every point of a publish, then it, its ingest or both 200 times at random; a broker gone for a minute
	$(BIN)/pytest -q -rs -m matrix tests/flow $(ARGS)

soak: $(BENCH_READY) $(KAFKA_READY) ## Learn over simulated weeks with restarts, 25 minutes; fails where something grows; draws soak.svg (ARGS="--plot F.svg")
	$(BIN)/python -m benchmarks.soak --plot soak.svg $(ARGS)

fuzz: $(READY) ## Feed the decoder bytes nobody would send, for a minute (SECONDS=60), by atheris
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[fuzz]"
	mkdir -p .fuzz
	$(BIN)/python tests/fuzz/decoding.py .fuzz tests/fuzz/corpus -max_total_time=$(SECONDS) -artifact_prefix=.fuzz/

fuzz-merge: ## Of the inputs that `make fuzz` left in .fuzz, keep those that reach new code (tests/fuzz/corpus)
	$(BIN)/python tests/fuzz/decoding.py -merge=1 tests/fuzz/corpus .fuzz

check: $(READY) ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict $(addprefix -p ,$(PACKAGES))

fix: $(READY) ## Let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BENCH_READY) ## Measure ourselves and our rivals, one table (ARGS="--only rivals"); see benchmarks/README.md
	$(BIN)/python -m benchmarks $(ARGS)

bench-quality: $(BENCH_READY) ## Rank public logs beside our rivals (ARGS="--data DIR --movielens FILE"); ten minutes for Taobao
	$(BIN)/python -m benchmarks.quality $(ARGS)

compose-check: $(READY) ## Validate docker-compose.yml and what it mounts
	$(BIN)/pytest -q -rs tests/deploy/test_compose.py

clean: ## Remove all that make made: .venv, .kafka, caches (snapshots stay)
	rm -rf .venv .kafka .fuzz build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./.git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Anabranch needs Python 3.11 or newer; \`$(PYTHON)\` is $$($(PYTHON) --version 2>&1). Name another one: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "\`$(PYTHON)\` cannot make virtual environments: install its venv module (Debian, Ubuntu: apt-get install python3-venv)." >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	@echo "Installing into .venv; PyTorch is large, so the first time takes minutes."
	@# Without its dependencies: those come from the ordinary index below, at the versions pinned.
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --no-deps --index-url "$(TORCH_INDEX)" "$$(grep '^torch==' constraints.txt)")
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

$(BENCH_READY): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,bench]"
	@touch $@

$(KAFKA_READY): tests/kafka/pom.xml
	@command -v mvn >/dev/null || { \
	  echo "Maven fetches Apache Kafka: install it and Java 17 (Debian, Ubuntu: apt-get install maven default-jre-headless; macOS: brew install maven)." >&2; exit 1; }
	@# Emptied first: jars of two versions beside each other would be a broker nobody released.
	rm -rf .kafka/libs
	mvn -q -B -f tests/kafka/pom.xml dependency:copy-dependencies -DoutputDirectory="$(CURDIR)/.kafka/libs"
	@touch $@
