# Every target is one command. `make help` lists the targets.
BIN := .venv/bin
# Without it, make would call an end by Ctrl+C an error.
UNTIL_CTRL_C := trap 'exit 0' INT;
# Generated with authentication. Otherwise the document would describe the token as optional.
OPENAPI := AUTH_JWKS_URL= $(BIN)/python -c 'import json, secrets, app.core.config, app.main; \
    settings = app.core.config.Settings(_env_file=None, auth_jwt_secret=secrets.token_hex()); \
    print(json.dumps(app.main.create_app(settings).openapi(), indent=2))'
T ?= tests
TESTS := not ci
PYTEST := $(BIN)/python -m pytest
PARALLEL := --numprocesses=logical
# npm writes it last. The directory alone may be what is left of an interrupted installation.
NODE_MODULES := node_modules/.package-lock.json
NPM_CI := npm ci --loglevel=error || { echo "The packages are not installed. Repeat the command when the error above is mended."; exit 1; }
export PYTHONPATH := backend
# Images set it, and then each process of pytest would have to prepare every module of the tests again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help .venv install install-ci run token test ci measured slow replaced several recipes mutants fuzz chaos check bench format migrate openapi kubernetes clean
.DEFAULT_GOAL := help

help: ## List the commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

.venv: # what the service needs
	@$(UNTIL_CTRL_C) sh install.sh run

install: ## Create .venv and install what tests and checks need, once
	@$(UNTIL_CTRL_C) sh install.sh dev

install-ci:
	@$(UNTIL_CTRL_C) sh install.sh ci

tests/clients/$(NODE_MODULES): tests/clients/package-lock.json
	@if node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit(+(a * 100 + b < 2019))' 2>/dev/null; \
	then echo "Installing about 290 MB into $(@D)."; cd tests/clients && $(NPM_CI); \
	else echo "Node.js 20.19 or newer is not there: the tests of programs from npm will be skipped."; fi

run: .venv ## Serve http://127.0.0.1:8000, with an embedded PostgreSQL unless DATABASE_URL is set
	@exec $(BIN)/python -m app

token: .venv ## Print a token of the user U for trials, signed with AUTH_JWT_SECRET
	@$(BIN)/python -m app.token "$$U"

test: install ## Run the tests that need neither Debian packages nor minutes; T=path runs all tests in that path
	@$(UNTIL_CTRL_C) $(PYTEST) $(if $(filter tests,$(T)),-m "$(TESTS)" --numprocesses=auto,$(T))

# REPLACED also runs through PgBouncer with the fast lane off. OPERATIONS also runs in the deployment SEVERAL, and only uses the API.
SEVERAL := haproxy,expanded,partitioned
REPLACED := tests/routes tests/load
OPERATIONS := $(wildcard tests/routes/test_*_task.py tests/routes/test_*_tasks.py tests/routes/test_conditional_*.py) \
    tests/routes/test_idempotency_key.py tests/routes/test_hostile_input.py tests/load/test_races.py \
    tests/load/test_isolation.py tests/load/test_state_machine.py
ci: install-ci tests/clients/$(NODE_MODULES) ## Run all tests, measure the coverage, and run tests again in other deployments
	$(BIN)/coverage erase
	@$(MAKE) --no-print-directory --keep-going measured slow replaced several

# The parts of `make ci`. A failure in one does not keep the next from running.
measured:
	$(MAKE) test TESTS="not ci and not unmeasured" PYTEST="$(BIN)/coverage run -m pytest"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
# Most of them wait, so the unmeasured tests run beside them. The longest start first.
slow:
	$(PYTEST) -m "ci or unmeasured" --numprocesses=auto --no-loadscope-reorder
replaced:
	TEST_DEPLOYMENT=pgbouncer,fastapi $(PYTEST) -m "not ci" $(PARALLEL) $(REPLACED)
several:
	TEST_DEPLOYMENT=$(SEVERAL) $(PYTEST) -m "not ci" $(PARALLEL) $(OPERATIONS)

mutants: install ## Plant known defects one after another, and check that a test fails with each
	$(BIN)/python -m tests.mutants

# Three tests get 310,000 inputs each, and two of slower parsers a tenth of that: about a million in all.
fuzz: install ## Test the parsers with a million generated inputs
	FUZZ_EXAMPLES=310000 $(PYTEST) tests/fuzz $(PARALLEL) --dist=worksteal --timeout=0 --hypothesis-show-statistics

chaos: install ## Inject faults under load for some minutes, and check what clients recorded; K=word narrows
	CHAOS_ROUNDS=10 $(PYTEST) tests/chaos $(PARALLEL) --timeout=0 $(if $(K),-k "$(K)")

recipes: openapi ## Refresh the patches in examples; R=name also opens that one, or a new one, in .data/recipes
	@$(BIN)/python -m tests.recipes "$$R"

check: install ## Check format, lint, types, imports, known vulnerabilities, migrations and docs/openapi.json
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive backend alembic
	rm -rf .data/check
	$(BIN)/alembic -x embedded=.data/check upgrade head
	$(BIN)/alembic -x embedded=.data/check check
	@$(OPENAPI) | diff -u docs/openapi.json - || { echo "The API differs from docs/openapi.json; make openapi writes it."; exit 1; }
	$(BIN)/pip-audit --requirement requirements-embedded.txt --requirement requirements-otel.txt --requirement requirements-mcp.txt --disable-pip --no-deps --progress-spinner=off --desc=off

# Fastify needs Node.js.
benchmarks/fastify/$(NODE_MODULES): benchmarks/fastify/package-lock.json
	@if command -v npm >/dev/null; then echo "Installing about 20 MB into $(@D)."; cd benchmarks/fastify && $(NPM_CI); \
	else echo "npm is not there: Fastify will not be measured."; fi

bench: install benchmarks/fastify/$(NODE_MODULES) ## Measure requests and tokens, and compare with other implementations
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.agents
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.fairness
	$(BIN)/python -m benchmarks.workers
	$(BIN)/python -m benchmarks.tokens
	$(BIN)/python -m benchmarks.distance --pool-sizes 5 10

format: install ## Format the code and sort the imports
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

migrate: .venv ## Upgrade the database to the newest revision
	$(BIN)/alembic upgrade head

openapi: install ## Write docs/openapi.json
	@document=$$($(OPENAPI)) && printf '%s\n' "$$document" > docs/openapi.json

kubernetes: install-ci ## Write deploy/kubernetes.yaml
	@$(BIN)/python -m tests.chart > deploy/kubernetes.yaml

clean: ## Remove everything that the other commands create, including the embedded database
	rm -rf tests/clients/node_modules benchmarks/fastify/node_modules .venv .data .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
