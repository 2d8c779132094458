"""One case -> its TFRecord shards and its line of the manifest; the Beam transform around that."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics

from preprocessing.datasets.case import Case, redact_case_path, redact_message
from preprocessing.datasets.reading import read_case_image
from preprocessing.errors import AHNetError
from preprocessing.records.patches import evaluation_tiles, training_patches
from preprocessing.records.schema import encode_patch
from preprocessing.records.shards import Shard, is_intact, write_shards
from preprocessing.records.storage import read_json, write_json
from preprocessing.records.targets import Target, read_target
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import TargetGrid, axis_codes, to_target_grid
from preprocessing.volumes.quality_checks import check_image, check_labels

CONVERTED, REJECTED = "converted", "rejected"
OUTCOMES = "outcomes"
# The metric that counts cases an earlier run had converted already.
TAKEN_OVER = ("convert", "taken_over")


@dataclass(frozen=True)
class ConversionSettings:
    """What decides, together with a case and its split, every byte of the case's records.

    Attributes:
      task: classes, resampling and patches.
      seed: of the training patches.
      shard_bytes: a shard file ends before it would grow beyond this.
      allow: what is taken although it is irregular, names of `preprocessing.allowances.ALLOWANCES`.
    """

    task: Task
    seed: int = 0
    shard_bytes: int = 128 * 2**20
    allow: tuple[str, ...] = ()


def read_case(
    case: Case, task: Task, *, allow: Collection[str] = ()
) -> tuple[np.ndarray, Target, np.ndarray, TargetGrid, dict[str, Any]]:
    """Reads and checks an image with its annotation, on the task's grid.

    Returns:
      image [z, y, x] in the task's `image_dtype`, target, its voxels [slice, class], their grid, and
      facts about the files for the manifest.

    Raises:
      InputError: a file is missing or damaged, or image and annotation don't fit together.
    """
    image = read_case_image(case, allow=allow)
    checked = check_image(image, task)
    image_zyx, space = to_target_grid(image, task)
    target = read_target(case, image, space, task, allow=allow)
    counts, findings = check_labels(image_zyx, target.label_zyx, task)
    facts = {
        "image": Path(redact_case_path(case, case.image_path)).name,
        **target.facts,
        "orientation": axis_codes(image.affine),
        "input_shape_xyz": list(space.input_shape),
        "input_spacing_mm": list(space.input_spacing_mm),
        "shape_zyx": list(space.shape_zyx),
        "spacing_mm": list(space.spacing_mm),
        "fingerprint": checked.fingerprint,
        "label_voxels": dict(zip(task.class_names, map(int, counts.sum(axis=0)), strict=True)),
        "warnings": [{"code": f.code, "text": f.text} for f in (*checked.findings, *findings)],
    }
    return image_zyx, target, counts, space, facts


def convert_case(
    case: Case, split: str, settings: ConversionSettings, folder: str
) -> dict[str, Any]:
    """Writes a case's records to `folder/split`; a case that can't be read is rejected with a reason.

    Args:
      case: image and label map.
      split: "train" for foreground-balanced patches, "eval" for the exact tiling.
      settings: see `ConversionSettings`.
      folder: an address that Beam's file systems know; has the split's folder in it.

    Returns:
      The case's entry of the manifest.
    """
    entry: dict[str, Any] = {"case_id": case.case_id, "source": case.source}
    if case.problem:
        return entry | {"status": REJECTED, "reason": case.problem}
    task = settings.task
    try:
        image_zyx, target, counts, space, facts = read_case(case, task, allow=settings.allow)
    except (AHNetError, OSError, MemoryError) as error:
        reason = str(error) or "expected a volume that fits into memory, found a larger one"
        return entry | {"status": REJECTED, "reason": redact_message(case, reason)}
    volume = (image_zyx, target.label_zyx, counts, space, task)
    given = {"case_id": case.case_id, "source": case.source, "heat_map_zyx": target.heat_map_zyx}
    if split == "train":
        patches = training_patches(*volume, seed=settings.seed, **given)
    else:
        patches = evaluation_tiles(*volume, **given)
    shards = write_shards(
        FileSystems.join(folder, split),
        case.case_id,
        (encode_patch(patch, task) for patch in patches),
        limit_bytes=settings.shard_bytes,
    )
    return entry | {
        "status": CONVERTED,
        "split": split,
        "patches": sum(shard.records for shard in shards),
        "shards": [dataclasses.asdict(shard) for shard in shards],
        **facts,
    }


class ConvertCase(beam.DoFn):
    """Converts (case, split) pairs and leaves each case's entry at `folder/outcomes/CASE.json`.

    The entries travel through the output's file system, so the launching process sees them whatever
    the runner, and so does a later process if this one was killed: a case that is finished in the
    folder is not converted again.
    """

    def __init__(self, settings: ConversionSettings, folder: str):
        self.settings = settings
        self.folder = folder

    def process(self, element: tuple[Case, str]) -> Iterator[str]:
        case, split = element
        inputs = _state_of_inputs(case)
        if is_finished(case.case_id, split, inputs, self.folder):
            Metrics.counter(*TAKEN_OVER).inc()
        else:
            entry = convert_case(case, split, self.settings, self.folder)
            outcome = {"inputs": inputs, "entry": entry}
            write_json(outcome_path(self.folder, case.case_id), outcome)
        yield case.case_id


def is_finished(case_id: str, split: str, inputs: str, folder: str) -> bool:
    """Returns whether a case was converted into a folder before, from the same files, and is intact.

    A rejected case is not finished: its files may have been out of reach.
    """
    path = outcome_path(folder, case_id)
    if not FileSystems.exists(path):
        return False
    outcome = read_json(path)
    entry = outcome["entry"]
    if (outcome["inputs"], entry["status"], entry.get("split")) != (inputs, CONVERTED, split):
        return False
    target = FileSystems.join(folder, split)
    return all(is_intact(target, Shard(**shard)) for shard in entry["shards"])


def _state_of_inputs(case: Case) -> str:
    """Returns a digest of a case's description and of the size and time of each of its files.

    Folders don't count, so that a mount may lie at another place the next time.
    """
    state: list[object] = []
    for value in dataclasses.astuple(case):
        if not isinstance(value, Path):
            state.append(value)
            continue
        for path in sorted(value.iterdir()) if value.is_dir() else [value]:
            there = path.stat() if path.exists() else None
            state.append((path.name, there and (there.st_size, there.st_mtime_ns)))
    return hashlib.sha256(repr(state).encode()).hexdigest()


def outcome_path(folder: str, case_id: str) -> str:
    """Returns where a case's entry of the manifest lies while the job runs."""
    return FileSystems.join(folder, OUTCOMES, f"{case_id}.json")
