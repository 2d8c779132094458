"""The commands of a demonstration, kept instead of run."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from pipeline.demo import run_stages


class RecordedStages:
    """Stands for `Stages`: keeps the commands instead of running them."""

    def __init__(self) -> None:
        self.commands: dict[str, list[str]] = {}

    def run(self, name, command):
        self.commands[name] = [str(word) for word in command]

    def call(self, name, work, words):
        self.commands[name] = list(words)

    @contextlib.contextmanager
    def server(self, models, model_name):
        yield "localhost:1"


def commands_of(output: Path = Path("out"), **given) -> dict[str, list[str]]:
    """Returns the commands by stage of a demonstration with some options."""
    names = {"task": "ct_liver_small", "preset": None, "threshold": None, "input": None}
    arguments = argparse.Namespace(**names | {"set": [], "seed": 3} | given)
    stages = RecordedStages()
    run_stages(arguments, output, stages)
    return stages.commands
