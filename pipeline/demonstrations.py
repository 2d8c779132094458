"""What `pipeline.demo` shows for CT and for tomosynthesis (DBT): data, training, blessing, scores."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ahnet_tf.evaluation.froc import score_names
from ahnet_tf.evaluation.summary import dice_columns
from preprocessing.tasks import Task

# Outside the numbers of the training cases: no stage before the prediction sees them.
UNSEEN_CASE = 1000
# Scores of DBT at 1 and at 2 false positives per volume, over the volumes with a mass.
SENSITIVITIES = score_names()[:2]
# Detections of the shown case in the summary.
STRONGEST = 3


@dataclass(frozen=True)
class Demonstration:
    """One demonstration; all commands are those that a user would type."""

    task: str  # preset of the task, and of the training
    cases: int  # synthetic cases to learn from
    unseen: int  # synthetic cases to predict, from number `UNSEEN_CASE`
    phantom: tuple[object, ...]  # further options of `preprocessing.phantom`
    training: tuple[str, ...]  # settings NAME=VALUE that replace those of this preset
    threshold: float  # lowest score that blesses a model of synthetic cases
    # Options of `pipeline.local_runner` for this threshold.
    blessing: Callable[[float], tuple[object, ...]]
    predicting: tuple[str, ...]  # further options of `ahnet_tf.predict`
    # Input and further options of `ahnet_tf.evaluate`, from the folder of predictions.
    evaluated: Callable[[Path], tuple[object, ...]]
    # Scores in the output folder, with the shown "case".
    scores: Callable[[Path, Task], dict[str, Any]]
    lines: Callable[[dict[str, Any]], list[str]]  # the scores as printed lines


def demonstration_of(task: Task) -> Demonstration:
    """Returns the demonstration for a task: DBT where the target is a heat map, else CT."""
    return DBT_LESION if task.target == "heat_map" else CT_LIVER


def _segmentation_scores(output: Path, task: Task) -> dict[str, Any]:
    """Returns the Dice of each class in the one predicted case."""
    row = _rows(output)[0]
    columns = zip(task.class_names[1:], dice_columns(task).values(), strict=True)
    return {"case": row["case_id"]} | {f"dice_{name}": float(row[key]) for name, key in columns}


def _segmentation_lines(summary: dict[str, Any]) -> list[str]:
    lines = [f"case {summary['case']}, not used in training:"]
    for name, dice in summary.items():
        if name.startswith("dice_"):
            lines.append(f"  Dice {name.removeprefix('dice_'):<8}{dice:.3f}")
    return lines


def _detection_scores(output: Path, _: Task) -> dict[str, Any]:
    """Returns the sensitivities over all predicted volumes, and what was found in one with a mass.

    A sensitivity is None if no volume has a mass. Places are voxels (x, y, z) at the boxes' centres.
    """
    rows = _rows(output)
    shown = next((row for row in rows if int(row["boxes"])), rows[0])
    scores = json.loads((output / "scores" / "scores.json").read_text(encoding="utf-8"))
    record = json.loads((output / "prediction" / "prediction.json").read_text(encoding="utf-8"))
    (entry,) = (each for each in record["cases"] if each["case_id"] == shown["case_id"])
    return {
        "case": shown["case_id"],
        "volumes": len(rows),
        "masses": sum(int(row["boxes"]) for row in rows),
        **{name: scores["summary"][name]["value"] for name in SENSITIVITIES},
        "case_masses": int(shown["boxes"]),
        "case_masses_found": int(shown["boxes_hit"]),
        "detections": strongest(entry["lesions"], STRONGEST),
    }


def strongest(lesions: Sequence[dict[str, float]], most: int) -> list[dict[str, float]]:
    """Returns score and centre (x, y, z in voxels) of the detections with the highest scores."""
    ordered = sorted(lesions, key=lambda lesion: -lesion["score"])
    sizes = {"x": "width", "y": "height", "z": "depth"}
    return [
        {"score": lesion["score"]}
        | {axis: lesion[axis] + (lesion[size] - 1) / 2 for axis, size in sizes.items()}
        for lesion in ordered[:most]
    ]


def _detection_lines(summary: dict[str, Any]) -> list[str]:
    lines = [f"{summary['volumes']} volumes, not used in training, {summary['masses']} masses:"]
    for rate, name in enumerate(SENSITIVITIES, start=1):
        value = summary[name]
        shown = "undefined, no mass" if value is None else f"{value:.3f}"
        plural = "" if rate == 1 else "s"
        lines.append(f"  sensitivity at {rate} false positive{plural} per volume: {shown}")
    found = f"{summary['case_masses_found']} of {summary['case_masses']} masses found"
    lines.append(f"case {summary['case']}: {found}; strongest detections:")
    for each in summary["detections"]:
        place = ", ".join(f"{axis} {each[axis]:.0f}" for axis in "xyz")
        lines.append(f"  score {each['score']:.2f} at {place}")
    return lines if summary["detections"] else [*lines, "  none"]


def _rows(output: Path) -> list[dict[str, str]]:
    with open(output / "scores" / "scores.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


CT_LIVER = Demonstration(
    task="ct_liver_small",
    cases=48,
    unseen=1,
    phantom=(),
    training=(),
    threshold=0.8,
    blessing=lambda least: ("--threshold-liver", least),
    # A patient has one liver. Windows that overlap more find more of the tumours, for a second or two.
    predicting=("--largest-component", "--overlap", "0.5"),
    evaluated=lambda predictions: (predictions,),
    scores=_segmentation_scores,
    lines=_segmentation_lines,
)
# A FROC over one volume would say nothing. The spacing is the task's: nothing is resampled. Masses are
# denser than those of `preprocessing.phantom` by default, so that minutes of training find them.
DBT_LESION = Demonstration(
    task="dbt_lesion_small",
    cases=40,
    unseen=12,
    phantom=(
        *("--kind", "dbt", "--shape", 80, 144, 40, "--spacing-mm", 0.8, 0.8, 1),
        *("--mass-contrast", 1.15, 1.3),
    ),
    training=(
        *("2d.steps=100", "2d.evaluate_every=100"),
        *("3d.steps=600", "3d.batch_size=2", "3d.evaluate_every=600"),
    ),
    threshold=0.25,
    blessing=lambda least: ("--threshold", f"{SENSITIVITIES[1]}={least}"),
    predicting=(),
    evaluated=lambda predictions: (predictions / "lesions.csv", "--hits-in-mm"),
    scores=_detection_scores,
    lines=_detection_lines,
)
DEMONSTRATIONS = {"ct_liver": CT_LIVER, "dbt_lesion": DBT_LESION}
