"""Losses from logits [batch, z, y, x, class], computed in float32 whatever comes in.

Each loss exists per voxel, as [batch, z, y, x] (`softmax_focal`, `sigmoid_focal`, `heat_map_l2`), or per
case, as [batch] (`soft_dice`). `weighted_mean` makes it a scalar, and the functions named `..._loss` are
just that. To reduce exactly over replicas, divide each replica's part of `weighted_sums` by the weight
sum of all replicas.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

TINY = 1e-12


def weighted_sums(
    values: tf.Tensor, weights: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns sum(values * weights) and sum(weights), float32 scalars; no weights count as ones."""
    if weights is None:
        weights = tf.ones_like(values)
    weights = tf.cast(weights, values.dtype)
    return tf.reduce_sum(values * weights), tf.reduce_sum(weights)


def weighted_mean(values: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """Returns sum(values * weights) / sum(weights), and 0 where no weight is above 0."""
    total, weight = weighted_sums(values, weights)
    return tf.math.divide_no_nan(total, weight)


def class_targets(
    labels: tf.Tensor, classes: int, label_smoothing: float = 0.0, exclusive: bool = True
) -> tf.Tensor:
    """Returns float32 targets [batch, z, y, x, class].

    Args:
      labels: int class numbers [batch, z, y, x]; for one class 0 or 1, or a heat map in [0, 1]; or
        soft targets [batch, z, y, x, class], which pass.
      classes: number of classes.
      label_smoothing: s: targets t become t * (1 - s) + s / classes, or + s / 2 if not exclusive.
      exclusive: whether the classes share one softmax.
    """
    labels = tf.convert_to_tensor(labels)
    if labels.shape.rank == 5:
        targets = tf.cast(labels, tf.float32)
    elif classes == 1:
        targets = tf.cast(labels, tf.float32)[..., tf.newaxis]
    else:
        targets = tf.one_hot(tf.cast(labels, tf.int32), classes, dtype=tf.float32)
    share = classes if exclusive else 2
    return targets * (1 - label_smoothing) + label_smoothing / share


def softmax_focal(
    labels: tf.Tensor,
    logits: tf.Tensor,
    *,
    gamma: float = 2.0,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> tf.Tensor:
    """Softmax focal loss per voxel, float32 [batch, z, y, x]; gamma 0 is cross-entropy.

    FL = -sum_k w_k t_k (1 - p_k)^gamma log p_k, p = softmax(logits) (Lin et al. 2017, equation 5, for
    exclusive classes).

    Args:
      labels: int [batch, z, y, x], or soft targets [batch, z, y, x, class].
      logits: [batch, z, y, x, class], any float dtype.
      gamma: focusing exponent, at least 0.
      class_weights: one weight a class.
      label_smoothing: share of the target spread over all classes.
    """
    logits = tf.cast(logits, tf.float32)
    targets = class_targets(labels, logits.shape[-1], label_smoothing)
    log_p = tf.nn.log_softmax(logits)
    terms = -targets * _power(1 - tf.exp(log_p), gamma) * log_p
    if class_weights is not None:
        terms *= tf.constant(class_weights, tf.float32)
    return tf.reduce_sum(terms, axis=-1)


def sigmoid_focal(
    labels: tf.Tensor,
    logits: tf.Tensor,
    *,
    gamma: float = 2.0,
    class_weights: Sequence[float] | None = None,
    label_smoothing: float = 0.0,
) -> tf.Tensor:
    """Sigmoid focal loss per voxel, summed over classes, float32 [batch, z, y, x].

    FL = |t - p|^gamma CE(t, p), p = sigmoid(logits): for targets 0 and 1 the focal loss of Lin et al.
    2017, equation 5, for soft ones its continuation (Li et al. 2020, equation 3), least at p = t.

    Args:
      labels: int [batch, z, y, x]; or soft targets [batch, z, y, x, class], or [batch, z, y, x] for
        one class.
      logits: [batch, z, y, x, class], any float dtype.
      gamma: focusing exponent, at least 0; 0 is cross-entropy.
      class_weights: one weight a class; for one class its background's and its own (1 - alpha, alpha).
      label_smoothing: share of the target moved to 1/2.
    """
    logits = tf.cast(logits, tf.float32)
    classes = logits.shape[-1]
    targets = class_targets(labels, classes, label_smoothing, exclusive=False)
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=targets, logits=logits)
    terms = _power(targets - tf.sigmoid(logits), gamma) * entropy
    return tf.reduce_sum(terms * _independent_weights(targets, class_weights), axis=-1)


def heat_map_l2(
    labels: tf.Tensor, logits: tf.Tensor, *, class_weights: Sequence[float] | None = None
) -> tf.Tensor:
    """Squared error of sigmoid(logits) against a heat map, summed over classes, [batch, z, y, x].

    The paper's other loss for lesion detection. Labels and weights as in `sigmoid_focal`.
    """
    logits = tf.cast(logits, tf.float32)
    targets = class_targets(labels, logits.shape[-1])
    terms = tf.square(tf.sigmoid(logits) - targets)
    return tf.reduce_sum(terms * _independent_weights(targets, class_weights), axis=-1)


def soft_dice(
    labels: tf.Tensor,
    logits: tf.Tensor,
    *,
    voxel_weights: tf.Tensor | None = None,
    exclusive: bool = True,
) -> tf.Tensor:
    """1 - soft Dice per case, averaged over the foreground classes, float32 [batch].

    Dice_k = (2 sum p t + 1) / (sum p + sum t + 1) over the voxels of a case (Milletari et al. 2016
    with plain sums). With `exclusive` p is the softmax and class 0 background; otherwise p is the
    sigmoid and every class counts.
    """
    logits = tf.cast(logits, tf.float32)
    targets = class_targets(labels, logits.shape[-1])
    p = tf.nn.softmax(logits) if exclusive else tf.sigmoid(logits)
    if exclusive:
        p, targets = p[..., 1:], targets[..., 1:]
    if voxel_weights is not None:
        weights = tf.cast(voxel_weights, tf.float32)[..., tf.newaxis]
        p, targets = p * weights, targets * tf.cast(weights > 0, tf.float32)
    axes = [1, 2, 3]
    overlap = tf.reduce_sum(p * targets, axes)
    sizes = tf.reduce_sum(p, axes) + tf.reduce_sum(targets, axes)
    return tf.reduce_mean(1 - (2 * overlap + 1) / (sizes + 1), axis=-1)


def softmax_focal_loss(labels, logits, *, voxel_weights=None, **settings) -> tf.Tensor:
    """Mean of `softmax_focal` over voxels, weighted by `voxel_weights` [batch, z, y, x]; a scalar."""
    return weighted_mean(softmax_focal(labels, logits, **settings), voxel_weights)


def sigmoid_focal_loss(labels, logits, *, voxel_weights=None, **settings) -> tf.Tensor:
    """Mean of `sigmoid_focal` over voxels, weighted by `voxel_weights` [batch, z, y, x]; a scalar."""
    return weighted_mean(sigmoid_focal(labels, logits, **settings), voxel_weights)


def heat_map_l2_loss(labels, logits, *, voxel_weights=None) -> tf.Tensor:
    """Mean of `heat_map_l2` over voxels, weighted by `voxel_weights` [batch, z, y, x]; a scalar."""
    return weighted_mean(heat_map_l2(labels, logits), voxel_weights)


def dice_focal_loss(labels, logits, *, voxel_weights=None, exclusive=True, **settings) -> tf.Tensor:
    """Mean `soft_dice` over cases plus the focal loss, softmax if `exclusive`, else sigmoid; a scalar."""
    focal = softmax_focal_loss if exclusive else sigmoid_focal_loss
    dice = soft_dice(labels, logits, voxel_weights=voxel_weights, exclusive=exclusive)
    return tf.reduce_mean(dice) + focal(labels, logits, voxel_weights=voxel_weights, **settings)


def _independent_weights(
    targets: tf.Tensor, class_weights: Sequence[float] | None
) -> tf.Tensor | float:
    """Returns the weight of each term of a loss with a sigmoid a class (see `sigmoid_focal`)."""
    if class_weights is None:
        return 1.0
    if targets.shape[-1] > 1:
        return tf.constant(class_weights, tf.float32)
    background, foreground = class_weights
    return targets * foreground + (1 - targets) * background


def _power(distance: tf.Tensor, gamma: float) -> tf.Tensor:
    """Returns |distance|^gamma with a finite gradient at 0 for every gamma."""
    return tf.pow(tf.square(distance) + TINY, gamma / 2)
