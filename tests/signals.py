"""Signals of a process that a test starts: a job in a shell's background begins with SIGINT ignored."""

from __future__ import annotations

import signal


def default_signals() -> None:
    """Takes all signals as a process of a terminal does; for `preexec_fn`, or after a fork."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
