"""Measures scoring: a case of LiTS' largest size, typical and worst, and a DBT test set.

python -m benchmarks.scoring

Each figure covers the whole command `python -m ahnet_tf.evaluate`, from reading the files to writing
the scores. The label maps are a synthetic liver with tumours, 512 x 512 x 500 voxels. The `likely`
prediction is a shifted copy of the reference; the `scattered` one also has 2,000 false tumours of
4 x 4 x 4 voxels all over the volume, so that nothing can be cropped.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import goal, print_table, versions, write_report
from preprocessing.cli import make_parser, run_command
from preprocessing.datasets.bcs_dbt import BOX_COLUMNS, LABEL_COLUMNS
from preprocessing.datasets.detection_table import DETECTION_COLUMNS
from preprocessing.phantom.ct import PhantomSettings, make_case
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.nifti import write_image

SHAPE_XYZ = (512, 512, 500)
SPACING_MM = (0.7, 0.7, 0.8)
FALSE_TUMOURS = 2000
# The size of BCS-DBT's test set.
VOLUMES, BOXES, DETECTIONS_A_VOLUME = 1721, 136, 20


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    purpose = __doc__.splitlines()[0]
    parser = make_parser("benchmarks.scoring", purpose, ["python -m benchmarks.scoring"])
    parser.add_argument("--seed", type=int, default=0, help="seed of the phantom (default: 0)")
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_label_maps(folder, arguments.seed)
        _write_tables(folder, arguments.seed)
        figures = {
            kind: _measure(folder / f"{kind}.nii.gz", folder / "reference.nii.gz", folder / kind)
            for kind in ("likely", "scattered")
        }
        figures["froc"] = _measure(folder / "predictions.csv", folder / "dbt", folder / "froc")
    columns = ("case", "seconds", "peak_memory_mib", "measure", "value")
    print_table(columns, [[kind, *figure.values()] for kind, figure in figures.items()])
    goals = [
        goal(f"seconds, {kind}", "<=", 60, figure["seconds"]) for kind, figure in figures.items()
    ]
    voxels = int(np.prod(SHAPE_XYZ))
    goals += [
        goal(f"peak memory in bytes a voxel, {kind}", "<=", 24, memory * 2**20 / voxels)
        for kind, memory in ((k, figures[k]["peak_memory_mib"]) for k in ("likely", "scattered"))
    ]
    settings = {"shape_xyz": SHAPE_XYZ, "spacing_mm": SPACING_MM, "seed": arguments.seed}
    settings |= {"volumes": VOLUMES, "boxes": BOXES, "detections_a_volume": DETECTIONS_A_VOLUME}
    write_report(
        "scoring", figures, goals, versions("numpy", "scipy", "surface-distance"), settings
    )


def _write_label_maps(folder: Path, seed: int) -> None:
    half = PhantomSettings((256, 256, 250), tuple(2 * mm for mm in SPACING_MM), most_tumours=3)
    _, label = make_case(seed, settings=half)
    voxels = label.voxels
    for axis in range(3):
        voxels = voxels.repeat(2, axis)
    # The number of slices varies from case to case.
    reference = np.zeros(SHAPE_XYZ, np.uint8)
    slices = min(voxels.shape[2], SHAPE_XYZ[2])
    reference[:, :, :slices] = voxels[:, :, :slices]
    affine = np.diag([*SPACING_MM, 1.0])
    write_image(folder / "reference.nii.gz", Volume(reference, affine))
    moved = np.roll(reference, (3, -2, 1), axis=(0, 1, 2))
    write_image(folder / "likely.nii.gz", Volume(moved, affine))
    random = np.random.default_rng(seed)
    corners = random.integers(0, np.array(SHAPE_XYZ) - 4, (FALSE_TUMOURS, 3))
    for x, y, z in corners:
        moved[x : x + 4, y : y + 4, z : z + 4] = 2
    write_image(folder / "scattered.nii.gz", Volume(moved, affine))


def _write_tables(folder: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    keys = [
        (f"P{number // 4:05d}", f"1.{number // 4}", f"v{number % 4}") for number in range(VOLUMES)
    ]
    boxes, labels, detections = [], [], []
    for number, key in enumerate(keys):
        centre = random.integers((200, 200, 10), (1500, 2000, 50))
        if number < BOXES:
            boxes.append((*key, 0, centre[2], *centre[:2], 120, 90, "cancer", 0, 60))
        labels.append((*key, int(number >= BOXES), 0, 0, int(number < BOXES)))
        for _ in range(DETECTIONS_A_VOLUME):
            x, y, z = centre + random.normal(0, (250, 250, 8))
            detections.append((*key, random.random(), z, x, y, 5, 100, 100))
    (folder / "dbt").mkdir()
    for path, columns, rows in (
        (folder / "dbt" / "boxes.csv", BOX_COLUMNS, boxes),
        (folder / "dbt" / "labels.csv", LABEL_COLUMNS, labels),
        (folder / "predictions.csv", DETECTION_COLUMNS, detections),
    ):
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *rows])


def _measure(prediction: Path, reference: Path, output: Path) -> dict[str, Any]:
    """Returns seconds, peak memory and one measure of the command."""
    words = ["--input", prediction, "--reference", reference, "--output", output]
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "ahnet_tf.evaluate", *map(str, words)], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    summary = json.loads((output / "scores.json").read_text(encoding="utf-8"))["summary"]
    name = "liver_surface_dice" if "liver_surface_dice" in summary else next(iter(summary))
    return {
        "seconds": round(seconds, 2),
        "peak_memory_mib": round(usage.ru_maxrss / 1024),
        "measure": name,
        "value": summary[name]["value"],
    }


if __name__ == "__main__":
    sys.exit(main())
