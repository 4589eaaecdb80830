# Every target sets up what it needs in a virtual environment, once; a second call installs nothing.
PYTHON ?= python3
VENV ?= .venv
COQC ?= coqc
BIN := $(VENV)/bin
WORKERS := -n logical --maxprocesses 8 --dist worksteal

.PHONY: tour test test-long lab notebooks docs bench check proofs tables listings figures screens exercises mutants clean

tour: $(VENV)/.installed-base
	$(BIN)/inference-opt tour

# A process for each core, each with one thread: on two cores, half the time of one process with two.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest $(WORKERS)

test-long: $(VENV)/.installed-test
	HYPOTHESIS_PROFILE=long OMP_NUM_THREADS=1 $(BIN)/pytest $(WORKERS)

lab: $(VENV)/.installed-lab
	$(BIN)/jupyter lab notebooks

# Executes every notebook, as many at a time as there are cores; a cell that raises, an assertion that fails, fails the
# target. The outputs go to build/notebooks, those on disk stay as they are: docs/execute.py --write renews them.
notebooks: $(VENV)/.installed-docs
	rm -rf build/notebooks
	$(BIN)/python docs/execute.py

# The site, in build/site: notebooks are executed where their code has changed, warnings are errors.
docs: $(VENV)/.installed-docs
	$(BIN)/python docs/execute.py
	$(BIN)/sphinx-build -W --keep-going -q -j auto -c docs -b html -d build/doctrees . build/site
	@echo 'open build/site/index.html'

bench: $(VENV)/.installed-test
	$(BIN)/inference-opt bench decode
	$(BIN)/inference-opt bench prefix
	$(BIN)/inference-opt bench radix
	$(BIN)/inference-opt bench speculative
	$(BIN)/inference-opt bench mla

check: $(VENV)/.installed-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Compiles the proofs, and prints of each theorem what it says and rests on; an axiom anywhere fails the target.
proofs:
	@command -v $(COQC) > /dev/null || { echo 'needs Coq 8.16 or newer: apt-get install coq' >&2; exit 1; }
	@cd docs/proofs && printed=$$(for source in $$(grep '\.v$$' _CoqProject); do \
	    $(COQC) -Q . Speculation $$source || exit 1; done) && echo "$$printed" && \
	  { test $$(echo "$$printed" | grep -c '^Closed under the global context$$') = $$(cat *.v | grep -c '^Theorem ') || \
	    { echo 'a theorem rests on an axiom, or Main.v does not print what it rests on' >&2; exit 1; }; }

# The tables of the README and the chapters, out of docs/results.
tables:
	$(PYTHON) docs/tables.py

# The chapters' excerpts of code, out of the source.
listings:
	$(PYTHON) docs/listings.py

# What the book holds of the exercises: tasks in notebooks and chapters, and the judge's verdicts on all solutions.
exercises: $(VENV)/.installed-test
	$(BIN)/python docs/exercises.py
	$(PYTHON) docs/tables.py

mutants: $(VENV)/.installed-test $(VENV)/.installed-mutants
	$(BIN)/python docs/exercises.py --mutants
	$(PYTHON) docs/tables.py

figures: $(VENV)/.installed-base
	$(BIN)/python docs/figures.py

screens: $(VENV)/.installed-test
	$(BIN)/python docs/screens.py

clean:
	rm -rf $(VENV) build *.egg-info refimpl/*.egg-info
	cd docs/proofs && rm -f *.vo *.vok *.vos *.glob .*.aux .*.cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": say make PYTHON=python3.11, for example")'
	$(PYTHON) -m venv $(VENV)

# One stamp a set of dependencies: base, test, lab, docs, check.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e $(if $(filter base,$*),.,'.[$*]')
	touch $@
