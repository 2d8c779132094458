"""One training step under any tf.distribute strategy: loss, gradients, update."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import keras
import tensorflow as tf

from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.networks.dropout import dropout_seed
from ahnet_tf.networks.inputs import class_planes
from ahnet_tf.networks.recompute import recompute_blocks
from ahnet_tf.training.losses import foreground_planes, soft_dice, voxel_loss
from ahnet_tf.training.optimizer import Adam, WeightAverage

Batch = dict[str, tf.Tensor]


def make_train_step(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    optimizer: Adam,
    model_config: ModelConfig,
    config: TrainingConfig,
    average: WeightAverage | None = None,
) -> Callable[[Batch], tuple[tf.Tensor, tf.Tensor]]:
    """Returns the function that updates the weights with one batch.

    The loss is the weighted mean over the voxels of the whole batch. Replicas divide by the same
    weight sum, so N replicas compute what one would from the same batch.

    Args:
      strategy: shares the batch among its replicas.
      model: network from raw intensities to logits.
      optimizer: see `make_optimizer`.
      model_config: decides whether classes share a softmax.
      config: loss, clipping, precision, recomputation.
      average: of the weights, updated after each step.

    Returns:
      A function from a (distributed) batch of `training_dataset` to the loss and the global norm of
      its gradient before clipping, float32 scalars. With a loss scale the norm of a skipped step is
      not finite.
    """
    variables = model.trainable_variables
    memory = recompute_blocks if config.recompute else contextlib.nullcontext

    def local_loss_and_gradients(batch: Batch, total_weight: tf.Tensor) -> tuple:
        with tf.GradientTape() as tape:
            with memory():
                logits = model(batch["image"], training=True)
            loss = batch_loss(logits, batch, model_config, config, total_weight)
            target = optimizer.scaled(loss)
        return loss, tape.gradient(target, variables)

    if config.jit_compile:
        local_loss_and_gradients = tf.function(
            local_loss_and_gradients, jit_compile=True, autograph=False
        )

    def replica_step(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        replica = tf.distribute.get_replica_context()
        total_weight = replica.all_reduce(
            tf.distribute.ReduceOp.SUM, tf.reduce_sum(batch["weight"])
        )
        with dropout_seed(_step_seed(config, optimizer, replica)):
            loss, gradients = local_loss_and_gradients(batch, total_weight)
        gradients = replica.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        gradients = optimizer.unscaled(gradients)
        norm = tf.linalg.global_norm(gradients)
        if config.clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, config.clip_norm, use_norm=norm)
        optimizer.apply(gradients)
        if average is not None:
            average.update()
        return loss, norm

    @tf.function(autograph=False)
    def step(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        losses, norms = strategy.run(replica_step, (batch,))
        loss = strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)
        return loss, strategy.reduce(tf.distribute.ReduceOp.MEAN, norms, axis=None)

    return step


def batch_loss(
    logits: tf.Tensor,
    batch: Batch,
    model_config: ModelConfig,
    config: TrainingConfig,
    total_weight: tf.Tensor,
) -> tf.Tensor:
    """Returns a replica's share of the loss of the whole batch, a float32 scalar.

    Args:
      logits: [b, z, y, x, class] of the replica's patches.
      batch: the replica's `label` and `weight`, and `heat_map` if the task has one.
      model_config: decides whether classes share a softmax.
      config: loss, gamma and class weights.
      total_weight: sum of the weights of the whole batch, over all replicas.
    """
    exclusive = model_config.activation == "softmax"
    heat_map = "heat_map" in batch
    planes = class_planes(logits)
    target, weight = batch["heat_map" if heat_map else "label"], batch["weight"]
    values = voxel_loss(
        target,
        planes,
        kind=config.loss,
        gamma=config.gamma,
        class_weights=config.class_weights,
        exclusive=exclusive,
        heat_map=heat_map,
    )
    loss = tf.math.divide_no_nan(
        tf.reduce_sum(values * tf.cast(weight, values.dtype)), total_weight
    )
    if config.loss == "dice_focal":
        outputs = foreground_planes(planes) if heat_map else planes
        dice = soft_dice(target, outputs, voxel_weights=weight, exclusive=exclusive)
        loss += tf.reduce_sum(dice) / config.batch_size
    return loss


def _step_seed(
    config: TrainingConfig, optimizer: Adam, replica: tf.distribute.ReplicaContext
) -> tf.Tensor:
    """Returns the seed of a replica's step, int32 [2], from values that checkpoints keep."""
    fold_in = tf.random.experimental.stateless_fold_in
    seed = fold_in((config.seed, 2), tf.cast(optimizer.iterations, tf.int32))
    return fold_in(seed, replica.replica_id_in_sync_group)
