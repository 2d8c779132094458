"""Record files: found in a split's folder, read in order, and checked before a training."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from preprocessing.errors import InputError
from preprocessing.records.patches import tile_parts
from preprocessing.records.schema import CASE_ID, IMAGE, voxel_features
from preprocessing.records.splits import split_files
from preprocessing.tasks import Task


def find_records(folder: str | Path) -> list[str]:
    """Returns a split's record files, sorted by name; raises InputError if there are none."""
    folder = Path(folder)
    files = split_files(folder)
    if not files:
        found = "no such file" if folder.is_dir() else "no such folder"
        remedy = "Write them with python -m preprocessing.convert."
        raise InputError(folder, "TFRecords (*.tfrecord, *.tfrecord-*, *.gz)", found, remedy)
    return list(map(str, files))


@tf.autograph.experimental.do_not_convert
def read_file(file: tf.Tensor) -> tf.data.Dataset:
    """Returns the serialized records of one file, `.gz` or plain; runs inside a tf.data graph."""
    compressed = tf.strings.regex_full_match(file, r".*\.gz")
    return tf.data.TFRecordDataset(file, compression_type=tf.where(compressed, "GZIP", ""))


def read_files(files: Sequence[str]) -> tf.data.Dataset:
    """Returns the serialized records of files, in order."""
    return tf.data.Dataset.from_tensor_slices(tf.constant(files, tf.string)).flat_map(read_file)


@dataclass(frozen=True)
class RecordSummary:
    """The number of patches in a split, and the voxels of each case's volume."""

    records: int
    volume_voxels: dict[str, int]


def scan_records(
    files: Sequence[str], task: Task, *, tiled: bool = False, progress: bool = False
) -> RecordSummary:
    """Reads every record of a split once and checks that it fits the task.

    With `tiled` the patches of each case must also be its `evaluation_tiles`, each once. Raises
    InputError, with the file, for no files or records, an unreadable file, a record of another
    patch size or voxel type, or patches that don't tile their volume.
    """
    if not files:
        raise InputError("records", "at least one file", "none")
    triples = ("shape", "origin", "valid", "volume")
    names = [f"{name}_{axis}" for name in triples for axis in "zyx"]
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

    # One dataset over all files: building one for each would take longer than reading small files.
    dataset = tf.data.Dataset.from_tensor_slices(list(files)).enumerate().flat_map(numbered)
    records, last = 0, 0
    tiles: dict[str, list[tuple[tuple[int, ...], ...]]] = {}
    bar = tqdm(
        total=len(files), desc="checking records", unit="file", disable=not progress, leave=False
    )
    try:
        for index, number, (case, sizes, values) in dataset.prefetch(8).as_numpy_iterator():
            bar.update(int(index) - last)
            last = int(index)
            shape, *tile = values.reshape(4, 3).tolist()
            case_id = case.decode()
            _check_record(f"{files[last]}, record {number} (case {case_id})", shape, sizes, task)
            records += 1
            tiles.setdefault(case_id, []).append(tuple(map(tuple, tile)))
    except tf.errors.OpError as error:
        raise _unreadable(files[last:], measure, error) from None
    finally:
        bar.close()
    folder = Path(files[0]).parent
    if not records:
        raise InputError(folder, "at least one record", f"none in {len(files)} files")
    for case_id, found in tiles.items() if tiled else ():
        _check_tiles(f"case {case_id} in {folder}", found, task)
    return RecordSummary(records, {case: math.prod(found[-1][-1]) for case, found in tiles.items()})


def _check_tiles(where: str, found: Sequence[tuple[tuple[int, ...], ...]], task: Task) -> None:
    """Checks (origin, valid, volume) of a case's patches against those of `evaluation_tiles`.

    In records of version 0.1 the first tile along an axis is whole and the last one padded.
    """
    volume, patch = found[0][-1], task.patch_shape_zyx
    expected: Counter[tuple[tuple[int, ...], ...]] = Counter(
        (*part, volume) for part in tile_parts(volume, patch)
    )
    of_version_0_1 = Counter(
        (origin, tuple(map(min, patch, np.subtract(volume, origin).tolist())), volume)
        for origin in itertools.product(*map(range, (0, 0, 0), volume, patch))
    )
    counted = Counter(found)
    if counted == of_version_0_1:
        return
    missing, more = (expected - counted).total(), (counted - expected).total()
    if missing or more:
        raise InputError(
            where,
            f"patches that tile its {math.prod(volume)} voxels exactly",
            f"{missing} of {expected.total()} missing, {more} twice or elsewhere",
            "Evaluation needs the whole eval split of python -m preprocessing.convert.",
        )


def _check_record(where: str, shape: list[int], sizes: Sequence[int], task: Task) -> None:
    remedy = "Train with the task that the records were converted with."
    if tuple(shape) != task.patch_shape_zyx:
        expected = f"a patch of {_by(task.patch_shape_zyx)} voxels (z, y, x; task {task.name})"
        raise InputError(where, expected, _by(shape), remedy)
    z, y, x = shape
    for (name, voxel_bytes), found in zip(voxel_features(task).items(), sizes, strict=True):
        size = voxel_bytes * z * y * x
        if found != size:
            kind = task.image_dtype if name == IMAGE else "uint8"
            raise InputError(where, f"{size} bytes of {kind} {name}", f"{found} bytes", remedy)


def _unreadable(
    files: Sequence[str], measure: Callable[[tf.Tensor], Any], error: tf.errors.OpError
) -> InputError:
    """Returns the error that names the first unreadable one of `files`, which `error` came from."""
    damaged = files[0]
    for file in files:
        try:
            for _ in read_files([file]).map(measure):
                pass
        except tf.errors.OpError as its_own:
            damaged, error = file, its_own
            break
    # Without the names of graph nodes and operations.
    first_line = error.message.split("\n")[0]
    found = re.sub(r"\{\{.*?\}\}|\[Op:\w+\]|; Op<.*|\s*name:\s*$", "", first_line)
    expected = "readable records of patches"
    return InputError(damaged, expected, found.strip().rstrip("."), "Convert the volumes again.")


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)
