# Everything a person or CI runs here. `make help` lists the targets; `make demo` is the shortest start.
SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
# Two at a time: each has services of its own, and a machine of two cores is kept busy but not overrun.
PARALLEL := -n 2 --dist loadfile
# More arguments for pytest, for example: make test-broker ARGS='-k retry -x'
ARGS ?=

.PHONY: help setup demo check format test-unit test-broker test-cluster test-node test images bench prove-idle prove-kills prove-faults prove-sabotage prove-policy prove-scale

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv with all Python packages (needs Python 3.11 or newer)
	@scripts/setup-python

demo: setup ## see it work, in memory, without a broker or a cluster
	@$(BIN)/python scripts/demo

check: setup ## lint, format check, types, import layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## rewrite the code in the house format
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

test-unit: setup ## pure logic, Lua, the memory broker: no broker, no cluster (some 3 minutes)
	$(PYTEST) tests/unit -n auto --dist worksteal $(ARGS)

test-broker: setup ## against RabbitMQ 3.10, 4.0 and 4.3 and Qpid Broker-J, started here (needs root)
	@scripts/setup-brokers all
	$(PYTEST) tests/broker $(PARALLEL) $(ARGS)

test-cluster: setup ## against a real Kubernetes API server and RabbitMQ, started here
	@scripts/setup-brokers
	@scripts/setup-cluster
	$(PYTEST) tests/cluster -n 2 --dist worksteal $(ARGS)

test-node: setup ## the images in real pods on a one-node cluster, started here (needs root)
	@scripts/setup-node
	$(PYTEST) tests/node $(PARALLEL) $(ARGS)

test: ## check and all four levels of tests: pods and API server beside the rest, for most of that is waiting
	@scripts/preflight
	@scripts/run-levels check test-unit test-broker -- test-node test-cluster

images: setup ## build the images of the operator and the runtime into the cache (needs root)
	@scripts/build-images operator runtime

bench: setup ## measure against peers on one RabbitMQ, in shuffled rounds; ARGS='--rounds 1 --jobs relay' (minutes)
	@scripts/setup-brokers
	@scripts/bench $(ARGS)

prove-idle: setup ## an idle runtime's memory, and the time until it consumes (a minute)
	@scripts/setup-brokers
	$(PYTEST) tests/prove/test_idle.py -s $(ARGS)

prove-kills: setup ## 100,000 messages over 50 SIGKILLs and 10 broker restarts, then 50 SIGTERMs (some 10 minutes)
	@scripts/setup-brokers
	$(PYTEST) tests/prove/test_kills.py -s $(ARGS)

prove-faults: setup ## one fault at a time, every message accounted for (needs root; some 5 minutes)
	@scripts/setup-brokers
	$(PYTEST) tests/prove/test_faults.py -s $(ARGS)

prove-policy: setup ## 100 changes of RBAC on real pods: how long until each is enforced (minutes, needs root)
	@scripts/setup-node
	$(PYTEST) tests/node/prove_policy.py -s $(ARGS)

prove-scale: setup ## 500 Consumers, 1,000 Queues: what one change of RBAC touches (minutes)
	@scripts/setup-brokers
	@scripts/setup-cluster
	$(PYTEST) tests/cluster/prove_scale.py -s $(ARGS)

prove-sabotage: setup ## break one thing at a time in a copy; each must turn a named test red (minutes)
	@scripts/setup-brokers
	@scripts/setup-cluster
	@scripts/sabotage
