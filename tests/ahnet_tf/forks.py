"""A process that has imported the training, and forks a copy of itself for each run that a test needs.

So a run begins at once, with TensorFlow imported but not at work yet: not after ten seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Strike:
    """A signal that a training gets at a point of its own, however busy the machine is.

    Attributes:
      number: the signal.
      rows: it comes once so many rows are written; with 0 as the history is begun, before the first
        step; with -1 from the start of the process on.
      seconds: that it comes later.
    """

    number: int
    rows: int
    seconds: float = 0.0

    def prepare(self, replace: Callable[[type, str, Callable], None] = setattr) -> None:
        """Sends the signal when this process has come that far; `replace` puts in what counts."""
        if self.rows < 0:
            self._send()
            return
        from ahnet_tf.training.history import History

        method = "add" if self.rows else "__init__"
        original, calls = getattr(History, method), []

        def counted(*arguments):
            original(*arguments)
            calls.append(arguments)
            if len(calls) == max(self.rows, 1):
                self._send()

        replace(History, method, counted)

    def _send(self) -> None:
        if self.seconds:
            threading.Timer(self.seconds, os.kill, (os.getpid(), self.number)).start()
        else:
            os.kill(os.getpid(), self.number)


class Forks:
    """Starts Python code in processes of its own and waits for them."""

    def __init__(self):
        command = [sys.executable, "-W", "ignore", str(Path(__file__))]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, code: str, log: Path, **environment: str) -> int:
        """Starts code, its output going to a file; returns the process id."""
        return self._ask(code=code, log=str(log), environment=environment)

    def train(
        self, options: list[str], log: Path, strike: Strike | None = None, **environment: str
    ) -> int:
        """Starts `python -m ahnet_tf.train` with options, and a signal on its way if there is a strike."""
        code = f"import sys; from ahnet_tf.train import main; sys.exit(main({options!r}))"
        if strike:
            values = f"{int(strike.number)}, {strike.rows}, {strike.seconds}"
            code = f"from tests.ahnet_tf.forks import Strike; Strike({values}).prepare(); {code}"
        return self.start(code, log, **environment)

    def wait(self, process: int) -> int:
        """Waits for a process; returns its exit code, negative after a signal."""
        return self._ask(wait=process)

    def close(self) -> None:
        """Ends the server."""
        self._server.communicate()

    def _ask(self, **request) -> int:
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return int(self._server.stdout.readline())


def _serve() -> None:
    from preprocessing.cli import quiet_frameworks

    quiet_frameworks()
    import ahnet_tf.train
    import ahnet_tf.training.trainer  # noqa: F401

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
    code = 0
    try:
        exec(request["code"], {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve()
