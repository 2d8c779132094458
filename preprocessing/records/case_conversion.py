"""Conversion of one case: its TFRecord shards, its manifest entry, and the Beam transform."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.metrics import Metrics

from preprocessing.datasets.case import Case, redact_case_path, rejection_reason
from preprocessing.datasets.reading import check_case_image, read_case_image
from preprocessing.errors import AHNetError
from preprocessing.files import input_state
from preprocessing.records.case_volume import read_case_volume
from preprocessing.records.patches import evaluation_tiles, training_patches
from preprocessing.records.schema import encode_patch
from preprocessing.records.storage import Shard, is_intact, read_json, write_json, write_shards
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import axis_codes

CONVERTED, REJECTED = "converted", "rejected"
OUTCOMES = "outcomes"
# Namespace and name of the metric that counts cases which an earlier run had already converted.
TAKEN_OVER = ("convert", "taken_over")


@dataclass(frozen=True)
class ConversionSettings:
    """Everything that, with a case and its split, determines the bytes of its records.

    The seed is that of training patches; `allow` has names of `preprocessing.errors.ALLOWANCES`.
    """

    task: Task
    seed: int = 0
    shard_bytes: int = 128 * 2**20
    allow: tuple[str, ...] = ()


def convert_case(
    case: Case, split: str, settings: ConversionSettings, folder: str
) -> dict[str, Any]:
    """Writes a case's records to `folder/split`; a case that can't be read is rejected with a reason.

    The split is "train" for foreground-balanced patches, "eval" for the exact tiling; the folder,
    on one of Beam's file systems, has a folder for it. Returns the case's entry in the manifest.
    """
    entry: dict[str, Any] = {"case_id": case.case_id, "source": case.source}
    if case.problem:
        return entry | {"status": REJECTED, "reason": case.problem}
    task = settings.task
    try:
        image = read_case_image(case, allow=settings.allow)
        checked = check_case_image(case, image, task, allow=settings.allow)
        if checked.misfit is not None:
            raise checked.misfit
        volume, facts, findings = read_case_volume(case, image, task, allow=settings.allow)
    except (
        Exception
    ) as error:  # One case that a library fails on must not end the job of all others.
        return entry | {"status": REJECTED, "reason": rejection_reason(case, error)}
    try:
        if split == "train":
            patches = training_patches(volume, task, seed=settings.seed)
        else:
            patches = evaluation_tiles(volume, task)
        shards = write_shards(
            FileSystems.join(folder, split),
            case.case_id,
            (encode_patch(patch, task) for patch in patches),
            limit_bytes=settings.shard_bytes,
        )
    except (AHNetError, MemoryError) as error:
        # What was written of it is deleted in the end. A full disk (OSError) is no fault of the case.
        return entry | {"status": REJECTED, "reason": rejection_reason(case, error)}
    return entry | {
        "status": CONVERTED,
        "split": split,
        "patches": sum(shard.records for shard in shards),
        "shards": [dataclasses.asdict(shard) for shard in shards],
        **facts,
        "image": Path(redact_case_path(case, case.image_path)).name,
        "orientation": axis_codes(image.affine),
        "input_shape_xyz": list(volume.grid.input_shape),
        "input_spacing_mm": list(volume.grid.input_spacing_mm),
        "shape_zyx": list(volume.grid.shape_zyx),
        "spacing_mm": list(volume.grid.spacing_mm),
        "fingerprint": checked.fingerprint,
        "warnings": [{"code": f.code, "text": f.text} for f in (*checked.findings, *findings)],
    }


class ConvertCase(beam.DoFn):
    """Converts (case, split) pairs and writes each case's entry to `folder/outcomes/CASE.json`.

    The launching process finds these files with any runner, and a later run does if this one is
    killed: it does not convert a finished case again.
    """

    def __init__(self, settings: ConversionSettings, folder: str):
        self.settings, self.folder = settings, folder

    def process(self, element: tuple[Case, str]) -> Iterator[str]:
        case, split = element
        inputs = _state_of_inputs(case)
        if _is_finished(case.case_id, split, inputs, self.folder):
            Metrics.counter(*TAKEN_OVER).inc()
        else:
            entry = convert_case(case, split, self.settings, self.folder)
            outcome = {"inputs": inputs, "entry": entry}
            write_json(outcome_path(self.folder, case.case_id), outcome)
        yield case.case_id


def _is_finished(case_id: str, split: str, inputs: str, folder: str) -> bool:
    """Returns whether the folder has intact records of a case from the same files and split.

    A rejected case is not finished: its files may have been unavailable.
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
    """Returns a digest of a case and the `input_state` of its files, wherever their folder lies."""

    def state(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [state(each) for each in value]
        return input_state(value) if isinstance(value, Path) else value

    return hashlib.sha256(repr(state(dataclasses.astuple(case))).encode()).hexdigest()


def outcome_path(folder: str, case_id: str) -> str:
    """Returns the path of a case's outcome while the job runs."""
    return FileSystems.join(folder, OUTCOMES, f"{case_id}.json")
