# `make demo` and `make test` do all their own set-up; the other targets are for developers.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-newest lint docs bench bench-peers constraints clean

demo: $(VENV)/.ready
	$(BIN)/marey demo

# As many tests at once as there are cores, so one thread each.
test: $(VENV)/.ready lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# With the newest release of every dependency, as a user's pip takes them: for a job that runs every week.
test-newest:
	$(PYTHON) -m venv --clear build/newest
	build/newest/bin/python -m pip install -q --upgrade pip
	build/newest/bin/python -m pip install -q --group dev -e '.[fast]'
	build/newest/bin/python -m pip freeze --exclude-editable --all | grep -vxFf constraints.txt || true
	OMP_NUM_THREADS=1 build/newest/bin/python -m pytest -n auto --dist worksteal

lint: $(VENV)/.ready
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W -q -b html docs build/docs
	@echo build/docs/index.html

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/data_wait.py

bench-peers: build/peers/.ready
	build/peers/bin/python benchmarks/recognizers.py
	build/peers/bin/python benchmarks/transformers.py

# torchcodec needs FFmpeg's shared libraries; without them PyAV, which carries its own, reads every video.
$(VENV)/.ready: pyproject.toml constraints.txt
	@command -v ffmpeg >/dev/null || ! command -v apt-get >/dev/null || test "$$(id -u)" != 0 \
		|| (apt-get update -qq && apt-get install -y -qq --no-install-recommends ffmpeg) >/dev/null \
		|| echo "ffmpeg could not be installed; going on without torchcodec"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade -c constraints.txt pip
	$(BIN)/python -m pip install -q -c constraints.txt --group dev -e '.[fast]'
	touch $@

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install -q -c constraints.txt --group docs
	touch $@

$(VENV)/.bench: $(VENV)/.ready
	$(BIN)/python -m pip install -q -c constraints.txt --group bench
	touch $@

# Peers in an environment of their own, which finds torch and Marey in ours; nothing else is installed with them.
build/peers/.ready: $(VENV)/.ready benchmarks/peers.txt
	$(BIN)/python -m venv --clear build/peers
	build/peers/bin/python -m pip install -q --no-deps -r benchmarks/peers.txt
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
		> "$$(build/peers/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/marey.pth"
	touch $@

# Writes down what is installed now, once the tests pass with it.
constraints: $(VENV)/.docs $(VENV)/.bench
	$(BIN)/python -m pip freeze --exclude-editable --all | grep -iv '^marey\b' > constraints.txt

clean:
	rm -rf $(VENV) build dist demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
