"""Runs containers' commands in forked processes of an interpreter that has the frameworks imported.

Each line of its input is an order as JSON, each line of its output the exit code. A command gets a
process, arguments, variables and a log of its own, as from `python -m`; only the seconds that the
import of the frameworks takes, the same for every command, are saved.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import traceback

FRAMEWORKS = (
    "tfx.orchestration.kubeflow.container_entrypoint",
    "pipeline.kubeflow.entrypoint_v2",
    "tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor",
    "tfx.orchestration.kubeflow.v2.file_based_example_gen.driver",
    "pipeline.dag",
    "pipeline.components.trainer",
)


def run(command: list[str], environment: dict[str, str], log: str) -> int:
    """Becomes `python -m MODULE ARGUMENTS`; returns the exit code."""
    python, option, module, *arguments = command
    assert (python, option) == ("python", "-m")
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    for framework in FRAMEWORKS:
        importlib.import_module(framework)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = run(**json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
