# Two commands for users: `make demo` and `make test`. Everything installs itself into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test check bench traces pictures format clean

demo: $(INSTALLED)
	@mkdir -p out
	@$(BIN)/kvscope demo -o out/demo.h5 --overwrite

test: $(INSTALLED)
	$(BIN)/python -m pytest

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m kvscope.format --check docs/trace-format.md
	$(BIN)/python -m kvscope.cli_docs --check docs/cli.md
	$(BIN)/python -m kvscope.keys_docs --check docs/keys.md
	$(BIN)/python -m kvscope.policies_docs --check docs/policies.md

bench: $(INSTALLED)
	$(BIN)/python -m tests.benchmarks

# The commands of traces/README.md, word for word.
traces: $(INSTALLED)
	@mkdir -p out
	@grep '^kvscope \(calibrate\|run\|fidelity\)' traces/README.md | while read -r line; do echo "$$line"; PATH="$(BIN):$$PATH" sh -c "$$line --overwrite" || exit 1; done

# The commands of docs/terminal.md and docs/tuning.md, word for word.
pictures: $(INSTALLED)
	@grep -h '^kvscope screen .* -o docs/' docs/terminal.md docs/tuning.md | while read -r line; do echo "$$line"; PATH="$(BIN):$$PATH" sh -c "$$line --overwrite" || exit 1; done

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("kvscope needs Python 3.11 or newer, found " + sys.version.split()[0]) if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[run,dev]'
	@touch $@

clean:
	rm -rf $(VENV) out build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
