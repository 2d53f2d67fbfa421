# Each target sets up what it needs by itself: a fresh machine with Python 3.11 or newer is enough.

PYTHON ?= python3
BIN := .venv/bin
# Commands that snakemake starts find `tomoscout` beside it.
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Matplotlib and other caches stay in the checkout, also where no home folder can be written.
export MPLCONFIGDIR := $(CURDIR)/.venv/cache/matplotlib

DEMO := --snakefile $(CURDIR)/Snakefile --profile $(CURDIR)/workflow/profiles/demo \
        --configfile $(CURDIR)/config/examples/demo.yaml --directory demo

SEARCH := --snakefile $(CURDIR)/Snakefile --profile $(CURDIR)/workflow/profiles/demo --directory demo-explore \
          --configfile $(CURDIR)/config/examples/demo-explore.yaml

CELLS := --snakefile $(CURDIR)/Snakefile --profile $(CURDIR)/workflow/profiles/demo --directory demo-cells \
         --configfile $(CURDIR)/config/examples/demo-cells.yaml

# Where no registry can be reached: make image BASE=packages
BASE := docker://debian:12-slim

.PHONY: demo demo-cells demo-explore test test-all lint format docs bench image clean

# The lock is installed first and alone, so that nothing newer slips in with the package.
.venv/ready: envs/requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tomoscout needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: .venv/ready
	@mkdir -p demo
	$(BIN)/snakemake phantom $(DEMO) --quiet all
	$(BIN)/snakemake $(DEMO) --quiet rules
	@$(BIN)/tomoscout show-scores demo/results/evaluate/demo
	@echo "Report:    demo/results/report/demo.html"
	@echo "Targets:   demo/results/targets/targets/pictures/phantom/"
	@echo "Picks:     demo/results/phantom/ (a copick project; user tomoscout, session demo)"

demo-cells: .venv/cells
	@mkdir -p demo-cells
	$(BIN)/snakemake phantom_cells $(CELLS) --quiet all
	$(BIN)/snakemake cells $(CELLS) --quiet rules
	@echo "Scores:      demo-cells/results/cells/evaluate/cells/report.html"
	@echo "Annotations: demo-cells/results/cells/check/index.html"
	@echo "Model:       demo-cells/results/cells/library/cells/"
	@echo "Labels:      demo-cells/results/cells/images/"

demo-explore: .venv/ready
	@mkdir -p demo-explore
	$(BIN)/snakemake phantom $(SEARCH) --quiet all
	$(BIN)/snakemake evaluate $(SEARCH) --config 'segment={models: [results/models/default]}' --quiet rules
	$(BIN)/snakemake evaluate explore $(SEARCH) --quiet rules
	@echo "The default network, trained as long as each trial:"
	@$(BIN)/tomoscout show-scores demo-explore/results/evaluate/default
	@echo "The best of twelve trials:"
	@$(BIN)/tomoscout show-scores demo-explore/results/evaluate/demo-best
	@ls -d demo-explore/results/explore/demo-*/report.html | sed 's/^/Report:    /'

# What the star head needs, more than 200 MB of it.
.venv/cells: .venv/ready envs/cells.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r envs/cells.lock
	touch $@

# The executors of clouds, which each start of Snakemake would import: for the tests of their profiles alone.
.venv/clouds: .venv/ready envs/cloud.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r envs/cloud.lock
	touch $@

# What `snakemake export_cells` needs, and bioimageio.core to test it: that one asks for an earlier bioimageio.spec,
# which fails with pydantic 2.14.
.venv/bioimageio: .venv/ready envs/bioimageio.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r envs/bioimageio.lock
	touch $@

# The packages of back ends (cells.train.backend), each in an environment of its own: 2.1 GB and 1.6 GB.
define environment_of_a_back_end
$(BIN)/python -m venv --clear $@
$@/bin/python -m pip install --quiet --disable-pip-version-check -r envs/$(@F).lock
touch $@
endef

.venv/stardist: .venv/ready envs/stardist.lock
	$(environment_of_a_back_end)

.venv/cellpose: .venv/ready envs/cellpose.lock
	$(environment_of_a_back_end)

PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder
# Markers of tests that need a service or take long: see pyproject.toml.
SPECIAL := slurm or image or browser or backend or long

test: .venv/cells .venv/bioimageio
	$(PYTEST) -n 2 -m "not ($(SPECIAL))"

# What `make test` leaves out. Some of it waits for services: a third worker uses the cores meanwhile.
test-all: .venv/cells .venv/bioimageio .venv/clouds
	$(PYTEST) -n 3 -m "$(SPECIAL)"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=tests $(BIN)/lint-imports --no-logo
	$(BIN)/snakefmt --check Snakefile workflow
	mkdir -p .venv/lint
	$(BIN)/snakemake --snakefile Snakefile --lint --configfile config/examples/demo.yaml --directory .venv/lint

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow

# The files that are written from the package.
docs: .venv/ready
	$(BIN)/tomoscout options schema > config/schema.json
	$(BIN)/tomoscout options yaml > config/config.yaml
	$(BIN)/tomoscout options markdown > config/README.md
	$(BIN)/python envs/write.py

image: .venv/ready
	$(BIN)/python containers/build.py --base $(BASE)

# With MAPS, a folder of density maps: also phantoms of these. With NUCLEI, a folder of annotated images: also the heads
# of cells beside the package stardist.
bench: .venv/ready $(if $(NUCLEI),.venv/cells .venv/stardist)
	$(BIN)/python tests/benchmarks/run.py all $(if $(MAPS),--maps $(MAPS))
	$(if $(NUCLEI),$(BIN)/python tests/benchmarks/instances.py $(NUCLEI) --stardist .venv/stardist/bin/python)

clean:
	rm -rf demo demo-cells demo-explore .bench
