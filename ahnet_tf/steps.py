"""What one training step and one evaluation compute, under any tf.distribute strategy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from ahnet_tf.case_dice import CaseDice, class_labels, tile_counts
from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.data import evaluation_dataset
from ahnet_tf.losses import (
    heat_map_l2,
    sigmoid_focal,
    soft_dice,
    softmax_focal,
    weighted_sums,
)
from ahnet_tf.schedules import WarmUpThenDecay
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


def make_optimizer(
    strategy: tf.distribute.Strategy, model: tf.keras.Model, config: TrainingConfig
) -> tf.keras.optimizers.legacy.Optimizer:
    """Returns Adam as published (0.9, 0.999, 1e-8), with the configured schedule, its state created.

    Keras' legacy class: its fused update is faster on CPUs than the newer one's.
    """
    with strategy.scope():
        optimizer = tf.keras.optimizers.legacy.Adam(
            WarmUpThenDecay(config), beta_1=0.9, beta_2=0.999, epsilon=1e-8
        )
    # A step without gradient creates the moments and changes nothing. Created within the first real
    # step they would make TensorFlow trace it twice, and a checkpoint could not be checked at once.
    weights = model.trainable_variables

    def apply_zeros() -> None:
        zeros = [(tf.zeros_like(weight), weight) for weight in weights]
        optimizer.apply_gradients(zeros, experimental_aggregate_gradients=False)

    tf.function(lambda: strategy.run(apply_zeros), autograph=False)()
    optimizer.iterations.assign(0)
    return optimizer


def make_train_step(
    strategy: tf.distribute.Strategy,
    model: tf.keras.Model,
    optimizer: tf.keras.optimizers.legacy.Optimizer,
    model_config: ModelConfig,
    config: TrainingConfig,
) -> Callable[[Batch], tuple[tf.Tensor, tf.Tensor]]:
    """Returns the function that makes one optimizer step with one batch.

    The loss is the weighted mean over the voxels of the whole batch. Replicas share its one
    denominator, so N of them learn what one would from the same batch.

    Returns:
      A function from a (distributed) batch of `training_dataset` to the loss, and the global norm
      of its gradient before clipping; float32 scalars.
    """
    variables = model.trainable_variables

    def local_loss_and_gradients(batch: Batch, total_weight: tf.Tensor) -> tuple:
        with tf.GradientTape() as tape:
            logits = model(batch["image"], training=True)
            loss = batch_loss(logits, batch, model_config, config, total_weight)
        return loss, tape.gradient(loss, variables)

    if config.jit_compile:
        local_loss_and_gradients = tf.function(
            local_loss_and_gradients, jit_compile=True, autograph=False
        )

    def replica_step(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        replicas = tf.distribute.get_replica_context()
        total_weight = replicas.all_reduce(
            tf.distribute.ReduceOp.SUM, tf.reduce_sum(batch["weight"])
        )
        loss, gradients = local_loss_and_gradients(batch, total_weight)
        gradients = replicas.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        norm = tf.linalg.global_norm(gradients)
        if config.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, config.clip_norm, use_norm=norm)
        optimizer.apply_gradients(
            zip(gradients, variables, strict=True), experimental_aggregate_gradients=False
        )
        return loss, norm

    @tf.function(autograph=False)
    def step(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        losses, norms = strategy.run(replica_step, (batch,))
        loss = strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)
        return loss, strategy.reduce(tf.distribute.ReduceOp.MEAN, norms, axis=None)

    return step


def make_evaluation(
    strategy: tf.distribute.Strategy,
    model: tf.keras.Model,
    model_config: ModelConfig,
    task: Task,
    files: Sequence[str],
    *,
    batch_size: int,
    progress: bool = False,
) -> Callable[[], tuple[CaseDice, ShownTile]]:
    """Returns the function that predicts every tile of a split and counts voxels by case.

    It also returns a tile to look at, the same each time: that with the most voxels of the last
    class that there is (a liver's tumour), then of the one before.

    Args:
      strategy: shares each batch among its replicas.
      model: network from raw intensities to logits.
      model_config: says how logits become classes.
      task: what the records hold.
      files: record files whose patches tile their volumes exactly.
      batch_size: tiles a batch, a multiple of the replicas.
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

    tiles = strategy.experimental_distribute_dataset(
        evaluation_dataset(files, task, batch_size=batch_size)
    )

    def evaluate() -> tuple[CaseDice, ShownTile]:
        found, shown, most = CaseDice(class_labels(task)), None, None
        for batch in tqdm(tiles, "evaluating", unit="batch", leave=False, disable=not progress):
            counted = count(batch)
            counts = counted["counts"].numpy()
            found.add(counted["case_id"].numpy(), counts)
            # Voxels of each class, the last class first.
            for row, voxels in enumerate(counts[:, model_config.classes - 2 :: -1, 2].tolist()):
                if most is None or voxels > most:
                    most, shown = voxels, _tile(counted, row)
        return found, shown

    return evaluate


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
