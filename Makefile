# Two commands do everything: `make run` and `make test`. Each installs what it needs into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NOTEBOOK ?= $(firstword $(wildcard ../shared/seed/*.ipynb) tests/data/toy_models.ipynb)

# TEST gives pytest more arguments, as in make test TEST=tests/worlds.
.PHONY: run paper real test test-gpu shapes bench notebook docs dist lint types clean

run: $(VENV)/.installed
	$(BIN)/sbw run jumprelu

paper: $(VENV)/.installed
	$(BIN)/sbw paper $(PAPER)

# SAEs on a real language model, from its text to a report; needs PyPI and two hours.
real: $(VENV)/.installed-real
	scripts/real.sh $(BIN)

# Tests run on one thread each, and so as many at a time as there are cores; each process takes a gigabyte.
test: lint types
	scripts/install_browser.sh $(BIN)/python
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile $(TEST)

# What has to hold on a CUDA GPU; `make test` runs the same on the CPU.
test-gpu: $(VENV)/.installed-test
	$(BIN)/python -m pytest tests/gpu --gpu $(TEST)

# Shapes and types in signatures, checked while the tests run; slower, so CI does it in one job.
shapes: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile \
		--jaxtyping-packages=sparse_but_wrong,beartype.beartype $(TEST)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/.installed-test
	$(BIN)/pyright

bench: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks $(BENCH)

notebook: $(VENV)/.installed-test
	$(BIN)/python scripts/run_notebook.py "$(NOTEBOOK)" $(if $(SEED),--seed $(SEED))

# The site, in site/index.html; without a warning, and without the network once this is installed.
docs: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

# What is released, in dist/: built, and looked at. scripts/try_wheel.sh then installs and uses it.
dist: $(VENV)/bin/pip
	rm -rf dist
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt build twine
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python scripts/check_dist.py dist

# The environment itself; a half-made one is made anew.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; this is $$($(PYTHON) --version). Name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-real: pyproject.toml constraints.txt | $(VENV)/bin/pip
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[gguf,probing]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache site dist build
