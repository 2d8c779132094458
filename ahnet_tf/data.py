"""TFRecords of patches -> tf.data: checked, seeded, augmented; `.tfrecord` and `.gz` alike.

The order of training patches and their augmentation are functions of the seed and the step alone,
so that a run which was killed goes on with the very patches it would have seen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf
from tqdm import tqdm

from preprocessing.errors import InputError
from preprocessing.records import CASE_ID, IMAGE, LABEL, parse_example
from preprocessing.tasks import Task

# Records that are shuffled among each other, in bytes; their number follows from their size.
SHUFFLE_WINDOW_BYTES = 128 * 2**20
RECORD_PATTERNS = ("*.tfrecord", "*.tfrecord.gz", "*.gz")


@dataclass(frozen=True)
class Augmentation:
    """Random changes that keep labels true; intensities relative to the task's window.

    Attributes:
      flip_probability: chance of mirroring, for each in-plane axis (y, x) by itself.
      shift: largest offset, as a fraction of the window's width.
      scale: largest change of contrast about the window's centre, as a fraction.
      noise: largest standard deviation of Gaussian noise, as a fraction of the window's width.
      padding_probability: chance that a patch ends early along z, as tiles at a volume's end do.
    """

    flip_probability: float = 0.5
    shift: float = 0.05
    scale: float = 0.1
    noise: float = 0.03
    padding_probability: float = 0.1


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


def find_records(folder: str | Path) -> list[str]:
    """Returns the record files of one split, sorted by name.

    Raises:
      InputError: the folder is missing or holds no record files.
    """
    folder = Path(folder)
    files = {str(path) for pattern in RECORD_PATTERNS for path in folder.glob(pattern)}
    if not files:
        found = "no such file" if folder.is_dir() else "no such folder"
        raise InputError(
            folder,
            "TFRecords (*.tfrecord, *.gz)",
            found,
            "Write them with python -m preprocessing.convert.",
        )
    return sorted(files)


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

    def measure(serialized: tf.Tensor) -> tuple[tf.Tensor, ...]:
        example = tf.io.parse_single_example(
            serialized,
            {name: tf.io.FixedLenFeature((), tf.string) for name in (CASE_ID, IMAGE, LABEL)}
            | {name: tf.io.FixedLenFeature((), tf.int64) for name in names},
        )
        sizes = [tf.strings.length(example[name]) for name in (IMAGE, LABEL)]
        return example[CASE_ID], tf.stack(sizes), tf.stack([example[name] for name in names])

    records, tiled_voxels, volume_voxels = 0, {}, {}
    bar = tqdm(files, desc="checking records", unit="file", disable=not progress, leave=False)
    for file in bar:
        dataset = _serialized([file]).map(measure).prefetch(8)
        try:
            for number, (case, sizes, triples) in enumerate(dataset.as_numpy_iterator()):
                shape, valid, volume = triples.reshape(3, 3).tolist()
                case_id = case.decode()
                _check_record(f"{file}, record {number} (case {case_id})", shape, sizes, task)
                records += 1
                voxels = valid[0] * valid[1] * valid[2]
                tiled_voxels[case_id] = tiled_voxels.get(case_id, 0) + voxels
                volume_voxels[case_id] = volume[0] * volume[1] * volume[2]
        except tf.errors.OpError as error:
            raise InputError(
                file, "readable records of patches", _reason(error), "Convert the volumes again."
            ) from None
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


def training_dataset(
    files: Sequence[str],
    task: Task,
    *,
    batch_size: int,
    seed: int,
    augment: Augmentation | None = None,
    start_step: int = 0,
    records: int | None = None,
) -> tf.data.Dataset:
    """Returns endless shuffled batches, from step `start_step` on.

    Args:
      files: record files of the training split.
      task: what the records hold.
      batch_size: patches a batch; an epoch's rest joins the next epoch's first batch.
      seed: of order and augmentation.
      augment: random changes of each patch; None leaves patches as they are.
      start_step: batches to pass over, as if they had been taken before.
      records: number of records in `files`, if `scan_records` has told it already.

    Returns:
      A dataset of `image` [b, z, y, x, 1] float32 raw intensities, `label` [b, z, y, x] uint8 and
      `weight` [b, z, y, x] float32.

    Raises:
      InputError: see `scan_records`.
    """
    if records is None:
        records = scan_records(files, task).records
    z, y, x = task.patch_shape_zyx
    window_records = max(1, min(records, SHUFFLE_WINDOW_BYTES // (3 * z * y * x)))
    first = start_step * batch_size

    def epoch_records(epoch: tf.Tensor) -> tf.data.Dataset:
        # Each epoch has seeds of its own, so that any one can be begun without those before it.
        # Dataset.shuffle would not do: its order depends on TensorFlow's global seed as well.
        order = tf.random.experimental.stateless_shuffle(tf.constant(files), (seed, epoch))
        dataset = tf.data.Dataset.from_tensor_slices(order)
        dataset = dataset.interleave(_read, cycle_length=4)

        def shuffled(number: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
            window_seed = tf.random.experimental.stateless_fold_in((seed, epoch), number)
            return tf.random.experimental.stateless_shuffle(window, window_seed)

        return dataset.batch(window_records).enumerate().map(shuffled).prefetch(1).unbatch()

    def prepare(number: tf.Tensor, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        example = parse_example(serialized, task)
        image = tf.cast(example["image"], tf.float32)
        label, weight = example["label"], example["weight"]
        if augment is not None:
            number_seed = tf.random.experimental.stateless_fold_in((seed, 1), number)
            image, label, weight = augmented(image, label, weight, number_seed, augment, task)
        return {"image": image, "label": label, "weight": weight}

    epochs = tf.data.Dataset.range(first // records, tf.int64.max)
    dataset = epochs.flat_map(epoch_records).skip(first % records).enumerate(first)
    dataset = dataset.map(prepare, num_parallel_calls=2, deterministic=True)
    return dataset.batch(batch_size, drop_remainder=True).prefetch(2)


def evaluation_dataset(files: Sequence[str], task: Task, *, batch_size: int) -> tf.data.Dataset:
    """Returns the patches of a split once, in order, in batches of `batch_size`.

    The last batch is filled up with copies of weight 0, so that replicas always share evenly.

    Returns:
      A dataset of `image`, `label`, `weight` as in `training_dataset`, and `case_id` [b] string.
    """

    def prepare(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        example = parse_example(serialized, task)
        return {
            "image": tf.cast(example["image"], tf.float32),
            "label": example["label"],
            "weight": example["weight"],
            "case_id": example[CASE_ID],
        }

    def fill(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        count = tf.shape(batch["weight"])[0]
        rows = tf.minimum(tf.range(batch_size), count - 1)
        real = tf.cast(tf.range(batch_size) < count, tf.float32)[:, None, None, None]
        filled = {name: tf.gather(values, rows) for name, values in batch.items()}
        return filled | {"weight": filled["weight"] * real}

    dataset = _serialized(list(files)).map(prepare, num_parallel_calls=2, deterministic=True)
    return dataset.batch(batch_size).map(fill).prefetch(2)


def augmented(
    image: tf.Tensor,
    label: tf.Tensor,
    weight: tf.Tensor,
    seed: tf.Tensor,
    augment: Augmentation,
    task: Task,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns a patch mirrored, padded and with other intensities, the same for a seed.

    Args:
      image: raw intensities [z, y, x, 1] float32.
      label: [z, y, x] uint8.
      weight: [z, y, x] float32.
      seed: two integers.
      augment: how much may change.
      task: gives the intensity window and the value of padding.
    """
    low, high = task.intensity_window
    centre, width = (low + high) / 2, high - low
    draw = tf.random.stateless_uniform((7,), seed)
    for axis, chance in ((1, draw[0]), (2, draw[1])):
        flip = chance < augment.flip_probability
        image, label, weight = (
            tf.cond(flip, lambda v=v, a=axis: tf.reverse(v, [a]), lambda v=v: v)
            for v in (image, label, weight)
        )
    scale = 1 + augment.scale * (2 * draw[2] - 1)
    shift = augment.shift * width * (2 * draw[3] - 1)
    image = (image - centre) * scale + centre + shift
    if augment.noise:
        noise_seed = tf.random.experimental.stateless_fold_in(seed, 1)
        deviation = augment.noise * width * draw[4]
        image += deviation * tf.random.stateless_normal(tf.shape(image), noise_seed)
    slices = label.shape[0]
    shorter = 1 + tf.cast(draw[6] * (slices - 1), tf.int32)
    kept = tf.range(slices) < tf.where(draw[5] < augment.padding_probability, shorter, slices)
    inside = tf.cast(kept, tf.float32)[:, None, None]
    image = tf.where(kept[:, None, None, None], image, float(task.outside_value))
    return image, label * tf.cast(inside, label.dtype), weight * inside


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
    wanted = {"image": 2 * z * y * x, "label": z * y * x}
    kinds = {"image": task.image_dtype, "label": "uint8"}
    for (name, size), found in zip(wanted.items(), sizes, strict=True):
        if found != size:
            raise InputError(
                where, f"{size} bytes of {kinds[name]} {name}", f"{found} bytes", remedy
            )


def _reason(error: tf.errors.OpError) -> str:
    first = error.message.split("\n")[0]
    return re.sub(r"\{\{.*?\}\}|\[Op:\w+\]|; Op<.*|\s*name:\s*$", "", first).strip().rstrip(".")


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape)


def _read(file: tf.Tensor) -> tf.data.Dataset:
    compressed = tf.strings.regex_full_match(file, r".*\.gz")
    return tf.data.TFRecordDataset(file, compression_type=tf.where(compressed, "GZIP", ""))


def _serialized(files: list[str]) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(files).flat_map(_read)
