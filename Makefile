# What a newcomer types: `make demo`, `make test`. Everything happens in .venv; nothing else on the
# machine is touched. A stamp file per set of extras makes every later call start at once.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --disable-pip-version-check --quiet -c constraints.txt

# One thread per test process: two workers on two cores must not fight for them, and the
# results of a test must not depend on the number of cores.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
# Has to be in the environment before scipy is imported; without it scikit-learn skips its
# array API checks.
# Tests start some fifty interpreters; without compiled files each would compile the package anew,
# for a second, where the environment forbids to write them.
TEST_ENV := $(ONE_THREAD) SCIPY_ARRAY_API=1 MPLBACKEND=Agg PYTHONDONTWRITEBYTECODE=

# What is built where a C compiler is at hand; a change of it is built anew.
NATIVE := setup.py $(wildcard sknn_resid/_native/src/*)

.PHONY: help demo test lint format docs bench clean

help:
	@echo "make demo    a Pipeline with our networks tuned by GridSearchCV, beside scikit-learn's"
	@echo "make test    the test suite; make test ARGS='-k name -x' passes options to pytest"
	@echo "make lint    ruff and mypy; make format lets ruff rewrite the files"
	@echo "make docs    the documentation, into docs/_build/html"
	@echo "make bench   the benchmarks, minutes each, results into benchmarks/results"
	@echo "make clean   remove everything that the targets above made, .venv included"

demo: $(VENV)/stamp-test
	$(PY) examples/quickstart.py

test: $(VENV)/stamp-test
	$(TEST_ENV) $(PY) -m pytest -n 2 $(ARGS)

lint: $(VENV)/stamp-lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(VENV)/stamp-lint
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

docs: $(VENV)/stamp-docs
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(VENV)/stamp-benchmark
	$(PY) benchmarks/mlp_fit.py
	$(PY) benchmarks/mlp_predict.py
	$(PY) benchmarks/residual_fit.py
	$(PY) benchmarks/recording.py
	$(PY) benchmarks/stacked_search.py
	$(PY) benchmarks/linear.py

$(VENV)/stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 ...")'
	@echo "Setting up $(VENV), once: the packages in constraints.txt are installed, torch among them."
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/stamp-test: pyproject.toml constraints.txt $(NATIVE) $(VENV)/stamp-venv
	$(PIP) -e '.[test,plot,images,distributed]'
	@touch $@

$(VENV)/stamp-lint: pyproject.toml constraints.txt $(NATIVE) $(VENV)/stamp-venv
	$(PIP) -e '.[lint,test]'
	@touch $@

$(VENV)/stamp-docs: pyproject.toml constraints.txt $(NATIVE) $(VENV)/stamp-venv
	$(PIP) -e '.[docs]'
	@touch $@

$(VENV)/stamp-benchmark: pyproject.toml constraints.txt $(NATIVE) $(VENV)/stamp-venv
	$(PIP) -e '.[benchmark]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info docs/_build examples/output
	rm -f sknn_resid/_native/*.so sknn_resid/_native/*.pyd
	rm -rf .pytest_cache .ruff_cache .mypy_cache
	find sknn_resid tests benchmarks examples docs -type d -name __pycache__ -prune -exec rm -rf {} +
