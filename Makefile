# make demo: the main job.  make test: the tests.  Both set up .venv when it is missing.
# uv is used when it is installed, venv and pip otherwise.

PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$name; break; }; done)
UV := $(shell command -v uv 2>/dev/null)
RUN := .venv/bin/python
STAMP = .venv/installed-$(EXTRAS)
EXTRAS ?= dev

.PHONY: install lint test test-all demo
.DEFAULT_GOAL := demo

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python >= 3.11 found;" \
		"install one, or name it: make PYTHON=/path/to/python3" >&2; exit 2; }
ifneq ($(UV),)
	test -x $(RUN) || $(UV) venv --python "$(PYTHON)" .venv
	$(UV) pip install --python $(RUN) --constraint constraints.txt -e ".[$(EXTRAS)]"
else
	test -x $(RUN) || "$(PYTHON)" -m venv .venv
	$(RUN) -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt -e ".[$(EXTRAS)]"
endif
	@touch $(STAMP)

lint: install
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/basedpyright --level error

test: install
	$(RUN) -m pytest -n 2 -m "not slow"

test-all: install
	$(RUN) -m pytest -n 2 --dist worksteal

demo: install
	$(RUN) -m analysis.demo
