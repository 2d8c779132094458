"""A sample of evaluation cases as whole volumes: predicted, scored, compared with the Evaluator.

Its size bounds time, disk and memory, however many cases the Evaluator has scored.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np
import tensorflow as tf

from ahnet_tf.data.records import read_files
from ahnet_tf.evaluate import main as evaluate
from ahnet_tf.evaluation.summary import dice_columns
from ahnet_tf.inference.predictor import Predictor
from pipeline.components.evaluator import INFERENCE_BATCH_SIZE
from preprocessing.errors import PipelineError
from preprocessing.files import write_json
from preprocessing.records.schema import CASE_ID, parse_example
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.nifti import write_image

# Cases in the sample.
SAMPLE = 20
# Largest difference between the Evaluator's Dice and the scorer's, which count the same voxels.
AGREEMENT = 1e-6
_KINDS = ("images", "references", "predictions")


def choose_cases(
    evaluated: Mapping[str, Mapping[str, float]],
    case_ids: Collection[str],
    task: Task,
    most: int = SAMPLE,
) -> list[str]:
    """Returns up to `most` of the cases: half of them the worst by the Evaluator, worst first.

    A case is as bad as the lowest Dice of its classes. The others are drawn by a hash of their ids: the
    same ones each time, whatever the model.
    """

    def worst_dice(case_id: str) -> tuple[float, str]:
        scores = evaluated[f"case_id={case_id}"]
        return min(scores[f"dice_{name}"] for name in task.class_names[1:]), case_id

    def place(case_id: str) -> bytes:
        return hashlib.sha256(f"report {case_id}".encode()).digest()

    scored = [case_id for case_id in case_ids if f"case_id={case_id}" in evaluated]
    worst = sorted(scored, key=worst_dice)[: math.ceil(most / 2)]
    drawn = sorted(set(scored).difference(worst), key=place)[: most - len(worst)]
    return [*worst, *drawn]


def write_cases(
    files: Sequence[str], predictor: Predictor, case_ids: Sequence[str], folder: Path
) -> None:
    """Predicts the patches of some cases and assembles the volumes that they tile.

    Patches neither overlap nor are blended, so the labels are exactly those that the Evaluator
    counts. Volumes are built on disk; only a few patches are in memory. The subfolders images,
    references and predictions receive CASE.nii on the task's grid; the origin is the first voxel,
    because records don't store the case's own.
    """
    task = predictor.settings.task
    wanted = tf.constant(case_ids)

    @tf.autograph.experimental.do_not_convert
    def is_wanted(serialized: tf.Tensor) -> tf.Tensor:
        only_id = {CASE_ID: tf.io.FixedLenFeature((), tf.string)}
        return tf.reduce_any(tf.io.parse_single_example(serialized, only_id)[CASE_ID] == wanted)

    parse = tf.autograph.experimental.do_not_convert(functools.partial(parse_example, task=task))
    patches = read_files(files).filter(is_wanted).map(parse).batch(INFERENCE_BATCH_SIZE)
    for kind in _KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    volumes: dict[str, list[np.memmap]] = {}
    spacings_mm: dict[str, list[float]] = {}
    missing: dict[str, int] = {}
    for batch in patches.as_numpy_iterator():
        labels = predictor.predict(batch["image"]).argmax(axis=-1).astype(np.uint8)
        for number, case in enumerate(batch[CASE_ID]):
            case_id = case.decode()
            shape, origin, valid = (
                tuple(int(batch[f"{name}_{axis}"][number]) for axis in "zyx")
                for name in ("volume", "origin", "valid")
            )
            parts = (batch["image"][number, ..., 0], batch["label"][number], labels[number])
            if case_id not in volumes:
                volumes[case_id] = [
                    np.lib.format.open_memmap(
                        folder / kind / f"{case_id}.npy", "w+", part.dtype, shape
                    )
                    for kind, part in zip(_KINDS, parts, strict=True)
                ]
                spacings_mm[case_id] = [float(batch[f"spacing_{a}_mm"][number]) for a in "xyz"]
                missing[case_id] = math.prod(shape)
            place = tuple(slice(o, o + size) for o, size in zip(origin, valid, strict=True))
            for volume, part in zip(volumes[case_id], parts, strict=True):
                volume[place] = part[tuple(slice(size) for size in valid)]
            missing[case_id] -= math.prod(valid)
        if len(missing) == len(case_ids) and not any(missing.values()):
            break  # The other records are of other cases.
    for case_id, of_case in volumes.items():
        affine = np.diag([*spacings_mm[case_id], 1.0])
        for kind, volume in zip(_KINDS, of_case, strict=True):
            path = folder / kind / f"{case_id}.npy"
            write_image(path.with_suffix(".nii"), Volume(volume.transpose(2, 1, 0), affine))
            path.unlink()


def score_cases(cases: Path, output: Path, task: Task) -> None:
    """Scores predictions against references by `python -m ahnet_tf.evaluate`.

    References have the values of the task's classes. The command's output goes to scores.txt in
    `output`, its page of volumes to report.html. Raises PipelineError if a case can't be scored; the
    command has printed the reason.
    """
    # File by file: in folders the names of layouts count, and "a.b" would become case a_b.
    names = sorted(path.name for path in (cases / "predictions").iterdir())
    images, references, predictions = (
        [str(cases / kind / name) for name in names] for kind in _KINDS
    )
    arguments = ["--input", *predictions, "--reference", *references, "--output", str(output)]
    arguments += ["--report", str(output / "report.html"), "--images", *images]
    output.mkdir(parents=True)
    write_json(cases / "task.json", attrs.evolve(task, label_classes=None).to_dict())
    arguments += ["--task", str(cases / "task.json")]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = evaluate(arguments)
    (output / "scores.txt").write_text(printed.getvalue(), encoding="utf-8")
    if code:
        raise PipelineError("scores of whole cases", "every case scored", "see above")


def compare_scores(evaluated: Mapping[str, Mapping[str, float]], output: Path, task: Task) -> float:
    """Returns the largest difference between the Evaluator's Dice of a case and the scorer's.

    Raises PipelineError if it is above `AGREEMENT`.
    """
    with open(output / "scores.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    largest = 0.0
    for row in rows:
        case_id = row["case_id"]
        for name, key in zip(task.class_names[1:], dice_columns(task).values(), strict=True):
            dice = float(row[key])
            of_patches = evaluated[f"case_id={case_id}"][f"dice_{name}"]
            difference = abs(of_patches - dice)
            if not difference <= AGREEMENT:
                where = f"case {case_id}, Dice of {name}"
                expected = f"the Evaluator's {of_patches:.8f} within {AGREEMENT:g}"
                raise PipelineError(where, expected, f"{dice:.8f} from the whole volume")
            largest = max(largest, difference)
    return largest
