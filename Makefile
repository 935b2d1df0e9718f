# make help says what there is.
#
# Everything runs in .venv, which is made on first use with OpenMMLab's maintained line (LINE=original: in
# .venv-original, with the original line), unless PYTHON names the interpreter of an environment that already has torch
# and OpenMMLab (either line): that one is used as it is, and nothing is installed into it.

BOOTSTRAP_PYTHON ?= $(shell command -v python3.11 || command -v python3)

LINE ?= maintained
ifeq ($(LINE),maintained)
  VENV := .venv
  REQUIREMENTS := requirements.txt
  MMCV := onedl-mmcv
  MINUTES := 7-9
else ifeq ($(LINE),original)
  VENV := .venv-original
  REQUIREMENTS := requirements-original.txt
  MMCV := mmcv
  MINUTES := about 15
else
  $(error LINE is maintained or original, not $(LINE))
endif
INSTALLED := $(VENV)/.installed
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check

ifdef PYTHON
  READY := existing
else
  PYTHON := $(VENV)/bin/python
  READY := $(INSTALLED)
  CHECKS := configs docs  # in small environments of their own
endif
RUN := PYTHONPATH=$(CURDIR) $(PYTHON)

.PHONY: help setup demo test test-fast lint pages configs docs existing
.DEFAULT_GOAL := help

help:
	@echo "make demo    train a tiny detector with NetAug on handwritten digits, test it, draw its detections"
	@echo "make test    lint, run all tests, load all configs (make configs) and build the documentation (make docs)"
	@echo "make test-fast"
	@echo "             lint and run the tests that are not marked slow"
	@echo "make lint    ruff and mypy alone"
	@echo "make pages   write docs/paper.md again; fails if it was out of date"
	@echo "make configs load every config with the original line's MMEngine, without torch (a venv of a minute)"
	@echo "make docs    build the documentation's site into build/site (a venv of a minute)"
	@echo "make setup   only make $(VENV): about 3 minutes of downloads and $(MINUTES) minutes to compile mmcv (2 cores);"
	@echo "             demo and test do this by themselves"
	@echo
	@echo "LINE=original                     OpenMMLab's original line (mmengine, mmcv, mmdet, mmpretrain) in .venv-original"
	@echo "PYTHON=/path/to/python            use this environment, which has torch and OpenMMLab; installs nothing"
	@echo "BOOTSTRAP_PYTHON=/path/to/python  the Python (3.10 to 3.13) that .venv is made with"

setup: $(READY)

# The tiny network is tested as a stranger would: by the config that knows nothing of NetAug.
DEMO := work_dirs/yolov3_mbv3_w035_netaug_digits
demo: setup
	$(RUN) tools/train.py configs/yolov3_mbv3_w035_netaug_digits.py --work-dir $(DEMO)
	checkpoint=$$(cat $(DEMO)/last_checkpoint) && \
	  $(RUN) tools/test.py configs/yolov3_mbv3_w035_digits.py $${checkpoint%.pth}_tiny.pth \
	    --work-dir $(DEMO)/test --show-dir $(DEMO)/detections
	@echo "==> pictures of the detections: $(DEMO)/detections"

test: lint $(CHECKS)
	$(PYTEST)

test-fast: lint
	$(PYTEST) -m "not slow"

# Several processes of one thread each are faster than one of several, and do not disturb each other. Files go to them in
# the order of tests/conftest.py.
PYTEST = @$(PYTHON) -c "import pytest" || { echo "error: no pytest in this environment: $(PYTHON) -m pip install pytest"; exit 1; }; \
  OMP_NUM_THREADS=1 $(RUN) -m pytest $$($(PYTHON) -c "import xdist" 2>/dev/null && echo "-n auto --dist loadfile --no-loadscope-reorder")

lint: setup
	@for tool in "ruff check ." mypy; do \
	  if $(PYTHON) -m $${tool%% *} --version >/dev/null 2>&1; then \
	    $(PYTHON) -m $$tool || exit 1; \
	  else \
	    echo "no $${tool%% *} in this environment: left out (to have it: $(PYTHON) -m pip install $${tool%% *})"; \
	  fi; \
	done

# The table of the paper's rows is written from the metafile and from networks that are built.
pages: setup
	$(RUN) tools/paper.py --write
	git diff --exit-code docs/paper.md

# The original line's MMEngine refuses configs that the maintained line's reads. It is pure Python, and so is what it
# needs to read a config; mmdet and mmpretrain are there for the configs that ours inherit from.
READS_CONFIGS := .venv-configs
configs: $(READS_CONFIGS)/.installed
	$(READS_CONFIGS)/bin/python .ci/load_configs.py

$(READS_CONFIGS)/.installed: requirements-original.txt
	@test -x $(READS_CONFIGS)/bin/pip || "$(BOOTSTRAP_PYTHON)" -m venv $(READS_CONFIGS)
	$(READS_CONFIGS)/bin/python -m pip install --disable-pip-version-check -q -c $< \
	  addict numpy packaging pyyaml rich setuptools termcolor yapf
	$(READS_CONFIGS)/bin/python -m pip install --disable-pip-version-check -q --no-deps -c $< mmengine mmdet mmpretrain
	@touch $@

# Static: the reference is read from the sources, nothing of mmnetaug is imported.
WRITES_DOCS := .venv-docs
docs: $(WRITES_DOCS)/.installed
	$(WRITES_DOCS)/bin/mkdocs build
	@echo "==> build/site/index.html"

$(WRITES_DOCS)/.installed: requirements-docs.txt
	@test -x $(WRITES_DOCS)/bin/pip || "$(BOOTSTRAP_PYTHON)" -m venv $(WRITES_DOCS)
	$(WRITES_DOCS)/bin/python -m pip install --disable-pip-version-check -q -r $<
	@touch $@

# An environment of the user's: only looked at.
existing:
	@$(RUN) -c "import mmnetaug.models" || { echo "error: $(PYTHON) cannot be used as it is, see above"; exit 1; }

# Our own: see requirements.txt for why in this order. pip keeps the wheel of mmcv that it compiles, so the second
# environment on a machine takes two minutes.
$(INSTALLED): $(REQUIREMENTS) requirements-dev.txt setup.py
	@test -n "$(BOOTSTRAP_PYTHON)" && "$(BOOTSTRAP_PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || \
	  { echo "error: Python 3.10 to 3.13 is needed (3.11 is what the tests run on): make ... BOOTSTRAP_PYTHON=/path/to/python"; exit 1; }
	@"$(BOOTSTRAP_PYTHON)" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || \
	  { echo "error: Python.h is missing, mmcv is compiled against it: install python3-dev (python3-devel)"; exit 1; }
	@command -v $${CXX:-c++} >/dev/null || \
	  { echo "error: no C++ compiler ($${CXX:-c++}), mmcv is compiled with it: install g++ (gcc-c++), or make ... CXX=/path/to/compiler"; exit 1; }
	@echo "==> 1/4 virtual environment in $(VENV)"
	@test -x $(VENV)/bin/pip || "$(BOOTSTRAP_PYTHON)" -m venv $(VENV)
	@echo "==> 2/4 torch and what mmcv is built with"
	$(PIP) install -q -c $(REQUIREMENTS) torch torchvision setuptools wheel packaging ninja psutil
	@$(VENV)/bin/python -c "import sys, torch; from torch.utils.cpp_extension import CUDA_HOME; sys.exit(torch.cuda.is_available() and not CUDA_HOME)" || \
	  { echo "error: a GPU but no CUDA toolkit (nvcc), which mmcv's operators are compiled with for it: install it, or hide the GPU: CUDA_VISIBLE_DEVICES= make ..."; exit 1; }
	@echo "==> 3/4 mmcv: compiling its operators takes $(MINUTES) minutes on 2 cores; seconds if pip has kept the wheel"
	MAX_JOBS=$${MAX_JOBS:-$$(getconf _NPROCESSORS_ONLN)} MMCV_WITH_OPS=1 FORCE_CUDA=$${FORCE_CUDA:-0} \
	  $(PIP) install -c $(REQUIREMENTS) --no-build-isolation $(MMCV)
	@$(VENV)/bin/python -c "import mmcv.ops" || \
	  { echo "error: mmcv's operators do not load; if pip's kept wheel was compiled for another torch: pip cache remove $(subst -,_,$(MMCV))"; exit 1; }
	@echo "==> 4/4 mmengine, mmdet, mmpretrain and the rest"
	$(PIP) install -q -r $(REQUIREMENTS) -r requirements-dev.txt
	@# imaug, which mmdet asks for, brings the headless OpenCV over the full one; the last one written counts, and the
	@# headless one needs no libGL, which servers lack
	$(PIP) install -q --no-deps --force-reinstall -c $(REQUIREMENTS) opencv-python-headless
	$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $@
	@echo "==> $(VENV) is ready"
