PYTHON ?= python3
# Two workers on two cores: most of a test is tracing and compiling, in one thread. 0: in one process (for --pdb).
WORKERS ?= 2
TESTS ?= tests
RUN = .venv/bin/python -m
COMPILE = .cache/uv/bin/uv pip compile --quiet --no-config --universal --upgrade --generate-hashes --no-emit-index-url \
  --custom-compile-command 'make lock'

.PHONY: .venv quickstart scores test test-rest test-all test-tpu lint format lock

.venv: .venv/ready

# The stamp is written last, so that an interrupted set-up starts again.
.venv/ready: requirements-build.txt requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is Python %d.%d, heed needs 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(RUN) pip install --quiet --require-hashes --requirement requirements-build.txt
	$(RUN) pip install --quiet --require-hashes --no-build-isolation --requirement requirements.txt
	$(RUN) pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# The versions are locked as constraints, without hashes: which build of torch is installed, with CUDA or without, is up to
# where pip looks, and the one with CUDA brings packages of its own. seqeval comes as source.
.cache/oracle/ready: requirements-oracle.txt
	$(PYTHON) -m venv .cache/oracle
	.cache/oracle/bin/python -m pip install --quiet --constraint requirements-oracle.txt captum igraph networkx numpy seqeval torch transformers
	@touch $@

quickstart: .venv
	$(RUN) launch.train --config=configs/gpt.py:quickstart --workdir=runs/quickstart

# The figures that configs tell of themselves, by hand: each is trained in full, then scored beside its baselines. A run that
# was stopped goes on. make scores SCORED=bert:roles: one of them.
SCORED ?= bert:mlm bert:mlm_long bert:packages bert:roles bert:spans encoder_decoder:numbers encoder_decoder:dates encoder_decoder:denoising recurrent:lm recurrent:numbers
scores: .venv
	@set -e; for one in $(SCORED); do \
	  $(RUN) launch.train --config=configs/$${one%:*}.py:$${one#*:} --workdir=runs/scores/$${one%:*}/$${one#*:}; \
	  $(RUN) launch.evaluate --workdir=runs/scores/$${one%:*}/$${one#*:}; \
	done

# One case of each kind, for a developer who runs it ten times a day; what takes long is in test-rest; test-all is both.
# test-tpu, by hand: every full-size config by the compiler for TPUs, for the slices that its story names. What is kept
# of the same code, in .cache/heed/plans, is not compiled again.
test: TIER = -m 'not rest'
test-rest: TIER = -m 'rest and not tpu'
test-all: TIER = -m 'not tpu'
test-tpu: TIER = -m tpu -rP
test-tpu: TESTS = tests/launch/planning/test_full_size.py
test-tpu: BY = load
BY ?= loadfile
test-rest test-all: .cache/oracle/ready
test test-rest test-all test-tpu: .venv
	$(RUN) pytest --numprocesses=$(WORKERS) --dist=$(BY) --durations=10 $(TIER) $(TESTS)

lint: .venv
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy

format: .venv
	$(RUN) ruff check --fix-only .
	$(RUN) ruff format .

# Not in .venv, which a lock that cannot be installed would break. The locks hold for Python 3.11 and newer on every
# platform, and name no index: packages come from wherever pip is told to look.
lock:
	$(PYTHON) -m venv .cache/uv
	.cache/uv/bin/python -m pip install --quiet 'uv>=0.13,<0.14'
	$(COMPILE) --group build --output-file requirements-build.txt
	$(COMPILE) --extra dev --extra gcs --extra plan --output-file requirements.txt pyproject.toml
	$(COMPILE) --no-generate-hashes --group oracle --output-file requirements-oracle.txt
