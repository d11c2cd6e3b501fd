# make demo   a small model trained, evaluated and plotted in about three minutes, then the shipped model on a photograph
# make test   the tests
# make results KODAK_DIR=/path/to/kodak   the figures and tables under results/, from the shipped model
# make bench  the benchmarks
# Each first makes .venv with a Python that TensorFlow 2.14 has wheels for (3.10 or 3.11).
VENV := .venv
PYTHON := $(VENV)/bin/python
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test results bench venv
venv: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	@for python in python3.11 python3.10 python3 python; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' 2>/dev/null; \
	  then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "error: expected Python 3.10 or 3.11 (TensorFlow 2.14 has wheels for no other), found: $$(python3 --version 2>&1)" >&2; \
	  exit 1; \
	fi; \
	set -ex; $$found -m venv $(VENV); \
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@touch $@

demo: venv
	$(PYTHON) tools/demo.py

test: venv
	$(PYTHON) -m pytest tests -q

results: venv
	$(PYTHON) tools/make_results.py --kodak "$(KODAK_DIR)"

bench: venv
	$(PYTHON) benchmarks/run.py
