# Both commands start from nothing but Python and a network for the packages.
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/demo

.PHONY: demo test docs clean

# The main job on the embedded data: plant a backdoor, train the victim, defend it, measure both.
demo: $(VENV)/ready
	$(VENV)/bin/python launch.py --config=configs/digits.py --workdir=$(WORKDIR)

test: $(VENV)/ready-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile
	$(MAKE) docs

# The documents as a site, in build/site; whatever it warns of fails.
docs: $(VENV)/ready-test
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

# requirements.txt pins what was tried; pyproject.toml says what is needed.
$(VENV)/ready: pyproject.toml requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.txt -e .
	touch $@

$(VENV)/ready-test: $(VENV)/ready
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.txt -e '.[test,docs]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
