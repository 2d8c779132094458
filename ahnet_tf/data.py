"""TFRecords of patches -> batches: training's shuffled, seeded and augmented; evaluation's in order.

The order of training patches and their augmentation are functions of the seed and the step alone,
so that a run which was killed goes on with the very patches it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from ahnet_tf.augmentation import augmented
from ahnet_tf.config import AugmentationConfig
from ahnet_tf.record_checks import scan_records
from ahnet_tf.record_files import read_file, read_files
from preprocessing.records import CASE_ID, HEAT_MAP, parse_example
from preprocessing.tasks import Task

# Records that are shuffled among each other, in bytes; their number follows from their size.
SHUFFLE_WINDOW_BYTES = 128 * 2**20


def training_dataset(
    files: Sequence[str],
    task: Task,
    *,
    batch_size: int,
    seed: int,
    augment: AugmentationConfig | None = None,
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
      A dataset of `image` [b, z, y, x, 1] float32 raw intensities, `label` [b, z, y, x] uint8,
      `weight` [b, z, y, x] float32, and `heat_map` [b, z, y, x] float32 where the task has one.

    Raises:
      InputError: see `scan_records`.
    """
    if records is None:
        records = scan_records(files, task).records
    z, y, x = task.patch_shape_zyx
    window_records = max(1, min(records, SHUFFLE_WINDOW_BYTES // (3 * z * y * x)))
    first = start_step * batch_size

    def epoch_windows(epoch: tf.Tensor) -> tf.data.Dataset:
        # Each epoch has seeds of its own, so that any one can be begun without those before it.
        # Dataset.shuffle would not do: its order depends on TensorFlow's global seed as well.
        order = tf.random.experimental.stateless_shuffle(tf.constant(files), (seed, epoch))
        dataset = tf.data.Dataset.from_tensor_slices(order)
        dataset = dataset.interleave(read_file, cycle_length=4)

        def shuffled(number: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
            window_seed = tf.random.experimental.stateless_fold_in((seed, epoch), number)
            return tf.random.experimental.stateless_shuffle(window, window_seed)

        return dataset.batch(window_records).enumerate().map(shuffled)

    def prepare(number: tf.Tensor, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        example = parse_example(serialized, task)
        names = ("image", "label", "weight", HEAT_MAP)
        arrays = {name: example[name] for name in names if name in example}
        arrays["image"] = tf.cast(arrays["image"], tf.float32)
        if augment is None:
            return arrays
        number_seed = tf.random.experimental.stateless_fold_in((seed, 1), number)
        spacing_mm_yx = tf.stack([example["spacing_y_mm"], example["spacing_x_mm"]])
        return augmented(arrays, spacing_mm_yx, number_seed, augment, task)

    epochs = tf.data.Dataset.range(first // records, tf.int64.max)
    # The next window is read while one is used up, across the end of an epoch too.
    dataset = epochs.flat_map(epoch_windows).prefetch(1).unbatch()
    dataset = dataset.skip(first % records).enumerate(first)
    dataset = dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.batch(batch_size, drop_remainder=True).prefetch(2)


def evaluation_dataset(files: Sequence[str], task: Task, *, batch_size: int) -> tf.data.Dataset:
    """Returns the patches of a split once, in order, in batches of `batch_size`.

    The last batch is filled up with copies of weight 0, so that replicas always share evenly.

    Returns:
      A dataset of `image`, `label`, `weight` as in `training_dataset`, `case_id` [b] string and
      `spacing_mm` [b, 3] float32 (x, y, z).
    """

    def prepare(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        example = parse_example(serialized, task)
        return {
            "image": tf.cast(example["image"], tf.float32),
            "label": example["label"],
            "weight": example["weight"],
            "case_id": example[CASE_ID],
            "spacing_mm": tf.stack([example[f"spacing_{axis}_mm"] for axis in "xyz"]),
        }

    def fill(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        count = tf.shape(batch["weight"])[0]
        rows = tf.minimum(tf.range(batch_size), count - 1)
        real = tf.cast(tf.range(batch_size) < count, tf.float32)[:, None, None, None]
        filled = {name: tf.gather(values, rows) for name, values in batch.items()}
        return filled | {"weight": filled["weight"] * real}

    dataset = read_files(files).map(prepare, num_parallel_calls=2, deterministic=True)
    return dataset.batch(batch_size).map(fill).prefetch(2)
