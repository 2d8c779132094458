"""Detection of masses: a network trained on synthetic breasts alone, on unseen ones and on VICTRE's pair.

python -m benchmarks.detection [--work DIR] [--cases 360] [--unseen 9]

Trains the preset dbt_lesion_small on synthetic breasts of 0.8 mm and measures the FROC over unseen ones,
as many of each density class, with intervals by bootstrap, and over their masses of each form and size.
With AHNET_DATA=DIR the network also reads DIR/victre_dbt_insilico, a breast with a mass and the same one
without, which others simulated. With --work, a killed run resumes with its first unfinished part.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from tqdm import tqdm

from ahnet_tf.evaluation.froc import ScoredVolume, count, curve, in_pixels, match_volume
from ahnet_tf.evaluation.summary import summarise_detections
from ahnet_tf.inference.predictor import Predictor, open_predictor
from ahnet_tf.inference.segment import PredictionSettings, segment_volume
from ahnet_tf.presets import PRESETS
from benchmarks.commands import call, cpu_seconds, read_json
from benchmarks.report import goal, print_table, versions, write_report
from preprocessing.cli import make_parser, run_command
from preprocessing.datasets.detection_table import Detection
from preprocessing.errors import SettingsError
from preprocessing.files import write_json
from preprocessing.phantom.breast import DENSITIES
from preprocessing.phantom.dbt import DBTSettings, make_case
from preprocessing.tasks import load_task
from preprocessing.volumes.geometry import spacing_mm
from preprocessing.volumes.lesions import LesionBox
from preprocessing.volumes.nifti import read_image

TASK = "dbt_lesion_small"
GRID = {"shape_xyz": (80, 144, 40), "spacing_mm": (0.8, 0.8, 1.0)}
# Numbers of unseen cases, by density class from here on; those of training begin at 0.
FIRST_UNSEEN, STEP = 10000, 1000
RATES = (0.25, 0.5, 1.0, 2.0, 4.0)
# Nodes and cysts have diameters of 5 to 14 mm: smooth masses of such sizes differ little from them.
LARGE_MM = 12.0
PREDICTION = PredictionSettings(overlap=0.5)
VICTRE = "victre_dbt_insilico"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    purpose = __doc__.splitlines()[0]
    parser = make_parser("benchmarks.detection", purpose, ["python -m benchmarks.detection"])
    add = parser.add_argument
    add("--work", metavar="DIR", help="keep cases, records and the network here")
    add("--cases", type=int, default=360, help="synthetic cases to learn from (default: 360)")
    add("--unseen", type=int, default=9, help="unseen cases of each density (default: 9)")
    add("--seed", type=int, default=0, help="seed of data and training (default: 0)")
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(arguments.work or temporary)
        figures: dict[str, Any] = {"training": _trained(work, arguments.cases, arguments.seed)}
        predictor = open_predictor(work / "run" / "ahnet")
        figures |= _on_synthetic(predictor, arguments.unseen, arguments.seed)
        data = os.environ.get("AHNET_DATA")
        if data and (Path(data) / VICTRE).is_dir():
            figures["victre"] = _on_victre(predictor, Path(data) / VICTRE)
    for title, name in (("density", "froc"), ("masses", "froc_by_kind")):
        rows = [(of, *numbers.values()) for of, numbers in figures[name].items()]
        print_table((title, *next(iter(figures[name].values()))), rows)
    settings = {"cases": arguments.cases, "unseen": arguments.unseen, "seed": arguments.seed}
    write_report("detection", figures, goals_of(figures), versions("tensorflow", "scipy"), settings)


def goals_of(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the goals: sensitivities, time, the size of detections, and VICTRE's pair."""
    of_all = figures["froc"]["all"]
    goals = [
        goal("minutes of training on two cores", "<=", 20, figures["training"]["cpu_minutes"] / 2),
        goal("sensitivity at 1 false positive per volume", ">=", 0.8, of_all["at_1"]),
        goal("sensitivity at 2 false positives per volume", ">=", 0.9, of_all["at_2"]),
        goal("sensitivity at 1/4 false positive per volume", "<=", 0.99, of_all["at_0.25"]),
        goal("width of a hit over that of its mass, median", "<=", 2.0, figures["hit_over_mass"]),
    ]
    if "victre" in figures:
        pair = figures["victre"]
        goals += [
            goal("rank of VICTRE's mass", "==", 1, pair["rank_of_mass"]),
            goal(
                "VICTRE: score of the mass over the highest without it",
                ">=",
                1.0,
                pair["score_of_mass"] / max(pair["highest_without"], 1e-6),
            ),
        ]
    return goals


def _trained(work: Path, cases: int, seed: int) -> dict[str, float]:
    """Makes cases and records in `work` and trains on them; returns the cost of the training.

    An unfinished training starts over, so that its cost is complete. Raises SettingsError if `work`
    is that of other settings.
    """
    data, records, done = work / "cases", work / "records", work / "training.json"
    settings = {"cases": cases, "seed": seed, "task": load_task(TASK).to_dict()}
    settings = json.loads(json.dumps(settings | {"training": PRESETS[TASK]}))
    if (work / "settings.json").is_file() and read_json(work / "settings.json") != settings:
        raise SettingsError("--work", "a folder of this benchmark with these settings", work)
    write_json(work / "settings.json", settings)
    if not (records / "task.json").is_file():
        options = ["--kind", "dbt", "--cases", cases, "--seed", seed, "--output", data]
        options += ["--shape", *GRID["shape_xyz"], "--spacing-mm", *GRID["spacing_mm"]]
        call("preprocessing.phantom", *options, "--overwrite")
        convert = ["--task", TASK, "--input", data, "--output", records, "--overwrite"]
        call("preprocessing.convert", *convert, "--eval-fraction", 0.06, "--seed", seed)
    if not done.is_file():
        shutil.rmtree(work / "run", ignore_errors=True)
        before, began = cpu_seconds(), time.perf_counter()
        call("ahnet_tf.train", "--input", records, "--output", work / "run", "--seed", seed)
        minutes = (time.perf_counter() - began) / 60
        write_json(done, {"minutes": minutes, "cpu_minutes": (cpu_seconds() - before) / 60})
    return read_json(done)


def _on_synthetic(predictor: Predictor, unseen: int, seed: int) -> dict[str, Any]:
    """Returns sensitivities by density and kind of mass, and the size of hits relative to masses."""
    volumes: dict[str, dict[Any, ScoredVolume]] = {name: {} for name in DENSITIES}
    kinds: dict[Any, list[str]] = {}  # of each mass of a volume
    sizes = []
    with tqdm(desc="unseen", total=unseen * len(DENSITIES), unit="case") as bar:
        for place, density in enumerate(DENSITIES):
            settings = DBTSettings(**GRID, fewest_masses=1, density=density)
            for number in range(unseen):
                number += FIRST_UNSEEN + STEP * place
                case = make_case(seed, number, settings)
                lesions = segment_volume(case.image, predictor, PREDICTION).lesions
                step_mm = spacing_mm(case.image.affine)
                scored = match_volume(in_pixels(lesions, step_mm), in_pixels(case.boxes, step_mm))
                key = (f"{number}", f"{number}", case.view)
                volumes[density][key] = scored
                kinds[key] = [_kind(box, step_mm[0]) for box in case.boxes]
                for lesion, hit in zip(lesions, scored.hits, strict=True):
                    if hit >= 0:
                        box = case.boxes[hit]
                        sizes.append((lesion.width + lesion.height) / (box.width + box.height))
                bar.update()
    everything = {key: each for own in volumes.values() for key, each in own.items()}
    return {
        "froc": {
            name: _sensitivities(list(own.values())) | _intervals(own, seed)
            for name, own in {**volumes, "all": everything}.items()
        },
        "froc_by_kind": {
            kind: _sensitivities([_only(kind, everything[key], kinds[key]) for key in everything])
            for kind in sorted({kind for own in kinds.values() for kind in own})
        },
        "hit_over_mass": statistics.median(sizes) if sizes else float("nan"),
    }


def _kind(box: LesionBox, pixel_mm: float) -> str:
    """Returns form and size of a mass by its box, whose pixels are square."""
    form = "spiculated" if box.lesion_class == "cancer" else "smooth"
    large = (box.width + box.height) / 2 * pixel_mm >= LARGE_MM
    return f"{form}, {'at least' if large else 'below'} {LARGE_MM:g} mm"


def _only(kind: str, volume: ScoredVolume, kinds: list[str]) -> ScoredVolume:
    """Returns a volume as if its masses of other kinds and their hits were not there."""
    wanted = np.array([hit < 0 or kinds[hit] == kind for hit in volume.hits], bool)
    return dataclasses.replace(
        volume,
        boxes=kinds.count(kind),
        scores=volume.scores[wanted],
        hits=volume.hits[wanted],
    )


def _sensitivities(volumes: list[ScoredVolume]) -> dict[str, Any]:
    points = curve(count(volumes))
    result = {"volumes": len(volumes), "masses": sum(each.boxes for each in volumes)}
    return result | {f"at_{rate:g}": float(np.interp(rate, *points)) for rate in RATES}


def _intervals(volumes: dict[Any, ScoredVolume], seed: int) -> dict[str, float]:
    scores = summarise_detections(volumes, seed)
    return {
        f"at_{rate}_{end}": scores[f"sensitivity_at_{rate}_fp_volumes_with_boxes"][end]
        for rate in (1, 2)
        for end in ("low", "high")
    }


def _on_victre(predictor: Predictor, folder: Path) -> dict[str, float]:
    """Returns score and rank of the mass among the detections, and the highest score without it."""
    mass = np.asarray(nib.load(folder / "mass_positive.nii.gz").dataobj) > 0
    found = {
        name: segment_volume(
            read_image(folder / f"dbt_{name}.nii.gz"), predictor, PREDICTION
        ).lesions
        for name in ("positive", "negative")
    }
    ranks = [rank for rank, each in enumerate(found["positive"], 1) if _holds(each, mass)]
    rank = ranks[0] if ranks else len(found["positive"]) + 1
    of_mass = found["positive"][rank - 1] if ranks else None
    return {
        "rank_of_mass": rank,
        "score_of_mass": of_mass.score if of_mass else 0.0,
        "width_voxels": of_mass.width if of_mass else 0,
        "height_voxels": of_mass.height if of_mass else 0,
        "highest_elsewhere": max(
            (each.score for each in found["positive"] if not _holds(each, mass)), default=0.0
        ),
        "highest_without": max((each.score for each in found["negative"]), default=0.0),
    }


def _holds(detection: Detection, mass: np.ndarray) -> bool:
    """Returns whether the middle of a detection lies in the box around a mass [x, y, z]."""
    spans = [np.flatnonzero(mass.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    middle = (
        detection.x + detection.width / 2,
        detection.y + detection.height / 2,
        detection.z + detection.depth / 2,
    )
    return all(span[0] <= at <= span[-1] + 1 for span, at in zip(spans, middle, strict=True))


if __name__ == "__main__":
    sys.exit(main())
