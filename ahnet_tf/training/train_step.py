"""What one training step and one evaluation compute, under any tf.distribute strategy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.data.dataset import evaluation_dataset
from ahnet_tf.networks.dropout import dropout_seed
from ahnet_tf.training.ema import WeightAverage
from ahnet_tf.training.losses import (
    heat_map_l2,
    sigmoid_focal,
    soft_dice,
    softmax_focal,
    weighted_sums,
)
from ahnet_tf.training.optimizer import Optimizer
from ahnet_tf.training.validation import CaseDice, class_labels, tile_counts
from ahnet_tf.training.workers import sum_over_workers
from preprocessing.tasks import Task

Batch = dict[str, tf.Tensor]


@dataclass(frozen=True)
class ShownTile:
    """A tile of the evaluation to look at.

    Attributes:
      image_zyx: raw intensities [z, y, x] float32.
      label_zyx: true label values [z, y, x] uint8.
      prediction_zyx: predicted label values [z, y, x] uint8; 0 beyond the volume.
      spacing_mm: voxel spacing (x, y, z).
    """

    image_zyx: np.ndarray
    label_zyx: np.ndarray
    prediction_zyx: np.ndarray
    spacing_mm: tuple[float, float, float]


def make_train_step(
    strategy: tf.distribute.Strategy,
    model: tf.keras.Model,
    optimizer: Optimizer,
    model_config: ModelConfig,
    config: TrainingConfig,
    average: WeightAverage | None = None,
) -> Callable[[Batch], tuple[tf.Tensor, tf.Tensor]]:
    """Returns the function that makes one optimizer step with one batch.

    The loss is the weighted mean over the voxels of the whole batch. Replicas share its one
    denominator, so N of them learn what one would from the same batch.

    Args:
      strategy: shares the batch among its replicas.
      model: network from raw intensities to logits.
      optimizer: see `make_optimizer`.
      model_config: says whether classes share a softmax.
      config: loss, clipping, precision.
      average: of the weights, kept up with each step.

    Returns:
      A function from a (distributed) batch of `training_dataset` to the loss, and the global norm
      of its gradient before clipping; float32 scalars. Where the loss is scaled, the norm is not
      finite after a step that was left out.
    """
    variables = model.trainable_variables
    scaled = config.precision == "mixed_float16"

    def local_loss_and_gradients(batch: Batch, total_weight: tf.Tensor) -> tuple:
        with tf.GradientTape() as tape:
            logits = model(batch["image"], training=True)
            loss = batch_loss(logits, batch, model_config, config, total_weight)
            target = optimizer.get_scaled_loss(loss) if scaled else loss
        return loss, tape.gradient(target, variables)

    if config.jit_compile:
        local_loss_and_gradients = tf.function(
            local_loss_and_gradients, jit_compile=True, autograph=False
        )

    def replica_step(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        replicas = tf.distribute.get_replica_context()
        total_weight = replicas.all_reduce(
            tf.distribute.ReduceOp.SUM, tf.reduce_sum(batch["weight"])
        )
        with dropout_seed(_seed_of(config, optimizer, replicas)):
            loss, gradients = local_loss_and_gradients(batch, total_weight)
        gradients = replicas.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        if scaled:
            gradients = optimizer.get_unscaled_gradients(gradients)
        norm = tf.linalg.global_norm(gradients)
        if config.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, config.clip_norm, use_norm=norm)
        optimizer.apply_gradients(
            zip(gradients, variables, strict=True), experimental_aggregate_gradients=False
        )
        if average is not None:
            average.update()
        return loss, norm

    @tf.function(autograph=False)
    def step(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        losses, norms = strategy.run(replica_step, (batch,))
        loss = strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)
        return loss, strategy.reduce(tf.distribute.ReduceOp.MEAN, norms, axis=None)

    return step


def _seed_of(
    config: TrainingConfig, optimizer: Optimizer, replica: tf.distribute.ReplicaContext
) -> tf.Tensor:
    """Returns the seed of a replica's step, int32 [2]: it follows from what a checkpoint keeps."""
    fold_in = tf.random.experimental.stateless_fold_in
    seed = fold_in((config.seed, 2), tf.cast(optimizer.iterations, tf.int32))
    return fold_in(seed, replica.replica_id_in_sync_group)


def make_evaluation(
    strategy: tf.distribute.Strategy,
    model: tf.keras.Model,
    model_config: ModelConfig,
    task: Task,
    files: Sequence[str],
    *,
    batch_size: int,
    case_ids: Collection[str] = (),
    between: Callable[[], None] = lambda: None,
    progress: bool = False,
) -> Callable[[], tuple[CaseDice, ShownTile]]:
    """Returns the function that predicts every tile of a split and counts voxels by case.

    It also returns a tile to look at, the same each time: that with the most voxels of the last
    class that there is (a liver's tumour), then of the one before; of several workers each looks at
    its own share of the tiles.

    Args:
      strategy: shares each batch among its replicas.
      model: network from raw intensities to logits.
      model_config: says how logits become classes.
      task: what the records hold.
      files: record files whose patches tile their volumes exactly.
      batch_size: tiles a batch over all replicas, a multiple of them.
      case_ids: of all cases in `files`; needed where several workers share them.
      between: called before each batch; what it raises ends the evaluation.
      progress: show a progress bar.
    """

    def replica_counts(batch: Batch) -> dict[str, tf.Tensor]:
        predicted = predicted_classes(model(batch["image"], training=False), model_config)
        counts = tile_counts(batch["label"], predicted, batch["weight"], model_config.classes)
        prediction = tf.cast(predicted, tf.uint8) * tf.cast(batch["weight"], tf.uint8)
        return batch | {"counts": counts, "prediction": prediction}

    @tf.function(autograph=False)
    def count(batch: Batch) -> dict[str, tf.Tensor]:
        found = strategy.run(replica_counts, (batch,))
        local = strategy.experimental_local_results
        return {name: tf.concat(local(values), 0) for name, values in found.items()}

    tiles = strategy.distribute_datasets_from_function(
        lambda context: evaluation_dataset(files, task, batch_size=batch_size, context=context)
    )

    def evaluate() -> tuple[CaseDice, ShownTile]:
        found, shown, most = CaseDice(class_labels(task)), None, None
        for batch in tqdm(tiles, "evaluating", unit="batch", leave=False, disable=not progress):
            between()
            counted = count(batch)
            counts = counted["counts"].numpy()
            found.add(counted["case_id"].numpy(), counts)
            # Voxels of each class, the last class first.
            for row, voxels in enumerate(counts[:, model_config.classes - 2 :: -1, 2].tolist()):
                if most is None or voxels > most:
                    most, shown = voxels, _tile(counted, row)
        return _over_workers(found, case_ids, strategy), shown

    return evaluate


def _over_workers(
    found: CaseDice, case_ids: Collection[str], strategy: tf.distribute.Strategy
) -> CaseDice:
    """Returns the counts of all workers together."""
    ids, zeros = sorted({*case_ids, *found.counts}), np.zeros((len(found.names), 3), np.int64)
    counts = np.stack([found.counts.get(case_id, zeros) for case_id in ids])
    counts = sum_over_workers(strategy, counts)
    return CaseDice(found.names, dict(zip(ids, counts, strict=True)))


def _tile(batch: Batch, row: int) -> ShownTile:
    return ShownTile(
        image_zyx=batch["image"][row, ..., 0].numpy(),
        label_zyx=batch["label"][row].numpy(),
        prediction_zyx=batch["prediction"][row].numpy(),
        spacing_mm=tuple(batch["spacing_mm"][row].numpy().tolist()),
    )


def predicted_classes(logits: tf.Tensor, model_config: ModelConfig) -> tf.Tensor:
    """Returns the class of each voxel [b, z, y, x] int64 for logits [b, z, y, x, class].

    The most probable class; with a sigmoid the most probable of the foreground classes where one
    is more likely than not, else background.
    """
    if model_config.activation == "softmax":
        return tf.argmax(logits, -1)
    foreground = logits[..., 1:]
    best = tf.argmax(foreground, -1) + 1
    return tf.where(tf.reduce_max(foreground, -1) > 0, best, 0)


def batch_loss(
    logits: tf.Tensor,
    batch: Batch,
    model_config: ModelConfig,
    config: TrainingConfig,
    total_weight: tf.Tensor,
) -> tf.Tensor:
    """Returns a replica's share of the loss of the whole batch, a float32 scalar.

    Where the batch has a heat map, that is the target and the lesion's output alone learns it; the
    background's has no part in the answer either (see `class_probabilities`). The class weights are then
    those of voxels without and with a lesion, in the proportion of the heat map.

    Args:
      logits: [b, z, y, x, class] of the replica's patches.
      batch: the replica's `label` and `weight`, and `heat_map` where the task has one.
      model_config: says whether classes share a softmax.
      config: loss, gamma and class weights.
      total_weight: sum of the weights of the whole batch, over all replicas.
    """
    exclusive = model_config.activation == "softmax"
    label, weight = batch["label"], batch["weight"]
    if "heat_map" in batch:
        label, logits = batch["heat_map"], logits[..., 1:]
    if config.loss == "heat_map_l2":
        values = heat_map_l2(label, logits, class_weights=config.class_weights)
    else:
        focal = softmax_focal if exclusive else sigmoid_focal
        gamma = 0.0 if config.loss == "cross_entropy" else config.gamma
        values = focal(label, logits, gamma=gamma, class_weights=config.class_weights)
    loss = tf.math.divide_no_nan(weighted_sums(values, weight)[0], total_weight)
    if config.loss == "dice_focal":
        dice = soft_dice(label, logits, voxel_weights=weight, exclusive=exclusive)
        loss += tf.reduce_sum(dice) / config.batch_size
    return loss
