"""Runs the stages of a long run as commands in subprocesses: printed, measured, resumable."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from preprocessing.errors import PipelineError
from preprocessing.files import write_json

# Time limit for a server to become ready.
START_S = 300.0


class Stages:
    """Runs commands in order and records on disk which have finished and what they cost.

    A stage that runs may change what later ones read: they run again, whatever their arguments.
    `folder` receives one small JSON file per finished stage; `costs` holds seconds and peak memory
    (MiB) of every stage, of this and earlier runs.
    """

    def __init__(self, folder: Path, debug: bool = False):
        self.folder = folder
        self.costs: dict[str, dict[str, float]] = {}
        self._debug = ["--debug"] if debug else []

    def run(self, name: str, command: Sequence[object]) -> None:
        """Runs `python -m COMMAND` unless it finished before with the same arguments.

        Raises PipelineError if the command failed; it has printed its own message.
        """
        words = [str(word) for word in command]
        run = [*words, *self._debug]

        def work() -> float:
            print(f"\n$ python -m {shlex.join(run)}", flush=True)
            code, peak_memory_mib = _wait(subprocess.Popen([sys.executable, "-m", *run]))
            if code:
                remedy = "Its message is above; fix the cause and run the same command again."
                raise PipelineError(f"stage {name}", "exit code 0", code, remedy)
            return peak_memory_mib

        self.call(name, work, words)

    def call(self, name: str, work: Callable[[], float | None], words: Sequence[str]) -> None:
        """Calls `work`, which may return its peak memory in MiB, unless it finished before."""
        record = self.folder / f"{name}.json"
        if record.exists():
            done = json.loads(record.read_text(encoding="utf-8"))
            if done.pop("command") == list(words):
                print(f"\n[{name}] finished before, in {done['seconds']:.0f} s", flush=True)
                self.costs[name] = done
                return
        for later in self.folder.glob("*.json"):
            if later.stem not in self.costs:
                later.unlink()
        start = time.monotonic()
        self._cost(name, start, work() or 0.0)
        write_json(record, self.costs[name] | {"command": list(words)})

    @contextlib.contextmanager
    def server(self, models: Path, model_name: str) -> Iterator[str]:
        """Serves the folder `models` in a subprocess and yields HOST:PORT (see `served`)."""
        start = time.monotonic()
        with served(models, model_name, self._debug, announce=True) as (address, memory_mib):
            yield address
        self._cost("server", start, memory_mib())

    def _cost(self, name: str, start: float, peak_memory_mib: float) -> None:
        seconds = round(time.monotonic() - start, 1)
        self.costs[name] = {"seconds": seconds, "peak_memory_mib": round(peak_memory_mib)}
        print(f"[{name}] {seconds:.0f} s, {peak_memory_mib:.0f} MiB", flush=True)


@contextlib.contextmanager
def served(
    models: Path, model_name: str, options: Sequence[str] = (), *, announce: bool = False
) -> Iterator[tuple[str, Callable[[], float]]]:
    """Serves the folder `models` by `python -m serving.server` until the context ends.

    Yields HOST:PORT, and a function that returns the server's peak memory in MiB afterwards. With
    `announce` the command and its output are printed. Raises PipelineError if the server exits
    before it is ready, or is not ready within `START_S`.
    """
    words = ["serving.server", "--model-base-path", str(models), "--model-name", model_name]
    words += ["--port", "0", *options]
    if announce:
        print(f"\n$ python -m {shlex.join(words)} &", flush=True)
    with tempfile.TemporaryFile("w+") as messages:
        errors = None if announce else messages
        command = [sys.executable, "-m", *words]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        output = cast(IO[str], process.stdout)
        peaks = [0.0]
        deadline = threading.Timer(START_S, process.kill)
        deadline.start()
        try:
            ready = None
            for line in output:
                if announce:
                    print(line, end="", flush=True)
                ready = re.search(r"[\w.\[\]:-]+:\d+", line)
                if ready:
                    break
            deadline.cancel()
            if ready is None:
                messages.seek(0)
                last = (messages.read().strip() or "no message").splitlines()[-1]
                where = f"model server of {models}"
                raise PipelineError(where, "a line saying that it is ready", last)
            yield ready.group(), lambda: peaks[0]
        finally:
            deadline.cancel()
            # send_signal would reap a server that has exited, and `_wait` needs its exit status.
            os.kill(process.pid, signal.SIGTERM)
            peaks[0] = _wait(process)[1]
            output.close()


def _wait(process: subprocess.Popen) -> tuple[int, float]:
    """Waits for a process and returns its exit code and peak memory in MiB."""
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        os.wait4(process.pid, 0)
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss / 1024
