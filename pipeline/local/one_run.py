"""One run at a time in a folder: a second one is refused while the first goes on."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from preprocessing.errors import PipelineError


@contextlib.contextmanager
def only_run_in(output: Path) -> Iterator[None]:
    """Refuses a second run in the same folder while the first one goes on.

    Raises:
      PipelineError: another run holds the folder.
    """
    with (output / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PipelineError(
                output,
                "no other run in this folder",
                "one that goes on",
                "Choose another --output.",
            ) from None
        yield
