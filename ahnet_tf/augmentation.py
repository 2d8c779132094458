"""Random changes of training patches that keep labels true; a function of the seed alone."""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from preprocessing.tasks import Task


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
