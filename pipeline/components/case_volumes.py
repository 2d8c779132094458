"""Whole evaluation cases out of the patches that tile them: image, reference and prediction as NIfTI."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from ahnet_tf.data.records import read_files
from ahnet_tf.inference.predictor import Predictor
from preprocessing.records.schema import CASE_ID, parse_example
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.nifti import write_image

IMAGES, REFERENCES, PREDICTIONS = "images", "references", "predictions"
_KINDS = (IMAGES, REFERENCES, PREDICTIONS)


@dataclass(frozen=True)
class _Grid:
    shape_zyx: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]


def write_cases(files: Sequence[str], predictor: Predictor, folder: Path) -> list[str]:
    """Predicts every patch as it was cut and puts the patches of each case together again.

    Windows neither overlap nor are they blended: these are the very labels that the Evaluator counts.
    Volumes grow on disk, so that a batch of patches is all that is in memory, in whatever order
    records come.

    Args:
      files: record files of the evaluation split.
      predictor: the model.
      folder: NIfTI files go to its folders images, references and predictions, CASE.nii, on the task's
        grid; an image's first voxel stands for the origin, because records don't know theirs.

    Returns:
      The case ids, sorted.
    """
    task = predictor.settings.task
    grids: dict[str, _Grid] = {}
    for serialized in read_files(files):
        record = parse_example(serialized, task)
        case_id = record[CASE_ID].numpy().decode()
        if case_id not in grids:
            grids[case_id] = _grid(record)
            for kind in _KINDS:
                dtype = task.image_dtype if kind == IMAGES else "uint8"
                np.lib.format.open_memmap(
                    _raw(folder, kind, case_id), "w+", dtype, grids[case_id].shape_zyx
                )
        image = record["image"].numpy()
        labels = predictor.predict(image[None])[0].argmax(axis=-1).astype(np.uint8)
        patches = (image[..., 0], record["label"].numpy(), labels)
        for kind, patch_zyx in zip(_KINDS, patches, strict=True):
            _paste(_raw(folder, kind, case_id), patch_zyx, record)
    for case_id, grid in grids.items():
        for kind in _KINDS:
            raw = _raw(folder, kind, case_id)
            voxels = np.load(raw, mmap_mode="r").transpose(2, 1, 0)
            affine = np.diag([*grid.spacing_mm, 1.0])
            write_image(raw.with_suffix(".nii"), Volume(voxels, affine))
            raw.unlink()
    return sorted(grids)


def _grid(record: dict[str, tf.Tensor]) -> _Grid:
    return _Grid(
        tuple(int(record[f"volume_{axis}"]) for axis in "zyx"),
        tuple(float(record[f"spacing_{axis}_mm"]) for axis in "xyz"),
    )


def _raw(folder: Path, kind: str, case_id: str) -> Path:
    place = folder / kind
    place.mkdir(parents=True, exist_ok=True)
    return place / f"{case_id}.npy"


def _paste(path: Path, patch_zyx: np.ndarray, record: dict[str, tf.Tensor]) -> None:
    """Writes the part of a patch that lies in its volume to its place there."""
    volume = np.load(path, mmap_mode="r+")
    starts = [int(record[f"origin_{axis}"]) for axis in "zyx"]
    sizes = [int(record[f"valid_{axis}"]) for axis in "zyx"]
    place = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
    volume[place] = patch_zyx[tuple(slice(size) for size in sizes)]
    volume.flush()
