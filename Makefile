# `make` lists the targets. Everything runs in the locked environment .venv, made on first use.
# With STACK=current or STACK=2.15 it is .venv-current or .venv-2.15, beside the one that was chosen.
STACK =
VENV = .venv$(if $(STACK),-$(STACK))
PYTHON_BIN = $(VENV)/bin/python
DATA =
OUTPUT = demo
# Processes that run tests side by side; each takes up to 4 GB.
WORKERS = 2
TASK = ct_liver
ifeq ($(filter ct_liver dbt_lesion,$(TASK)),)
$(error TASK: expected ct_liver or dbt_lesion, found "$(TASK)")
endif

# Without bytecode beside the packages, each of the many processes would compile TensorFlow and TFX again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help env demo test test-fast test-core test-flink test-spark test-prism test-kfp test-image lint lock clean

help:
	@echo "make env               only the locked environment .venv; GPU=1 with CUDA's libraries, GPU=0 without"
	@echo "                       STACK=current insists on TensorFlow 2.21, STACK=2.15 on TensorFlow 2.15, for any target"
	@echo "make demo              the whole workflow on synthetic CT: data, training, served prediction"
	@echo "make demo TASK=NAME    the same for NAME: dbt_lesion (synthetic breast tomosynthesis), ct_liver (default)"
	@echo "make demo DATA=DIR     on your own folder: CT volumes and label maps, or for dbt_lesion BCS-DBT's layout"
	@echo "make test              all tests; make test-fast leaves out the whole runs; WORKERS=8 takes more cores"
	@echo "make test-core         most tests of all but the pipeline"
	@echo "make test-flink        the conversion on Flink, make test-spark on Spark, make test-prism on Prism: Java"
	@echo "                       programs that Maven fetches, and a Go program that is built, into .engines"
	@echo "make test-kfp          compiled pipelines in kfp 2 and Argo's linter, which are installed into .kfp"
	@echo "make test-image        the Dockerfile's steps in bare Debians, as root, with debootstrap"
	@echo "make lint              format, style and types"
	@echo "make lock              resolves the locks of both stacks again from setup.py"
	@echo "make clean             removes the environment and the demo's output"

env:
	@PYTHON="$(PYTHON)" STACK="$(STACK)" GPU="$(GPU)" ./environment.sh

demo: env
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PYTHON_BIN) -m pipeline.demo --task "$(TASK)_small" --output "$(OUTPUT)" $(if $(DATA),--input "$(DATA)")

test: env
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PYTHON_BIN) -m pytest -n $(WORKERS) --dist loadfile

test-fast: env
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PYTHON_BIN) -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

# What continuous integration runs on the current stack where its TFX can't be installed: without the files
# that take longest, which the other stack has run.
CORE = tests/ahnet_tf tests/preprocessing tests/serving tests/benchmarks tests/e2e/test_stored_artifacts.py
LONG = ahnet_tf/networks/test_initialization.py ahnet_tf/training/test_interruptions.py ahnet_tf/test_train.py \
	preprocessing/test_fuzz_inputs.py preprocessing/test_damaged_files.py benchmarks/test_paper_comparison.py \
	serving/client/test_faults.py serving/embedded/test_flood.py

test-core: env
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PYTHON_BIN) -m pytest -n $(WORKERS) --dist loadfile $(CORE) \
		$(LONG:%=--ignore tests/%)

# Job servers from Maven Central, Prism built from its Go module; each once, into .engines.
# CASES=same_bytes leaves out killed workers and job servers.
CASES = test
test-flink test-spark test-prism: env
	@tests/preprocessing/records/engines.sh .engines \
		"$$($(PYTHON_BIN) -c 'from importlib.metadata import version; print(version("apache-beam"))')" $(@:test-%=%)
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" AHNET_ENGINES=.engines \
		$(PYTHON_BIN) -m pytest tests/preprocessing/records/test_job_servers.py -k "$(@:test-%=%) and $(CASES)"

# Argo is compiled, minutes on two cores; kfp alone takes seconds.
ENGINES = kfp argo

test-kfp: env
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" tests/pipeline/kubeflow/engines.sh .kfp $(ENGINES)
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" AHNET_KFP_ENGINES=.kfp $(PYTHON_BIN) -m pytest tests/pipeline/kubeflow/test_engines.py

test-image: env
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" AHNET_IMAGE=1 $(PYTHON_BIN) -m pytest tests/test_dockerfile.py -k from_nothing

lint: env
	@$(PYTHON_BIN) -m ruff format --check . && $(PYTHON_BIN) -m ruff check . && $(PYTHON_BIN) -m mypy

# Later Google client releases warn loudly on Python 3.10.
OLD_NEWEST = 2025-10-01
NEWEST = 2026-11-20
LOCK = .uv/bin/uv pip compile -q setup.py --generate-hashes --no-header --upgrade
OLD = $(LOCK) --python-version 3.10 --exclude-newer $(OLD_NEWEST)
CURRENT = $(LOCK) --python-version 3.11 --exclude-newer $(NEWEST) --universal --override .uv/overrides.txt
locked = $$(sed -n 's/^\([a-zA-Z0-9._-]*\)\(\[.*\]\)\{0,1\}==.*/--no-emit-package \1/p' $(1))

# TFDV 1.21 asks for the last pyfarmhash without wheels; newer ones have the same functions, and wheels.
lock: env
	@echo 'pyfarmhash>=0.5' >.uv/overrides.txt
	@$(OLD) --extra test -o requirements.lock
	@$(OLD) --extra gpu --no-annotate -c requirements.lock $(call locked,requirements.lock) -o requirements-gpu.lock
	@$(CURRENT) --extra test -o requirements-current.lock
	@$(CURRENT) --extra gpu --no-annotate -c requirements-current.lock \
		$(call locked,requirements-current.lock) -o requirements-current-gpu.lock
	@# Lists of what was left out.
	@sed -i '/^#/d' requirements-gpu.lock requirements-current-gpu.lock

clean:
	@rm -rf .venv .venv-current .venv-2.15 .uv .environment.lock demo
