"""Trainings in processes that start at once (see `ForkServer`), and signals sent to them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fork_server import ForkServer


@dataclass(frozen=True)
class Strike:
    """A signal sent to a training at a point of its own progress, however busy the machine is.

    Attributes:
      number: the signal.
      rows: number of history rows after which it is sent; 0: as the history is opened, before the first
        step; -1: from the start of the process on.
      seconds: delay.
    """

    number: int
    rows: int
    seconds: float = 0.0

    def prepare(self, replace: Callable[[type, str, Callable], None] = setattr) -> None:
        """Makes this process send itself the signal; `replace` patches `History`."""
        if self.rows < 0:
            self._send()
            return
        from ahnet_tf.training.logs import History

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


class TrainingForks(ForkServer):
    """A fork server that has imported the training."""

    def __init__(self):
        super().__init__("ahnet_tf.train", "ahnet_tf.training.trainer")

    def train(
        self, options: list[str], log: Path, strike: Strike | None = None, **environment: str
    ) -> int:
        """Starts `python -m ahnet_tf.train` with options and perhaps a signal; returns its id."""
        code = f"import sys; from ahnet_tf.train import main; sys.exit(main({options!r}))"
        if strike:
            values = f"{int(strike.number)}, {strike.rows}, {strike.seconds}"
            code = f"from tests.ahnet_tf.forks import Strike; Strike({values}).prepare(); {code}"
        return self.start(code, log, **environment)
