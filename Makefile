# `make` lists the targets. Everything runs in the locked environment .venv, made on first use.
PYTHON_BIN = .venv/bin/python
DATA =
OUTPUT = demo

.PHONY: help env demo test test-fast lint lock clean

help:
	@echo "make env               the locked environment .venv, nothing else"
	@echo "make demo              the whole road on synthetic CT: data, training, served prediction"
	@echo "make demo DATA=DIR     the same on your own folder of CT volumes and label maps"
	@echo "make test              all tests; make test-fast leaves out the whole runs"
	@echo "make lint              format and style checks"
	@echo "make lock              resolves requirements.lock anew from setup.py"
	@echo "make clean             removes the environment and the demo's output"

env:
	@PYTHON="$(PYTHON)" ./environment.sh

demo: env
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(PYTHON_BIN) -m pipeline.demo --output "$(OUTPUT)" $(if $(DATA),--input "$(DATA)")

test: env
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(PYTHON_BIN) -m pytest -n 2 --dist loadfile

test-fast: env
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(PYTHON_BIN) -m pytest -n 2 --dist loadfile -m "not slow"

lint: env
	@$(PYTHON_BIN) -m ruff format --check . && $(PYTHON_BIN) -m ruff check .

lock: env
	@.uv/bin/uv pip compile -q setup.py --extra test --python $(PYTHON_BIN) \
		--generate-hashes --no-header --upgrade -o requirements.lock

clean:
	@rm -rf .venv .uv .environment.lock demo
