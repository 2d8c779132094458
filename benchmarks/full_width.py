"""The networks of full width learn: MC-GCN and AH-Net with ResNet-50's channels on synthetic CT.

python -m benchmarks.full_width [--steps-2d 300] [--steps-3d 900] [--work DIR]

The published recipe (preset ct_liver: 27 million weights, focal loss, learning rates 5e-4 and 1e-3) on
patches of 16 x 128 x 128 of 32 synthetic cases, in at most an hour of CPU time; six unseen cases are
scored. With --work, a killed training resumes.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.commands import call, cpu_seconds, read_json
from benchmarks.report import goal, print_table, versions, write_report
from pipeline.demonstrations import UNSEEN_CASE
from preprocessing.cli import make_parser, run_command

TASK, PRESET, CASES, UNSEEN = "ct_liver_small", "ct_liver", 32, 6
FOLDERS = {"2d": "mcgcn", "3d": "ahnet"}
# A shorter warm-up than for 40,000 steps; whole planes are neither mirrored nor warped.
SETTINGS = ("batch_size=2", "warmup_steps=50", "flip_probability=0", "warp_probability=0")
ROWS = 12  # of each network's history in the report


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    purpose = __doc__.splitlines()[0]
    parser = make_parser("benchmarks.full_width", purpose, ["python -m benchmarks.full_width"])
    parser.add_argument("--steps-2d", type=int, default=300, help="of MC-GCN (default: 300)")
    parser.add_argument("--steps-3d", type=int, default=900, help="of AH-Net (default: 900)")
    parser.add_argument("--work", metavar="DIR", help="keep records, networks and scores here")
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    steps = {"2d": arguments.steps_2d, "3d": arguments.steps_3d}
    with tempfile.TemporaryDirectory() as temporary:
        figures = _measure(Path(arguments.work or temporary), steps)
    for stage, rows in figures["history"].items():
        print(f"\n{stage}")
        print_table(rows[0], [row.values() for row in rows])
    print(
        f"\nunseen cases: liver Dice {figures['dice_liver']:.3f}, tumour {figures['dice_tumour']:.3f}"
    )
    losses = {stage: [row["loss"] for row in rows] for stage, rows in figures["history"].items()}
    goals = [
        goal(f"{stage}: last loss, a share of the first", "<=", 0.2, values[-1] / values[0])
        for stage, values in losses.items()
    ]
    goals.append(goal("minutes of CPU time", "<=", 60, figures["cpu_minutes"]))
    settings = {"preset": PRESET, "task": TASK, "settings": SETTINGS, "steps": steps}
    write_report("full_width", figures, goals, versions("tensorflow", "keras"), settings)


def _measure(work: Path, steps: dict[str, int]) -> dict[str, Any]:
    """Makes data, trains both networks and scores AH-Net on unseen cases."""
    before = cpu_seconds()
    data, unseen, records, run = (work / name for name in ("data", "unseen", "records", "run"))
    if not (records / "task.json").is_file():
        call("preprocessing.phantom", "--output", data, "--cases", CASES)
        first = ("--first", UNSEEN_CASE)
        call("preprocessing.phantom", "--output", unseen, "--cases", UNSEEN, *first)
        call("preprocessing.convert", "--task", TASK, "--input", data, "--output", records)
    lengths = [
        f"{stage}.{name}={n}" for stage, n in steps.items() for name in ("steps", "evaluate_every")
    ]
    words = [word for each in (*SETTINGS, *lengths) for word in ("--set", each)]
    call("ahnet_tf.train", "--input", records, "--output", run, "--preset", PRESET, *words)
    call("ahnet_tf.predict", "--model", run / "ahnet", unseen, work / "predicted")
    inputs = ("--input", work / "predicted", "--reference", unseen)
    call("ahnet_tf.evaluate", *inputs, "--output", work / "scores")
    summary = read_json(work / "scores" / "scores.json")["summary"]
    results = {stage: read_json(run / name / "result.json") for stage, name in FOLDERS.items()}
    return {
        "cpu_minutes": round((cpu_seconds() - before) / 60, 1),
        "parameters": {stage: result["parameters"] for stage, result in results.items()},
        "dice_liver": summary["liver_dice_per_case"]["value"],
        "dice_tumour": summary["lesion_dice_per_case"]["value"],
        "history": {stage: _history(run / name) for stage, name in FOLDERS.items()},
    }


def _history(folder: Path) -> list[dict[str, float]]:
    """Returns `ROWS` means of a network's loss, each over the steps since the row before."""
    from ahnet_tf.training.logs import read_history

    rows = read_history(folder / "history.csv")
    bounds = [round(i * len(rows) / ROWS) for i in range(ROWS + 1)]
    parts = [rows[a:b] for a, b in itertools.pairwise(bounds) if a < b]
    return [
        {"step": part[-1]["step"], "loss": sum(row["loss"] for row in part) / len(part)}
        for part in parts
    ]


if __name__ == "__main__":
    sys.exit(main())
