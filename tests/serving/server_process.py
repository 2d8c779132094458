"""`python -m serving.server` as a process of its own: to be killed, flooded, and weighed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.signals import default_signals

ROOT = Path(__file__).resolve().parents[2]


class ServerProcess:
    """A running server command.

    Args:
      models: folder of versions.
      options: more words of the command.
    """

    def __init__(self, models: Path, *options: str, port: int = 0):
        words = ["--model-base-path", str(models), "--port", str(port)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serving.server", *words, *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            preexec_fn=default_signals,
        )
        self.address = self._last_word("is served on 127.0.0.1:")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def watch_peak(self) -> float:
        """Begins to watch the memory that the process holds; returns it in MiB."""
        # From here on VmHWM forgets what was before.
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self._memory_mib("VmRSS")

    def peak_mib(self) -> float:
        """The most memory that the process has held since `watch_peak`."""
        return self._memory_mib("VmHWM")

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Ends the process; returns its exit code and what it has printed since its start."""
        self.process.send_signal(number)
        try:
            rest, errors = self.process.communicate(timeout=300)
        finally:
            self.process.kill()
        return self.process.returncode, rest, errors

    def _memory_mib(self, entry: str) -> float:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{entry}:\s+(\d+) kB", text).group(1)) / 1024

    def _last_word(self, words: str) -> str:
        line = self.process.stdout.readline()
        if words not in line:
            self.process.kill()
            raise AssertionError(line + self.process.stderr.read())
        return line.split()[-1]
