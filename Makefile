# make demo    trains a small model for a minute, evaluates and plots it, then codes a photograph with the better model that ships
# make test    runs all tests
# make quick   runs all tests except the slow ones
# make lint    checks the style of the code and the direction of its imports
# make results KODAK_DIR=/path/to/kodak   makes the figures and tables under results/ from the models that ship
# make bench   runs the benchmarks
# make peers KODAK_DIR=/path/to/kodak   compares the codec with JPEG, WebP, AVIF, JPEG 2000 and CompressAI
# make venv    makes .venv, which every other target does first
# TensorFlow 2.14 has wheels for Python 3.10 and 3.11 only. Where neither is installed, uv brings one, if uv is there.
VENV := .venv
PYTHON := $(VENV)/bin/python
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test quick lint results bench peers venv
venv: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	@for python in python3.11 python3.10 python3 python; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' 2>/dev/null; \
	  then found=$$python; break; fi; \
	done; \
	if [ -n "$$found" ]; then \
	  set -ex; \
	  $$found -m venv $(VENV); \
	  $(PYTHON) -m pip install --quiet --disable-pip-version-check --requirement requirements.txt; \
	elif command -v uv >/dev/null; then \
	  set -ex; \
	  [ -x $(PYTHON) ] || uv venv --quiet --python 3.11 $(VENV); \
	  uv pip install --quiet --python $(PYTHON) --requirement requirements.txt; \
	else \
	  echo "error: TensorFlow 2.14 needs Python 3.10 or 3.11, and this is $$(python3 --version 2>&1);" \
	    "install one of them, or install uv, which then brings one" >&2; \
	  exit 1; \
	fi
	@touch $@

demo: venv
	$(PYTHON) tools/demo.py

test: venv
	$(PYTHON) -m pytest tests -q

quick: venv
	$(PYTHON) -m pytest tests -q -m "not slow" --numprocesses 2

lint: venv
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/lint-imports --no-logo --no-cache

results: venv
	$(PYTHON) tools/make_results.py --kodak "$(KODAK_DIR)"

bench: venv
	$(PYTHON) benchmarks/run.py

peers: venv
	$(PYTHON) benchmarks/peers.py --images "$(KODAK_DIR)/*.png"
