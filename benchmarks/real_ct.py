"""Leave-one-out scores of the real CT example: each scan segmented by a network trained on the others.

python -m benchmarks.real_ct [--input DIR ...] [--work DIR]

The commands of docs/real_ct.md, once for each scan that is left out, and a last time with all scans,
which is the network of the page: its time counts, and it has no scan left to be scored on. Every
network sees each of its scans equally often: without one of two scans it makes half of the steps.
Without --input the scans are those that the page names, in the folder AHNET_DATA. With --work, a killed run
resumes with the first unfinished network, whose training starts over, so that its time is complete.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.commands import call, cpu_seconds, read_json
from benchmarks.report import goal, print_table, versions, write_report
from preprocessing.cli import make_parser, run_command
from preprocessing.datasets.case import Case
from preprocessing.datasets.discovery import find_cases
from preprocessing.errors import InputError, SettingsError
from preprocessing.files import write_json

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "real_ct"
SCANS = ("totalsegmentator_example", "ircadb01_case17")
PREDICTION = ("--largest-component", "--overlap", "0.75")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    purpose = __doc__.splitlines()[0]
    examples = ["AHNET_DATA=~/data python -m benchmarks.real_ct"]
    parser = make_parser("benchmarks.real_ct", purpose, examples)
    parser.add_argument("--input", nargs="+", metavar="DIR", help="folders of labelled scans")
    parser.add_argument(
        "--work", metavar="DIR", help="keep records, networks, predictions and figures here"
    )
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    inputs = arguments.input or _stored_scans()
    cases = [case for case in find_cases(inputs, need_labels=True) if not case.problem]
    if len(cases) < 2:
        raise InputError(", ".join(inputs), "two or more labelled scans", len(cases))
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(arguments.work or temporary)
        figures = [_measure(cases, inputs, left_out, work) for left_out in (*cases, None)]
    columns = ("scored", "dice", "surface_dice", "hd95_mm", "minutes", "cpu_minutes")
    print_table(columns, [[figure.get(column, "") for column in columns] for figure in figures])
    goals = [
        goal(f"liver Dice of {figure['scored']}, not seen", ">=", 0.9, figure["dice"])
        for figure in figures[:-1]
    ]
    # CPU time of two cores; with other load the wall-clock time is longer.
    minutes = figures[-1]["cpu_minutes"] / 2
    goals.append(goal("minutes of two cores' work, all scans", "<=", 11.5, minutes))
    settings = {"prediction": " ".join(PREDICTION)}
    write_report("real_ct", figures, goals, versions("tensorflow"), settings)


def _stored_scans() -> list[str]:
    data = os.environ.get("AHNET_DATA")
    if not data:
        remedy = f"Set AHNET_DATA to the folder of {' and '.join(SCANS)}, or give --input."
        raise SettingsError("AHNET_DATA", "the folder of the scans", "none", remedy)
    return [str(Path(data) / name) for name in SCANS]


def _measure(
    cases: Sequence[Case], inputs: Sequence[str], left_out: Case | None, work: Path
) -> dict[str, Any]:
    """Trains without one scan and scores it; if none is left out, only the time is measured."""
    folder = work / ("all" if left_out is None else f"without-{left_out.case_id}")
    splits = {
        "train": [case.case_id for case in cases if case is not left_out],
        "eval": [] if left_out is None else [left_out.case_id],
    }
    settings = {
        "splits": splits,
        "prediction": list(PREDICTION),
        **{
            path.stem: read_json(path)
            for path in (EXAMPLE / "task.json", EXAMPLE / "training.json")
        },
    }
    earlier = read_json(folder / "figure.json") if (folder / "figure.json").is_file() else {}
    if earlier.get("settings") == settings:
        return earlier["figure"]
    if (folder / "splits.json").is_file():
        shutil.rmtree(folder)
    figure = _measured(folder, splits, cases, inputs, left_out)
    write_json(folder / "figure.json", {"settings": settings, "figure": figure})
    return figure


def _measured(
    folder: Path,
    splits: dict[str, list[str]],
    cases: Sequence[Case],
    inputs: Sequence[str],
    left_out: Case | None,
) -> dict[str, Any]:
    write_json(folder / "splits.json", splits)
    before, began = cpu_seconds(), time.perf_counter()
    call(
        *("preprocessing.convert", "--task", EXAMPLE / "task.json", "--input", *inputs),
        *("--splits", folder / "splits.json", "--output", folder / "records", "--overwrite"),
    )
    call(
        *("ahnet_tf.train", "--config", EXAMPLE / "training.json"),
        *("--input", folder / "records", "--output", folder / "run"),
        *(word for each in _fewer_steps(splits["train"], cases) for word in ("--set", each)),
    )
    figure = {
        "trained": splits["train"],
        "scored": "" if left_out is None else left_out.case_id,
        "minutes": round((time.perf_counter() - began) / 60, 1),
        "cpu_minutes": round((cpu_seconds() - before) / 60, 1),
    }
    if left_out is None:
        return figure
    call(
        *("ahnet_tf.predict", left_out.image_path, folder / "predictions"),
        *("--model", folder / "run" / "ahnet", *PREDICTION),
    )
    (prediction,) = (folder / "predictions").glob("*.nii.gz")
    call(
        *("ahnet_tf.evaluate", "--input", prediction, "--reference", left_out.label_path),
        *("--output", folder / "scores"),
    )
    (score,) = read_json(folder / "scores" / "scores.json")["cases"].values()
    liver = {name: score["liver"][name] for name in ("dice", "surface_dice", "hd95_mm")}
    return figure | liver


def _fewer_steps(trained: Sequence[str], cases: Sequence[Case]) -> list[str]:
    """Returns settings for the steps of both stages, proportional to the number of training scans."""
    settings = read_json(EXAMPLE / "training.json")
    steps = {stage: settings[stage]["training"]["steps"] for stage in ("2d", "3d")}
    return [f"{stage}.steps={n * len(trained) // len(cases)}" for stage, n in steps.items()]


if __name__ == "__main__":
    sys.exit(main())
