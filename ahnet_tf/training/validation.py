"""Dice per case and class while training, from tiles that cover each evaluation volume exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from preprocessing.tasks import Task

FOREGROUND = "foreground"


def class_labels(task: Task) -> list[str]:
    """Returns what Dice is computed for: every class but the background, then their union.

    The union (label >= 1) is the organ with its lesions, which LiTS calls the liver mask; it is
    left out where there is one foreground class only.
    """
    names = list(task.class_names[1:])
    return [*names, FOREGROUND] if len(names) > 1 else names


def tile_counts(
    label: tf.Tensor, predicted: tf.Tensor, weight: tf.Tensor, classes: int
) -> tf.Tensor:
    """Counts voxels of tiles, exactly.

    Args:
      label: true classes [b, z, y, x], any whole type.
      predicted: predicted classes [b, z, y, x].
      weight: [b, z, y, x]; voxels of weight 0 don't count.
      classes: number of classes, background included.

    Returns:
      int64 [b, len(class_labels), 3]: voxels in both, in `predicted`, in `label`.
    """
    inside = weight > 0
    label, predicted = tf.cast(label, tf.int32), tf.cast(predicted, tf.int32)
    masks = [(tf.equal(label, k), tf.equal(predicted, k)) for k in range(1, classes)]
    if classes > 2:
        masks.append((label > 0, predicted > 0))
    counts = [
        tf.stack(
            [
                tf.math.count_nonzero(mask & inside, axis=(1, 2, 3))
                for mask in (true & found, found, true)
            ],
            axis=-1,
        )
        for true, found in masks
    ]
    return tf.stack(counts, axis=1)


@dataclass
class CaseDice:
    """Voxel counts of each case, and the Dice that follows.

    Attributes:
      names: what Dice is computed for (see `class_labels`).
      counts: by case id, int64 [name, 3]: voxels in both, predicted, true.
    """

    names: list[str]
    counts: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, case_ids: np.ndarray, counts: np.ndarray) -> None:
        """Adds the counts [b, name, 3] of a batch of tiles to their cases."""
        for case, tile in zip(case_ids, counts, strict=True):
            case_id = case.decode()
            self.counts[case_id] = self.counts.get(case_id, 0) + tile

    def per_case(self) -> dict[str, dict[str, float]]:
        """Returns Dice by case and name; NaN where neither mask has a voxel."""
        return {
            case_id: {
                name: 2 * both / (found + true) if found + true else math.nan
                for name, (both, found, true) in zip(self.names, counts.tolist(), strict=True)
            }
            for case_id, counts in sorted(self.counts.items())
        }

    def summary(self) -> dict[str, Any]:
        """Returns the mean Dice by name over the cases that have one, and how many have none."""
        cases = self.per_case()
        dice, undefined = {}, {}
        for name in self.names:
            defined = [case[name] for case in cases.values() if not math.isnan(case[name])]
            dice[name] = sum(defined) / len(defined) if defined else math.nan
            undefined[name] = len(cases) - len(defined)
        return {"dice": dice, "undefined": undefined, "cases": cases}


def mean_over_classes(dice: dict[str, float]) -> float:
    """Returns the mean of the defined values of the classes, their union left out; 0 if none is."""
    values = [v for name, v in dice.items() if name != FOREGROUND and not math.isnan(v)]
    return sum(values) / len(values) if values else 0.0
