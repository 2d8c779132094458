"""Storage, records and hours for ten thousand CTs, extrapolated from other benchmarks.

python -m benchmarks.scale [--cases 10000] [--shape 512 512 300] [--steps 40000]

What a voxel, a patch and a step cost comes from `benchmarks.preprocessing` and `benchmarks.network`, on
one machine of two cores, multiplied by the size of the data. `docs/scale.md` says what changes it.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.report import RESULTS, print_table, versions, write_report
from preprocessing.cli import make_parser, run_command
from preprocessing.records.splits import EVAL_FRACTION
from preprocessing.tasks import load_task

TASK = "ct_liver"
BATCH_SIZE = 2
HOUR_S = 3600
# Bytes of a voxel in a record: int16 image and uint8 label. A report's volume adds a uint8 prediction.
VOXEL_BYTES = 3
REPORT_VOXEL_BYTES = 4
# Network, precision and group of rivals of the times that are taken.
PLAIN = ("ours", "float32", "default")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser(
        "benchmarks.scale", __doc__.splitlines()[0], ["python -m benchmarks.scale --cases 10000"]
    )
    parser.add_argument("--cases", type=int, default=10000, help="CTs (default: 10000)")
    parser.add_argument(
        "--shape", type=int, nargs=3, default=(512, 512, 300), help="voxels of a case (x, y, z)"
    )
    parser.add_argument(
        "--steps", type=int, default=40000, help="steps of each stage (default: 40000)"
    )
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    figures = multiplied_out(
        _costs(),
        arguments.cases,
        math.prod(arguments.shape),
        _tiles(arguments.shape),
        arguments.steps,
    )
    print_table((f"{arguments.cases} cases take", ""), list(figures.items()))
    settings = {"cases": arguments.cases, "shape": list(arguments.shape), "steps": arguments.steps}
    write_report("scale", figures, [], versions("tensorflow", "tfx", "apache-beam"), settings)


def multiplied_out(
    cost: dict[str, float], cases: int, voxels: int, tiles: int, steps: int
) -> dict[str, float]:
    """Returns storage in GB, numbers of records, and hours on the measured machine.

    Args:
      cost: see `_costs`.
      cases: CTs.
      voxels: of each.
      tiles: evaluation patches of each.
      steps: optimizer steps of a stage.
    """
    # The import takes seconds, which the command's --help does not need.
    from pipeline.components.case_volumes import SAMPLE

    task = load_task(TASK)
    evaluated = round(EVAL_FRACTION * cases)
    trained = cases - evaluated
    training_records, evaluation_records = trained * task.patches_per_case, evaluated * tiles
    records = training_records + evaluation_records
    shown = min(SAMPLE, evaluated)
    record_gb = VOXEL_BYTES * math.prod(task.patch_shape_zyx) / 1e9
    megavoxels = voxels / 1e6
    return {
        "volumes_and_labels_uncompressed_GB": cases * VOXEL_BYTES * voxels / 1e9,
        "training_records": training_records,
        "training_records_GB": training_records * record_gb,
        "evaluation_records": evaluation_records,
        "evaluation_records_GB": evaluation_records * record_gb,
        "copy_by_import_GB": records * record_gb,
        "conversion_core_hours": (
            trained * megavoxels / cost["training_megavoxels_a_second"]
            + evaluated * megavoxels / cost["evaluation_megavoxels_a_second"]
        )
        / HOUR_S,
        "reading_for_statistics_core_hours": records * cost["read_seconds_a_patch"] / HOUR_S,
        "training_hours_3d_stage": steps * BATCH_SIZE * cost["training_seconds_a_patch"] / HOUR_S,
        "evaluation_hours": evaluation_records * cost["forward_seconds_a_patch"] / HOUR_S,
        "report_cases": shown,
        "report_volumes_GB": shown * REPORT_VOXEL_BYTES * voxels / 1e9,
        "report_reading_core_hours": evaluation_records * cost["read_seconds_a_patch"] / HOUR_S,
        "report_prediction_hours": (shown * tiles * cost["forward_seconds_a_patch"] / HOUR_S),
    }


def _tiles(shape_xyz: Sequence[int]) -> int:
    patch_xyz = reversed(load_task(TASK).patch_shape_zyx)
    return math.prod(
        math.ceil(size / patch) for size, patch in zip(shape_xyz, patch_xyz, strict=True)
    )


def _costs() -> dict[str, float]:
    """Returns measured costs: conversion and reading of a patch on one core, the full network."""
    conversion, network = _figures("preprocessing"), _figures("network")
    work = {entry["work"]: entry["megavoxels_a_second"] for entry in conversion["case"]}
    (plain,) = [each for each in conversion["compression"] if each["compression"] == "none"]
    seconds = {
        entry["work"]: entry["seconds_median"]
        for entry in network
        if (entry["network"], entry["precision"], entry["in_turn_with"]) == PLAIN
    }
    return {
        "training_megavoxels_a_second": work["training patches"],
        "evaluation_megavoxels_a_second": work["evaluation tiles"],
        "read_seconds_a_patch": plain["read_milliseconds_a_patch"] / 1000,
        "training_seconds_a_patch": seconds["training-128"],
        "forward_seconds_a_patch": seconds["forward-128"],
    }


def _figures(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["figures"]


if __name__ == "__main__":
    sys.exit(main())
