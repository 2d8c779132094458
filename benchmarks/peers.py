"""The separate environment of MONAI and its runtimes, and benchmark workers in either environment.

A worker is a script that reads one JSON request a line from stdin and answers one JSON line; all of
its other output goes to stderr. Waiting workers cost no time, so that peers can be timed in turn.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from preprocessing.errors import SettingsError

ROOT = Path(__file__).parent.parent
ENVIRONMENT = ROOT / ".env-peers"
# MONAI reads NIfTI by nibabel; torch writes ONNX by onnxscript.
PINS = {
    "torch": "2.13.0",
    "monai": "1.6.1",
    "nibabel": "5.3.2",
    "onnx": "1.23.2",
    "onnxscript": "0.7.2",
    "onnxruntime": "1.32.0",
    "openvino": "2026.4.1",
}
_FIND_VERSIONS = (
    "import importlib.metadata as m, sys; print(*(f'{n}=={m.version(n)}' for n in sys.argv[1:]))"
)

# By default glibc returns large blocks to the system after each use.
TUNED_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def peers_python() -> Path:
    """Returns the Python of the environment with the packages of `PINS`, made on the first call.

    Raises:
      SettingsError: there is no Python 3.11, or the packages can't be had.
    """
    python = ENVIRONMENT / "bin" / "python"
    requirements = [f"{name}=={version}" for name, version in PINS.items()]
    if has_peers():
        return python
    interpreter = _python311()
    print(f"making {ENVIRONMENT.name} with {' '.join(requirements)}", file=sys.stderr)
    try:
        for command in (
            [interpreter, "-m", "venv", "--clear", ENVIRONMENT],
            [python, "-m", "pip", "install", "-q", *requirements],
        ):
            subprocess.run(command, check=True, env=_own_paths())
    except subprocess.CalledProcessError as error:
        raise SettingsError(
            "benchmark", f"an environment with {' and '.join(requirements)}", error
        ) from None
    return python


def has_peers() -> bool:
    """Returns whether the environment has the packages of `PINS`; imports none of them."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        return False
    probe = [python, "-c", _FIND_VERSIONS, *PINS]
    found = subprocess.run(probe, capture_output=True, text=True, check=False, env=_own_paths())
    # Versions of torch may end in the build: 2.13.0+cpu.
    versions = [word.split("+")[0] for word in found.stdout.split()]
    return versions == [f"{name}=={version}" for name, version in PINS.items()]


def peer_versions(*names: str) -> dict[str, str]:
    """Returns the versions of these packages in the peers' environment."""
    return {name: PINS[name] for name in names}


def _own_paths() -> dict[str, str]:
    """Returns the variables for a Python of another version: none of this one's paths."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


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


class WorkerError(RuntimeError):
    """A worker ended during a request; what it wrote to stderr says why."""


class Worker:
    """A worker process: `ask` sends a request and returns its answer, or raises WorkerError."""

    def __init__(
        self, python: str | Path, module: str, environment: Mapping[str, str] | None = None
    ):
        self.module = module
        variables = dict(os.environ) if str(python) == sys.executable else _own_paths()
        self.process = subprocess.Popen(
            [python, "-m", module],
            cwd=ROOT,
            env=variables | {"PYTHONWARNINGS": "ignore"} | dict(environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> Any:
        """Returns the worker's answer to a request."""
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.module} exited during the request {request}")
        return json.loads(line)

    def close(self) -> None:
        """Stops the worker."""
        with contextlib.suppress(BrokenPipeError):
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


def timed(step: Callable[[], Any], memory_mib: Callable[[], float] | None = None) -> list[float]:
    """Returns the seconds of a call that ends with its work, and then the peak memory in MiB."""
    start = time.perf_counter()
    step()
    return [time.perf_counter() - start, (memory_mib or peak_memory_mib)()]


def peak_memory_mib(process: int | str = "self") -> float:
    """Returns the largest resident memory of a process so far, in MiB; by default of this one."""
    return _status_mib(process, "VmHWM")


def memory_mib(process: int | str = "self") -> float:
    """Returns the resident memory of a process now, in MiB; by default of this one."""
    return _status_mib(process, "VmRSS")


def shared_memory_mib() -> float:
    """Returns the resident memory that this process shares with others now, in MiB."""
    return _status_mib("self", "RssShmem")


def _status_mib(process: int | str, key: str) -> float:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    return float("nan")
