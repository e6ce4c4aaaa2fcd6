# Every command of a checkout. They need a Python from 3.11 on (with venv and pip) and make, nothing else; `uv` installs
# faster where it is already on the PATH. Everything they install goes into .venv, from hashed pins.
#
# The checkout is linked into .venv, not built and installed: a build would first have to fetch its build tool, outside
# the hashed pins. The link is what an "editable" install would leave: one .pth line and one `gearlink` script.

PYTHON  ?= python3
WORKERS ?= 2
UV      ?= uv
ARGS    ?=

VENV := .venv
BIN  := $(VENV)/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test lint proof bench lock clean

help: ## list the commands
	@echo "usage: make COMMAND [ARGS='...'] [PYTHON=python3.12]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' Makefile

run: $(VENV)/.run ## start the server (ARGS go to `gearlink serve`)
	@$(BIN)/python -m gearlink serve $(ARGS)

test: $(VENV)/.dev ## run all tests (ARGS go to pytest; WORKERS=0 for one process)
	@$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

lint: $(VENV)/.dev ## check style (ruff) and types (mypy --strict)
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy

proof: $(VENV)/.dev ## kill the server again and again, and look for lost messages (ARGS=--short)
	@$(BIN)/python -m tests.proof $(ARGS)

bench: $(VENV)/.dev ## measure it beside raw references of the same machine
	@$(BIN)/python -m tests.bench $(ARGS)

clean: ## remove what these commands made, except gearlink-data
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --universal: one file for every Python and system, with markers. Versions stay as they are unless pyproject.toml
# forbids them; ARGS=--upgrade takes the newest, ARGS='--upgrade-package trio' one. The second file is held to the
# first, so that what is tested is what runs. No host name gets in: any mirror can serve the files, the hashes decide.
LOCK_FLAGS := --no-config --quiet --universal --python-version 3.11 --generate-hashes \
              --no-header --no-annotate --no-emit-index-url

lock: ## renew requirements*.txt from pyproject.toml (wants uv)
	@command -v "$(UV)" >/dev/null 2>&1 || { echo "make lock wants uv: install it, or say where it is: make lock UV=/path/to/uv" >&2; exit 1; }
	"$(UV)" pip compile $(LOCK_FLAGS) $(ARGS) pyproject.toml --output-file requirements.txt
	"$(UV)" pip compile $(LOCK_FLAGS) $(ARGS) pyproject.toml --extra dev --constraint requirements.txt --output-file requirements-dev.txt

# The stamps: .made (the environment and the link), .run and .dev (what is installed). A changed requirements file is
# newer than its stamp and is installed again; a second `make run` starts at once.
define install
@echo "installing $(1) into $(VENV) (once; the first time may take a minute)"
@if command -v "$(UV)" >/dev/null 2>&1; then \
	"$(UV)" pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes -r $(1); \
else \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(1); \
fi
@touch $@
endef

$(VENV)/.run: requirements.txt $(VENV)/.made
	$(call install,requirements.txt)

$(VENV)/.dev: requirements-dev.txt $(VENV)/.made
	$(call install,requirements-dev.txt)

$(VENV)/.made:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { echo "no '$(PYTHON)' here: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "GearLink needs Python 3.11 or newer, and '$(PYTHON)' is not: $$("$(PYTHON)" --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "'$(PYTHON)' cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV)
	@pwd > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/gearlink.pth"
	@printf '#!/bin/sh\nexec "%s/python" -P -m gearlink "$$@"\n' "$$(pwd)/$(BIN)" > $(BIN)/gearlink
	@chmod +x $(BIN)/gearlink
	@touch $@
