# `make demo` and `make test` do everything on a fresh machine: python3 >= 3.11, git, make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo demo-policy test docs docs-serve lint format clean

demo: $(READY)
	$(BIN)/fsa train --config=experiments/synthetic/two_types.py:bayes --workdir=runs/demo
	$(BIN)/fsa train --config=experiments/synthetic/two_types.py:btl --workdir=runs/demo-btl
	$(BIN)/fsa train --config=experiments/synthetic/two_types.py:dpl --workdir=runs/demo-dpl
	$(BIN)/fsa evaluate --workdir=runs/demo-btl
	$(BIN)/fsa evaluate --workdir=runs/demo-dpl
	$(BIN)/fsa evaluate --workdir=runs/demo
	$(BIN)/fsa evaluate --compare runs/demo runs/demo-btl runs/demo-dpl
	@echo "Try it yourself, in the browser: $(BIN)/fsa ask --workdir=runs/demo --page --open"

# A language model is pretrained, sampled, and steered by two groups of users: first z is
# inferred from their choices, then the language model follows it.
LANGUAGE := runs/demo-policy-language
CHOICES := --config.language_model.path=$(LANGUAGE)/model --config.task.path=$(LANGUAGE)/choices

demo-policy: $(READY)
	$(BIN)/fsa train --config=experiments/policy/corpus.py:language --workdir=$(LANGUAGE)
	$(BIN)/fsa sample --model=$(LANGUAGE)/model --prompts=corpus --separator=" " --num_samples=16 --max_new_tokens=40 --out=$(LANGUAGE)/samples.jsonl --overwrite
	$(BIN)/fsa prepare --samples=$(LANGUAGE)/samples.jsonl --attributes=corpus_formality --out=$(LANGUAGE)/choices --overwrite
	$(BIN)/fsa train --config=experiments/policy/corpus.py:reward $(CHOICES) --workdir=runs/demo-policy-reward
	$(BIN)/fsa train --config=experiments/policy/corpus.py:given-np-dpo $(CHOICES) --config.policy.reward_model=runs/demo-policy-reward --workdir=runs/demo-policy
	$(BIN)/fsa evaluate --workdir=runs/demo-policy

test: $(READY)
	$(BIN)/python -m pytest

# NO_MKDOCS_2_WARNING leaves out what the theme prints about other tools.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs build *.egg-info

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fsa needs Python 3.11 or newer; set PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python's venv module is missing; on Debian: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
