"""Checks before a training: every record fits the task, and evaluation tiles cover their volumes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from ahnet_tf.data.record_files import read_file, read_files
from preprocessing.errors import InputError
from preprocessing.records.schema import CASE_ID, IMAGE, voxel_features
from preprocessing.tasks import Task


@dataclass(frozen=True)
class RecordSummary:
    """What a split holds.

    Attributes:
      records: number of patches.
      tiled_voxels: for each case, the voxels of its patches that lie in the volume.
      volume_voxels: for each case, the voxels of its volume.
    """

    records: int
    tiled_voxels: dict[str, int]
    volume_voxels: dict[str, int]


def scan_records(
    files: Sequence[str], task: Task, *, tiled: bool = False, progress: bool = False
) -> RecordSummary:
    """Reads every record once and checks that it fits the task.

    Args:
      files: record files of one split.
      task: what the records should hold.
      tiled: also check that the patches of each case cover its volume exactly once.
      progress: show a progress bar.

    Raises:
      InputError: no files, an unreadable file, no records, a record of another patch size or
        voxel type, or patches that don't tile their volume; names the file.
    """
    if not files:
        raise InputError("records", "at least one file", "none")
    names = [f"{name}_{axis}" for name in ("shape", "valid", "volume") for axis in "zyx"]
    voxels = voxel_features(task)

    @tf.autograph.experimental.do_not_convert
    def measure(serialized: tf.Tensor) -> tuple[tf.Tensor, ...]:
        example = tf.io.parse_single_example(
            serialized,
            {name: tf.io.FixedLenFeature((), tf.string) for name in (CASE_ID, *voxels)}
            | {name: tf.io.FixedLenFeature((), tf.int64) for name in names},
        )
        sizes = [tf.strings.length(example[name]) for name in voxels]
        return example[CASE_ID], tf.stack(sizes), tf.stack([example[name] for name in names])

    @tf.autograph.experimental.do_not_convert
    def numbered(index: tf.Tensor, file: tf.Tensor) -> tf.data.Dataset:
        return read_file(file).map(measure).enumerate().map(lambda *record: (index, *record))

    # One dataset for all files: one for each would be built anew, a thousand times for a thousand.
    dataset = tf.data.Dataset.from_tensor_slices(list(files)).enumerate().flat_map(numbered)
    records, tiled_voxels, volume_voxels, last = 0, {}, {}, 0
    bar = tqdm(
        total=len(files), desc="checking records", unit="file", disable=not progress, leave=False
    )
    try:
        for index, number, (case, sizes, triples) in dataset.prefetch(8).as_numpy_iterator():
            bar.update(int(index) - last)
            last = int(index)
            shape, valid, volume = triples.reshape(3, 3).tolist()
            case_id = case.decode()
            where = f"{files[last]}, record {number} (case {case_id})"
            _check_record(where, shape, sizes, task)
            records += 1
            inside = valid[0] * valid[1] * valid[2]
            tiled_voxels[case_id] = tiled_voxels.get(case_id, 0) + inside
            volume_voxels[case_id] = volume[0] * volume[1] * volume[2]
    except tf.errors.OpError as error:
        raise _unreadable(files[last:], measure, error) from None
    finally:
        bar.close()
    if not records:
        raise InputError(
            Path(files[0]).parent, "at least one record", f"none in {len(files)} files"
        )
    for case_id, voxels in tiled_voxels.items():
        if tiled and voxels != volume_voxels[case_id]:
            raise InputError(
                f"case {case_id} in {Path(files[0]).parent}",
                f"patches that tile its {volume_voxels[case_id]} voxels exactly",
                f"{voxels} voxels",
                "Evaluation needs the eval split of python -m preprocessing.convert, whole.",
            )
    return RecordSummary(records, tiled_voxels, volume_voxels)


def _unreadable(
    files: Sequence[str], measure: Callable[[tf.Tensor], Any], error: tf.errors.OpError
) -> InputError:
    """Returns the error that names the first unreadable one of files; `error` came from one of them."""
    found = files[0]
    for file in files:
        try:
            for _ in read_files([file]).map(measure):
                pass
        except tf.errors.OpError as its_own:
            found, error = file, its_own
            break
    return InputError(
        found, "readable records of patches", _reason(error), "Convert the volumes again."
    )


def _check_record(where: str, shape: list[int], sizes: Sequence[int], task: Task) -> None:
    remedy = "Train with the task that the records were converted with."
    if tuple(shape) != task.patch_shape_zyx:
        raise InputError(
            where,
            f"a patch of {_by(task.patch_shape_zyx)} voxels (z, y, x; task {task.name})",
            _by(shape),
            remedy,
        )
    z, y, x = shape
    for (name, voxel_bytes), found in zip(voxel_features(task).items(), sizes, strict=True):
        size = voxel_bytes * z * y * x
        if found != size:
            kind = task.image_dtype if name == IMAGE else "uint8"
            raise InputError(where, f"{size} bytes of {kind} {name}", f"{found} bytes", remedy)


def _reason(error: tf.errors.OpError) -> str:
    first = error.message.split("\n")[0]
    return re.sub(r"\{\{.*?\}\}|\[Op:\w+\]|; Op<.*|\s*name:\s*$", "", first).strip().rstrip(".")


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)
