"""The project's commands as a user starts them, and what they cost."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any


def call(module: str, *words: object) -> None:
    """Runs `python -m module words`; raises CalledProcessError if it fails."""
    subprocess.run([sys.executable, "-m", module, *map(str, words)], check=True)


def cpu_seconds() -> float:
    """Returns the CPU time of all finished descendant processes in seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file that a command wrote."""
    return json.loads(path.read_text(encoding="utf-8"))
