"""Batches from TFRecords of patches: shuffled and augmented for training, in order for evaluation.

The order of training patches and their augmentation depend on the seed and the step alone, so that a
resumed run sees the same patches as an uninterrupted one.

Functions mapped by tf.data have no Python control flow over tensors; they are not converted by
AutoGraph, which shortens the start of a training.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from ahnet_tf.config import AugmentationConfig
from ahnet_tf.data.augmentation import augment_patch
from ahnet_tf.data.records import read_file, read_files, scan_records
from preprocessing.records.schema import CASE_ID, HEAT_MAP, parse_example
from preprocessing.tasks import Task

# One process with one replica.
ALONE = tf.distribute.InputContext()

# A shuffle window has so many patches, or so many bytes of smaller ones: a case has dozens of patches,
# and a batch should mix cases.
WINDOW_PATCHES, WINDOW_BYTES = 256, 128 * 2**20
# Files, and with them cases, that are read in turn.
FILES_AT_ONCE = 16
_ENDLESS = tf.data.experimental.INFINITE_CARDINALITY


def training_dataset(
    files: Sequence[str],
    task: Task,
    *,
    batch_size: int,
    seed: int,
    augment: AugmentationConfig | None = None,
    slab_slices: int = 0,
    start_step: int = 0,
    records: int | None = None,
    context: tf.distribute.InputContext = ALONE,
) -> tf.data.Dataset:
    """Returns endless shuffled batches, from step `start_step` on.

    They hold `image` [b, z, y, x, 1] float32 raw intensities, `label` [b, z, y, x] uint8, `weight`
    [b, z, y, x] float32, and `heat_map` [b, z, y, x] float32 for lesions. Raises InputError as
    `scan_records` does.

    Args:
      batch_size: patches per step; the rest of an epoch joins the next epoch's first batch.
      seed: seed of order and augmentation.
      augment: magnitudes of the augmentation; None for none.
      slab_slices: z of each batch, a random slab of the patch's slices; 0 for the whole patch.
      records: number of records in `files`, if already known from `scan_records`.
      context: the worker that reads, and its number of replicas; an element is one replica's share of
        a step. Together the workers see what one would.
    """
    if records is None:
        records = scan_records(files, task).records
    z, y, x = task.patch_shape_zyx
    window_records = min(records, max(WINDOW_PATCHES, WINDOW_BYTES // (3 * z * y * x)))
    first = start_step * batch_size

    @tf.autograph.experimental.do_not_convert
    def epoch_windows(epoch: tf.Tensor) -> tf.data.Dataset:
        # Seeds of its own let an epoch start without those before it. The order of Dataset.shuffle
        # also depends on TensorFlow's global seed.
        order = tf.random.experimental.stateless_shuffle(tf.constant(files), (seed, epoch))
        dataset = tf.data.Dataset.from_tensor_slices(order)
        dataset = dataset.interleave(read_file, cycle_length=FILES_AT_ONCE)

        def shuffled(number: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
            window_seed = tf.random.experimental.stateless_fold_in((seed, epoch), number)
            return tf.random.experimental.stateless_shuffle(window, window_seed)

        return dataset.batch(window_records).enumerate().map(shuffled)

    @tf.autograph.experimental.do_not_convert
    def prepare(number: tf.Tensor, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        example = parse_example(serialized, task)
        names = ("image", "label", "weight", HEAT_MAP)
        arrays = {name: example[name] for name in names if name in example}
        number_seed = tf.random.experimental.stateless_fold_in((seed, 1), number)
        if 0 < slab_slices < z:
            arrays = _random_slab(arrays, slab_slices, number_seed)
        arrays["image"] = tf.cast(arrays["image"], tf.float32)
        if augment is None:
            return arrays
        spacing_mm_yx = tf.stack([example["spacing_y_mm"], example["spacing_x_mm"]])
        return augment_patch(arrays, spacing_mm_yx, number_seed, augment, task)

    epochs = tf.data.Dataset.range(first // records, tf.int64.max)
    # The next window is read while one is consumed, also across epochs.
    dataset = epochs.flat_map(epoch_windows).prefetch(1).unbatch()
    dataset = dataset.skip(first % records).enumerate(first)
    if context.num_input_pipelines > 1:
        begin, end = _rows(batch_size, context)

        @tf.autograph.experimental.do_not_convert
        def is_own(number: tf.Tensor, serialized: tf.Tensor) -> tf.Tensor:
            row = number % batch_size
            return (row >= begin) & (row < end)

        dataset = dataset.filter(is_own)
    dataset = dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(context.get_per_replica_batch_size(batch_size), drop_remainder=True)
    # With a known infinite cardinality, workers need not ask each other for a batch at each step.
    return dataset.apply(tf.data.experimental.assert_cardinality(_ENDLESS)).prefetch(2)


def _random_slab(
    arrays: dict[str, tf.Tensor], slices: int, number_seed: tf.Tensor
) -> dict[str, tf.Tensor]:
    """Returns some consecutive slices of a patch's arrays, all possible ones equally likely."""
    depth = arrays["label"].shape[0]
    seed = tf.random.experimental.stateless_fold_in(number_seed, 6)
    first = tf.random.stateless_uniform((), seed, 0, depth - slices + 1, tf.int32)
    return {
        name: tf.ensure_shape(values[first : first + slices], (slices, *values.shape[1:]))
        for name, values in arrays.items()
    }


def evaluation_dataset(
    files: Sequence[str],
    task: Task,
    *,
    batch_size: int,
    context: tf.distribute.InputContext = ALONE,
) -> tf.data.Dataset:
    """Returns the patches of a split once, in order, in batches of `batch_size` over all replicas.

    The last batch is filled with copies of weight 0, so that every replica gets the same share.
    Arguments and `image`, `label`, `weight`, `heat_map` are as in `training_dataset`; with them come
    `case_id` [b] string, `spacing_mm` [b, 3] float32 (x, y, z), and as int64 [b, 3] the tile's
    `origin_zyx`, the size `valid_zyx` of its part in the volume, and the volume's size `volume_zyx`.
    """
    begin, end = _rows(batch_size, context)

    @tf.autograph.experimental.do_not_convert
    def own_rows(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        rows, count = tf.range(begin, end), tf.size(serialized)
        return tf.gather(serialized, tf.minimum(rows, count - 1)), tf.cast(rows < count, tf.float32)

    @tf.autograph.experimental.do_not_convert
    def prepare(serialized: tf.Tensor, counts: tf.Tensor) -> dict[str, tf.Tensor]:
        example = parse_example(serialized, task)
        arrays = {name: example[name] for name in (HEAT_MAP,) if name in example}
        for name in ("origin", "valid", "volume"):
            arrays[f"{name}_zyx"] = tf.stack([example[f"{name}_{axis}"] for axis in "zyx"])
        return arrays | {
            "image": tf.cast(example["image"], tf.float32),
            "label": example["label"],
            "weight": example["weight"] * counts,
            "case_id": example[CASE_ID],
            "spacing_mm": tf.stack([example[f"spacing_{axis}_mm"] for axis in "xyz"]),
        }

    dataset = read_files(files).batch(batch_size).map(own_rows).unbatch()
    dataset = dataset.map(prepare, num_parallel_calls=2, deterministic=True)
    size = context.get_per_replica_batch_size(batch_size)
    return dataset.batch(size, drop_remainder=True).prefetch(2)


def _rows(batch_size: int, context: tf.distribute.InputContext) -> tuple[int, int]:
    """Returns the range of rows of each batch that belongs to a worker."""
    share = batch_size // context.num_input_pipelines
    return context.input_pipeline_id * share, (context.input_pipeline_id + 1) * share
