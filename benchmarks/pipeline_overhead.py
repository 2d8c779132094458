"""Time that the pipeline takes beyond the bare commands on the demonstration's data, by component.

python -m benchmarks.pipeline_overhead [--cases 32] [--steps 20]

The same records are trained on, exported, and their evaluation cases predicted and scored: once by the
pipeline, once by the commands that a user would type. Both train the same few steps: the time of
training is in both and only blurs the difference.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import goal, print_table, versions, write_report
from preprocessing.cli import make_parser, run_command

MOST_SECONDS = 60


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser(
        "benchmarks.pipeline_overhead",
        __doc__.splitlines()[0],
        ["python -m benchmarks.pipeline_overhead"],
    )
    parser.add_argument("--cases", type=int, default=32, help="synthetic cases (default: 32)")
    parser.add_argument("--steps", type=int, default=20, help="steps of each stage (default: 20)")
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    with tempfile.TemporaryDirectory() as folder:
        figures = _measure(Path(folder), arguments.cases, arguments.steps)
    print_table(("pipeline", "seconds"), list(figures["pipeline"].items()))
    print_table(("bare command", "seconds"), list(figures["bare"].items()))
    goals = [
        goal(
            "seconds beyond training, export, prediction and scoring by the commands",
            "<=",
            MOST_SECONDS,
            figures["beyond_all_commands"],
        ),
        goal(
            "seconds beyond training and export alone by the commands",
            "<=",
            MOST_SECONDS,
            figures["beyond_training_and_export"],
        ),
    ]
    settings = {"cases": arguments.cases, "steps": arguments.steps}
    packages = versions("tensorflow", "tfx", "apache-beam")
    write_report("pipeline_overhead", figures, goals, packages, settings)


def _measure(folder: Path, cases: int, steps: int) -> dict[str, Any]:
    data, records = folder / "data", folder / "records"
    _call("preprocessing.phantom", "--cases", cases, "--output", data)
    task = ("--task", "ct_liver_small")
    _call("preprocessing.convert", *task, "--input", data, "--output", records)
    same = ("--input", records, "--preset", "ct_liver_small", "--steps", steps)
    same += ("--set", f"evaluate_every={steps}")

    run = folder / "pipeline"
    passing = ("--threshold-liver", 0)
    total = _call("pipeline.local_runner", *same, "--output", run, *passing)
    first = _seconds_by_component(run)
    again = _call("pipeline.local_runner", *same, "--output", run, *passing)

    bare_run, model = folder / "bare", folder / "model"
    bare = {
        "train": _call("ahnet_tf.train", *same, "--output", bare_run),
        "export": _call("serving.export", "--model", bare_run / "ahnet", "--output", model),
    }
    evaluated, predicted = _evaluation_cases(records, data, folder / "evaluated"), folder / "labels"
    bare["predict"] = _call("ahnet_tf.predict", "--model", model, evaluated, predicted)
    bare["evaluate"] = _call("ahnet_tf.evaluate", "--input", predicted, "--reference", evaluated)
    return {
        "pipeline": first | {"start and end of the process": total - sum(first.values())},
        "pipeline_total": total,
        "pipeline_again": again,
        "bare": bare,
        "beyond_all_commands": total - sum(bare.values()),
        "beyond_training_and_export": total - bare["train"] - bare["export"],
    }


def _seconds_by_component(run: Path) -> dict[str, float]:
    return json.loads((run / "result.json").read_text(encoding="utf-8"))["seconds"]


def _evaluation_cases(records: Path, data: Path, folder: Path) -> Path:
    """Links the volumes of the evaluation split into a separate folder."""
    folder.mkdir()
    manifest = json.loads((records / "manifest.json").read_text(encoding="utf-8"))
    for case in manifest["cases"]:
        if case.get("split") == "eval":
            number = case["case_id"].rpartition("-")[2]
            for kind in ("volume", "segmentation"):
                (path,) = data.rglob(f"{kind}-{number}.nii*")
                (folder / path.name).symlink_to(path.resolve())
    return folder


def _call(module: str, *options: object) -> float:
    """Runs a command; returns the lifetime of its process in seconds."""
    words = [sys.executable, "-m", module, *map(str, options)]
    start = time.monotonic()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - start


if __name__ == "__main__":
    sys.exit(main())
