# make help      what there is
# Every target sets up what it needs: a virtual environment in .venv, from requirements-dev.lock.

.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ARGS ?=

help:  ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements-dev.lock pyproject.toml setup.py runtime/_passing.c prediction/_trees.c
	@deploy/make-venv "$(VENV)"
	@touch $@

setup: $(READY)  ## the virtual environment (the other targets do it by themselves)

up: $(READY)  ## a whole stack on this machine: Redis, control plane, data plane, emulated workers (ARGS="--workers 8")
	@$(BIN)/headway up $(ARGS)

down: $(READY)  ## end the stack that `make up` started
	@$(BIN)/headway down

# Two processes take one file of tests after the other (-n auto: see tests/conftest.py). -v takes back the -q of pyproject.toml:
# how many tests there are is said first. A process that a test ends is not replaced: the test is named, and the run is over.
test: $(READY)  ## the tests, in two processes (ARGS="-k drain", ARGS=tests/sim, ARGS="-x --pdb")
	@$(BIN)/python -m pytest -v -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(ARGS)

check: $(READY)  ## format, lint, types, import contracts, generated stubs
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache --config pyproject.toml >$(VENV)/imports.log 2>&1 || { cat $(VENV)/imports.log; exit 1; }
	@deploy/generate-stubs --check
	@echo "check: all good"

format: $(READY)  ## write the code as `make check` wants it
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix --quiet .

lock: $(READY)  ## resolve the dependencies again
	@deploy/lock

proto: $(READY)  ## generate the gRPC stubs
	@deploy/generate-stubs

demo: $(READY)  ## up, two conversations, what went where and why, down
	@$(BIN)/headway demo

bench: $(READY)  ## benchmarks, each printed with its method
	@$(BIN)/python -m tests.bench $(ARGS)

sim: $(READY)  ## the control plane and the engines in virtual time
	@$(BIN)/headway simulate $(ARGS)

test-compose: $(READY)  ## docker compose: up, a chat, a worker killed, down
	@tests/compose/run

test-vllm: $(READY)  ## against two real vLLM servers on the CPU
	@tests/vllm/run

.PHONY: help setup up down test check format lock demo proto bench sim test-compose test-vllm
