# Everything works from a fresh clone: each target makes the environment it needs, once.
#   make demo    fuse, answer, judge and report with a real 135M model
#   make test    all that CI runs: format, lint, types, every test
#   make check   the fast part of it, under a minute
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
RAY := $(VENV)/ray-ready

.PHONY: demo test check slow browser venv format clean

demo: $(READY)
	$(BIN)/fuseval demo

test: check slow

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q -n auto --dist loadfile -m "not slow"

# Two tests at a time, each on one core; the rooms whose tests take longest first, so that none is waited for at the end.
slow: $(READY) $(RAY) browser
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(BIN)/pytest -q -m slow -n 2 --dist loadfile \
		--no-loadscope-reorder tests/judges tests/fuseval tests

# The report's tests drive Chromium: Debian's, installed where there is none and that can be done.
browser:
	@test -n "$$CHROMIUM" || command -v chromium >/dev/null || command -v google-chrome >/dev/null \
		|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get -qq update \
		     && apt-get -qq install -y --no-install-recommends chromium >/dev/null; } \
		|| echo "no Chromium: the report's browser tests are skipped (apt-get install chromium, or name one in CHROMIUM)" >&2

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

venv: $(READY)

# --no-deps keeps torchvision, torchaudio and torchcodec out: their PyPI builds need CUDA and break transformers
# beside a CPU torch. requirements/cpu.txt is complete, and pins torch's CPU build, so that CUDA is never pulled.
$(READY): requirements/cpu.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "fuseval needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
		|| { echo "python3 -m venv failed: install your system's venv package (Debian: python3-venv)" >&2; exit 2; }
	@echo "installing about 200 pinned packages (4 GB) into $(VENV); this takes some minutes, once"
	@$(BIN)/python -m pip install --no-deps --quiet --disable-pip-version-check -r requirements/cpu.txt \
		|| { echo "The install stopped. If the CPU build torch==2.13.0+cpu was not found, add PyTorch's own CPU index:" >&2; \
		     echo "    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make venv" >&2; exit 2; }
	@$(BIN)/python -m pip install --no-deps --no-build-isolation --quiet --disable-pip-version-check -e .
	@touch $(READY)

# Ray, an optional extra, for its tests alone.
$(RAY): $(READY) requirements/ray.txt
	@$(BIN)/python -m pip install --no-deps --quiet --disable-pip-version-check -r requirements/ray.txt
	@touch $(RAY)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
