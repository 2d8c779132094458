"""Calls in progress: counted until their answers have left, so that a server can stop without losing one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import grpc

from serving.protocol import RefusedError

# Time for a client to read the end of an answer out of the connection's buffers.
_READING_S = 0.5


class Calls:
    """Counts calls.

    gRPC's own stop closes the connections as soon as the last answer is written; on a busy machine
    that has cut off answers of some megabytes (connection reset) that the client was still reading.
    """

    def __init__(self):
        self._changed = threading.Condition()
        self._in_progress = 0
        self._last_end = -_READING_S
        self._closed = False

    @property
    def in_progress(self) -> int:
        """Number of calls that are not yet answered completely."""
        with self._changed:
            return self._in_progress

    def begin(self) -> Callable[[], None]:
        """Counts a call, and returns what must be called when its answer is written.

        Raises:
          RefusedError: (UNAVAILABLE) the server is stopping; another one may take over.
        """
        with self._changed:
            if self._closed:
                raise RefusedError(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
            self._in_progress += 1
        return self._end

    def close(self, grace_s: float) -> None:
        """Refuses new calls and waits until those in progress have their answers, or `grace_s`."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._in_progress == 0, timeout=grace_s)
            reading_s = self._last_end + _READING_S - time.monotonic()
        time.sleep(max(0.0, reading_s))

    def _end(self) -> None:
        with self._changed:
            self._in_progress -= 1
            self._last_end = time.monotonic()
            self._changed.notify_all()
