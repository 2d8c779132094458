"""Losses from logits [batch, z, y, x, class], computed in float32 for inputs of any float dtype.

`softmax_focal`, `sigmoid_focal` and `heat_map_l2` return a value for each voxel, [batch, z, y, x],
`soft_dice` one for each case, [batch]. `ahnet_tf.training.train_step.batch_loss` reduces them.

All work on one plane for each class, float32 [batch, z, y, x]: on CPU, operations along an axis of two or
three classes take several times as long. Where they take `logits`, that is the tensor or its planes, which
several losses can then share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from ahnet_tf.networks.inputs import Logits, class_planes, log_softmax

TINY = 1e-12


def target_planes(labels: tf.Tensor, classes: int) -> list[tf.Tensor]:
    """Returns float32 targets [batch, z, y, x] for each class.

    Args:
      labels: int classes [batch, z, y, x]; 0 or 1, or a heat map in [0, 1], if there is one class; or
        soft targets [batch, z, y, x, class].
      classes: number of classes.
    """
    labels = tf.convert_to_tensor(labels)
    if labels.shape.rank == 5:
        return class_planes(labels)
    if classes == 1:
        return [tf.cast(labels, tf.float32)]
    return [tf.cast(tf.equal(labels, tf.cast(k, labels.dtype)), tf.float32) for k in range(classes)]


def voxel_loss(
    target: tf.Tensor,
    logits: Logits,
    *,
    kind: str,
    gamma: float,
    class_weights: Sequence[float] | None,
    exclusive: bool,
    heat_map: bool,
) -> tf.Tensor:
    """Returns the loss of each voxel, float32 [batch, z, y, x], of logits [batch, z, y, x, class].

    A heat map is the target of the lesion's output alone, since the background's output is not used
    for predictions either (see `class_probabilities`). The class weights then weigh voxels without and
    with a lesion, in proportion to the heat map.

    Args:
      target: classes or heat map [batch, z, y, x].
      logits: of any float dtype, or their planes.
      kind: one of `TrainingConfig.loss`; "dice_focal" is "focal" here.
      gamma: focusing exponent.
      class_weights: a weight for each class.
      exclusive: whether classes share a softmax.
      heat_map: whether the target is a heat map.
    """
    if heat_map:
        logits = foreground_planes(logits)
    if kind == "heat_map_l2":
        return heat_map_l2(target, logits, class_weights=class_weights)
    focal = softmax_focal if exclusive else sigmoid_focal
    gamma = 0.0 if kind == "cross_entropy" else gamma
    return focal(target, logits, gamma=gamma, class_weights=class_weights)


def foreground_planes(logits: Logits) -> list[tf.Tensor]:
    """Returns the planes of the foreground classes: all but the first, or a single one."""
    planes = class_planes(logits)
    return planes if len(planes) == 1 else planes[1:]


@keras.saving.register_keras_serializable("ahnet_tf")
class VoxelLoss(keras.losses.Loss):
    """`voxel_loss` for `compile`: classes with a softmax, or a heat map with sigmoids.

    Keras multiplies it by the voxel weights and divides by the number of voxels; `ahnet_tf.train`
    divides by the sum of the weights.
    """

    def __init__(
        self,
        kind: str = "focal",
        gamma: float = 2.0,
        class_weights: Sequence[float] | None = None,
        heat_map: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.settings: dict[str, Any] = {
            "kind": kind,
            "gamma": gamma,
            "class_weights": None if class_weights is None else list(class_weights),
            "heat_map": heat_map,
        }

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        """Returns the loss of each voxel."""
        exclusive = not self.settings["heat_map"] and y_pred.shape[-1] > 1
        return voxel_loss(y_true, y_pred, exclusive=exclusive, **self.settings)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return super().get_config() | self.settings


def uninformed_loss(
    *,
    kind: str,
    gamma: float,
    class_weights: Sequence[float] | None,
    classes: int,
    exclusive: bool,
    heat_map: bool,
) -> float:
    """Returns the largest loss of a voxel whose logits are all 0: every class seems equally likely.

    Arguments as in `voxel_loss`; "dice_focal" adds its largest soft Dice, 1.
    """
    target = tf.range(2 if heat_map or classes == 1 else classes)[
        tf.newaxis, tf.newaxis, tf.newaxis
    ]
    values = voxel_loss(
        tf.cast(target, tf.float32) if heat_map else target,
        tf.zeros((*target.shape, classes)),
        kind=kind,
        gamma=gamma,
        class_weights=class_weights,
        exclusive=exclusive,
        heat_map=heat_map,
    )
    return float(tf.reduce_max(values)) + (kind == "dice_focal")


def softmax_focal(
    labels: tf.Tensor,
    logits: Logits,
    *,
    gamma: float = 2.0,
    class_weights: Sequence[float] | None = None,
) -> tf.Tensor:
    """Softmax focal loss of each voxel, float32 [batch, z, y, x]; gamma 0 is cross-entropy.

    FL = -sum_k w_k t_k (1 - p_k)^gamma log p_k, p = softmax(logits) (Lin et al. 2017, equation 5, for
    exclusive classes).

    Args:
      labels: int [batch, z, y, x], or soft targets [batch, z, y, x, class].
      logits: [batch, z, y, x, class], any float dtype, or their planes.
      gamma: focusing exponent, at least 0.
      class_weights: a weight for each class.
    """
    log_probabilities = log_softmax(class_planes(logits))
    classes = len(log_probabilities)
    targets, weights = target_planes(labels, classes), class_weights or [1.0] * classes
    terms = [
        target * weight * _power(1 - tf.exp(log_p), gamma) * log_p
        for target, weight, log_p in zip(targets, weights, log_probabilities, strict=True)
    ]
    return -tf.add_n(terms)


def sigmoid_focal(
    labels: tf.Tensor,
    logits: Logits,
    *,
    gamma: float = 2.0,
    class_weights: Sequence[float] | None = None,
) -> tf.Tensor:
    """Sigmoid focal loss of each voxel, summed over classes, float32 [batch, z, y, x].

    FL = |t - p|^gamma CE(t, p), p = sigmoid(logits): for targets 0 and 1 the focal loss of Lin et al.
    2017, equation 5; for soft targets its continuation (Li et al. 2020, equation 3), least at p = t.

    Arguments as in `softmax_focal`. With one class, labels may also be soft targets [batch, z, y, x],
    and the weights are those of background and class.
    """

    def loss(target, logit):
        entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=logit)
        return _power(target - tf.sigmoid(logit), gamma) * entropy

    return _sum_of_classes(loss, labels, logits, class_weights)


def heat_map_l2(
    labels: tf.Tensor, logits: Logits, *, class_weights: Sequence[float] | None = None
) -> tf.Tensor:
    """Squared error of sigmoid(logits) against a heat map, summed over classes, [batch, z, y, x].

    The paper's other loss for lesion detection. Labels and weights as in `sigmoid_focal`.
    """

    def loss(target, logit):
        return tf.square(tf.sigmoid(logit) - target)

    return _sum_of_classes(loss, labels, logits, class_weights)


def soft_dice(
    labels: tf.Tensor,
    logits: Logits,
    *,
    voxel_weights: tf.Tensor | None = None,
    exclusive: bool = True,
) -> tf.Tensor:
    """1 - soft Dice of each case, averaged over the foreground classes, float32 [batch].

    Dice_k = (2 sum p t + 1) / (sum p + sum t + 1) over the voxels of a case (Milletari et al. 2016
    with plain sums). With `exclusive` p is the softmax and class 0 background; otherwise p is the
    sigmoid and every class counts.
    """
    planes = class_planes(logits)
    targets = target_planes(labels, len(planes))
    if exclusive:
        probabilities = [tf.exp(log_p) for log_p in log_softmax(planes)[1:]]
        targets = targets[1:]
    else:
        probabilities = [tf.sigmoid(plane) for plane in planes]
    if voxel_weights is not None:
        weights = tf.cast(voxel_weights, tf.float32)
        seen = tf.cast(weights > 0, tf.float32)
        probabilities = [p * weights for p in probabilities]
        targets = [target * seen for target in targets]
    losses = []
    for p, target in zip(probabilities, targets, strict=True):
        overlap = _sum_of_case(p * target)
        losses.append(1 - (2 * overlap + 1) / (_sum_of_case(p) + _sum_of_case(target) + 1))
    return tf.add_n(losses) / len(losses)


def _sum_of_case(values: tf.Tensor) -> tf.Tensor:
    """Returns the sums over z, y and x, [batch]."""
    return tf.reduce_sum(values, [1, 2, 3])


def _sum_of_classes(
    loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    labels: tf.Tensor,
    logits: Logits,
    class_weights: Sequence[float] | None,
) -> tf.Tensor:
    """Returns the weighted sum of a loss of each class's target and logit (see `sigmoid_focal`)."""
    planes = class_planes(logits)
    targets = target_planes(labels, len(planes))
    weights: Sequence[float | tf.Tensor] = class_weights or [1.0] * len(planes)
    if class_weights and len(planes) == 1:
        background, foreground = class_weights
        weights = [targets[0] * foreground + (1 - targets[0]) * background]
    return tf.add_n(
        [
            loss(target, plane) * weight
            for target, plane, weight in zip(targets, planes, weights, strict=True)
        ]
    )


def _power(distance: tf.Tensor, gamma: float) -> tf.Tensor:
    """Returns |distance|^gamma with a finite gradient at 0 for every gamma."""
    return tf.pow(tf.square(distance) + TINY, gamma / 2)
