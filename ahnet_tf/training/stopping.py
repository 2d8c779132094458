"""Requests to stop: SIGTERM and Ctrl-C let a training finish its step and save before it ends."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Yields a function that returns the signal that asks to stop, 0 before there is one.

    A second signal acts as it would without this. Signals reach the main thread only; in another one
    nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    received = []
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    for number in SIGNALS:
        signal.signal(number, receive)
    try:
        yield lambda: received[0] if received else 0
    finally:
        restore()


@contextlib.contextmanager
def keeping_handlers() -> Iterator[None]:
    """Puts back the handlers of signals that code inside takes for itself without telling Python.

    TensorFlow does so with SIGTERM as it connects the workers of a training, and then ignores it.
    """
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, signal.getsignal(number))
