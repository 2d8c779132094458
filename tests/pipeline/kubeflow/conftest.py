"""The smallest pipeline compiled for every engine, and how its containers run.

`AHNET_TEST_PROCESSES=1` runs every container's command in a new interpreter instead of a fork of one
that has already imported the frameworks: minutes slower, same results.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from pipeline.kubeflow.containers import Start, start_process
from pipeline.kubeflow_runner import main
from tests.fork_server import ForkServer
from tests.pipeline.kubeflow.small_pipeline import ENGINES, HAS_ARGO, command

# What every container's command imports.
FRAMEWORKS = (
    *(["tfx.orchestration.kubeflow.container_entrypoint"] if HAS_ARGO else []),
    "pipeline.kubeflow.entrypoint_v2",
    "tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor",
    "pipeline.dag",
    "pipeline.components.trainer",
)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory, phantom_records, tiny_options) -> Path:
    """The folder of the specs for all engines that the installed TFX writes for."""
    folder = tmp_path_factory.mktemp("compiled")
    for engine in ENGINES:
        if engine == "kubeflow" and not HAS_ARGO:
            continue
        options = command(folder, engine, phantom_records, tiny_options)
        assert main([*options, "--engine", engine]) == 0
    return folder / "specs"


@pytest.fixture(scope="session")
def start() -> Start:
    """Runs a container's command (see the module's docstring)."""
    if os.environ.get("AHNET_TEST_PROCESSES"):
        yield start_process
        return
    server = ForkServer(*FRAMEWORKS)

    def fork(command, environment, log):
        python, option, module, *arguments = command
        assert (python, option) == ("python", "-m")
        code = (
            "import os, runpy, sys\n"
            f"os.environ.clear(); os.environ.update({dict(environment)!r})\n"
            f"sys.argv = {[module, *arguments]!r}\n"
            f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        )
        return server.wait(server.start(code, log))

    yield fork
    server.close()


@pytest.fixture
def volume(tmp_path, phantom_records) -> Path:
    """A folder that stands for the cluster's volume or bucket, with the records in it."""
    folder = tmp_path / "volume"
    shutil.copytree(phantom_records, folder / "records")
    return folder
