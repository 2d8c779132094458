"""A process that has imported modules and forks a copy of itself for each piece of code to run.

A run thus starts without the seconds that importing TensorFlow or TFX takes.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.signals import default_signals

ROOT = Path(__file__).resolve().parents[1]


class ForkServer:
    """Starts Python code in processes of its own and waits for them.

    Args:
      modules: imported before the first process starts; they may not start threads.
    """

    def __init__(self, *modules: str):
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__)), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    def start(self, code: str, log: Path, **environment: str) -> int:
        """Starts code, its output going to a file; returns the process id."""
        return self._ask(code=code, log=str(log), environment=environment)

    def wait(self, process: int) -> int:
        """Waits for a process; returns its exit code, negative after a signal."""
        return self._ask(wait=process)

    def close(self) -> None:
        """Ends the server."""
        self._server.communicate()

    def _ask(self, **request) -> int:
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())


def _serve(modules: list[str]) -> None:
    from preprocessing.quiet_start import quiet_frameworks

    quiet_frameworks()
    for module in modules:
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
        else:
            answer = os.fork()
            if not answer:
                _run(request)
        print(answer, flush=True)


def _run(request: dict) -> None:
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream, target in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(target, stream)
    os.environ.update(request["environment"])
    default_signals()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 0
    try:
        exec(request["code"], {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1:])
