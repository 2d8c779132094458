"""The separate environment of MONAI and torch, and benchmark workers in either environment.

A worker is a script that reads one JSON request a line from stdin and answers one JSON line; all of
its other output goes to stderr. Waiting workers cost no time, so that peers can be timed in turn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from preprocessing.errors import SettingsError

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / ".env-peers"
# MONAI reads NIfTI by nibabel.
REQUIREMENTS = ("torch==2.13.0", "monai==1.6.1", "nibabel==5.3.2")

# By default glibc returns large blocks to the system after each use.
TUNED_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def peers_python() -> Path:
    """Returns the Python of the environment with torch and MONAI, made on the first call.

    Raises:
      SettingsError: there is no Python 3.11, or the packages can't be had.
    """
    python = ENVIRONMENT / "bin" / "python"
    probe = [python, "-c", "import torch, monai, nibabel"]
    if python.exists() and subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        return python
    interpreter = _python311()
    print(f"making {ENVIRONMENT.name} with {' '.join(REQUIREMENTS)}", file=sys.stderr)
    try:
        subprocess.run([interpreter, "-m", "venv", "--clear", ENVIRONMENT], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
    except subprocess.CalledProcessError as error:
        raise SettingsError(
            "benchmark", f"an environment with {' and '.join(REQUIREMENTS)}", error
        ) from None
    return python


def _python311() -> str:
    candidates = [
        *Path.home().glob(".pyenv/versions/3.11.*/bin/python"),
        Path("/usr/bin/python3.11"),
    ]
    for candidate in [*candidates, Path("python3.11")]:
        command = [str(candidate), "-c", "import sys, venv, ensurepip; print(sys.version_info[:2])"]
        try:
            found = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            continue
        if found.stdout.strip() == "(3, 11)":
            return str(candidate)
    raise SettingsError("benchmark", "a Python 3.11 for the peers' environment", "none")


class Worker:
    """A worker process: `ask` sends a request and returns its answer."""

    def __init__(
        self, python: str | Path, module: str, environment: Mapping[str, str] | None = None
    ):
        self.module = module
        self.process = subprocess.Popen(
            [python, "-m", module],
            cwd=ROOT,
            env=os.environ | {"PYTHONWARNINGS": "ignore"} | dict(environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> Any:
        """Returns the worker's answer to a request."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.module} exited during the request {request}")
        return json.loads(line)

    def close(self) -> None:
        """Stops the worker."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(handlers: Mapping[str, Any]) -> None:
    """Answers requests from stdin with `handlers[request["do"]](**rest)` until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    # Output of the frameworks must not mix with the answers.
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        answer = handlers[request.pop("do")](**request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def peak_memory_mib() -> float:
    """Returns the largest resident memory of this process so far, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")
