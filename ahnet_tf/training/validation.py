"""Evaluation while training, from tiles that cover each volume exactly: Dice per case, or FROC."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from ahnet_tf.config import ModelConfig
from ahnet_tf.data.dataset import evaluation_dataset
from ahnet_tf.networks.inputs import class_probabilities, foreground_logits
from ahnet_tf.training.detection_score import FROC, VolumeDetections
from ahnet_tf.training.distribution import sum_over_workers
from preprocessing.tasks import Task

FOREGROUND = "foreground"
MEAN_DICE = "mean_dice"

Batch = dict[str, tf.Tensor]


def class_labels(task: Task) -> list[str]:
    """Returns the names that Dice is computed for: every foreground class, then their union.

    The union (label >= 1) is the organ with its lesions, which LiTS calls the liver mask; it is
    omitted if there is only one foreground class.
    """
    names = list(task.class_names[1:])
    return [*names, FOREGROUND] if len(names) > 1 else names


def predicted_classes(logits: tf.Tensor, model_config: ModelConfig) -> tf.Tensor:
    """Returns the class of each voxel [b, z, y, x] int64 for logits [b, z, y, x, class].

    The most probable class; with a sigmoid the most probable foreground class if its probability is
    above 1/2, else background.
    """
    if model_config.activation == "softmax":
        return tf.argmax(logits, -1)
    foreground = foreground_logits(logits)
    best = tf.argmax(foreground, -1) + 1
    return tf.where(tf.reduce_max(foreground, -1) > 0, best, 0)


def tile_counts(
    label: tf.Tensor, predicted: tf.Tensor, weight: tf.Tensor, classes: int
) -> tf.Tensor:
    """Returns int64 [b, len(class_labels), 3]: the voxels in both, in `predicted` and in `label`.

    Both hold classes [b, z, y, x] of any whole type; voxels of weight [b, z, y, x] 0 don't count. The
    number of classes includes the background.
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
    """Voxel counts of each case, and the Dice computed from them."""

    names: list[str]  # see `class_labels`
    # By case id, int64 [name, 3]: voxels in both, predicted, true.
    counts: dict[str, np.ndarray] = field(default_factory=dict)
    detections: VolumeDetections | None = None  # where the target is a heat map

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
        """Returns the mean Dice by name over the cases where it is defined, and how many have none.

        With the `measure` by which networks are chosen (see `measure_of`) and its `score`, NaN if it
        is not defined.
        """
        cases = self.per_case()
        dice, undefined = {}, {}
        for name in self.names:
            defined = [case[name] for case in cases.values() if not math.isnan(case[name])]
            dice[name] = sum(defined) / len(defined) if defined else math.nan
            undefined[name] = len(cases) - len(defined)
        measure, score = MEAN_DICE, mean_over_classes(dice)
        if self.detections is not None:
            measure, score = FROC, self.detections.score()
        found = {"dice": dice, "undefined": undefined, "cases": cases}
        return found | {"measure": measure, "score": score}


def measure_of(task: Task) -> str:
    """Returns the measure by which the best network is chosen: FROC for heat maps, else mean Dice.

    The Dice of a heat map stays 0 until one of its peaks exceeds 0.5.
    """
    return FROC if task.target == "heat_map" else MEAN_DICE


def mean_over_classes(dice: dict[str, float]) -> float:
    """Returns the mean of the defined values of the classes without their union; 0 if there is none."""
    values = [v for name, v in dice.items() if name != FOREGROUND and not math.isnan(v)]
    return sum(values) / len(values) if values else 0.0


def make_evaluation(
    strategy: tf.distribute.Strategy,
    model: keras.Model,
    model_config: ModelConfig,
    task: Task,
    files: Sequence[str],
    *,
    batch_size: int,
    case_ids: Collection[str] = (),
    before_batch: Callable[[], None] = lambda: None,
    progress: bool = False,
) -> Callable[[], tuple[CaseDice, dict[str, np.ndarray]]]:
    """Returns the function that predicts every tile of a split and counts voxels by case.

    It also returns a tile to show, the same each time: the one with the most voxels of the last class
    (a liver's tumour), then of the class before; each worker chooses among its own tiles. It has
    `spacing_mm` and, of the part that counts, `image`, `label` and `prediction`, uint8 [z, y, x].

    The files hold patches that tile their volumes exactly; `batch_size` is a multiple of the replicas.
    Several workers, each of which sees some cases, need `case_ids` of all; where lesions are detected,
    in whole volumes, each sees all of them. `before_batch` may raise to end the evaluation.
    """
    detecting = measure_of(task) == FROC

    def replica_counts(batch: Batch) -> Batch:
        logits = model(batch["image"], training=False)
        if detecting:
            lesion = class_probabilities(logits, model_config.activation)[..., 1]
            batch = batch | {"probability": lesion}
        predicted = predicted_classes(logits, model_config)
        counts = tile_counts(batch["label"], predicted, batch["weight"], model_config.class_count)
        return batch | {"counts": counts, "prediction": tf.cast(predicted, tf.uint8)}

    @tf.function(autograph=False)
    def count(batch: Batch) -> Batch:
        found = strategy.run(replica_counts, (batch,))
        local = strategy.experimental_local_results
        return {name: tf.concat(local(values), 0) for name, values in found.items()}

    def tiles_of(context: tf.distribute.InputContext) -> tf.data.Dataset:
        workers = context.num_input_pipelines if detecting else 1
        if workers > 1:
            replicas = context.num_replicas_in_sync // workers
            context = tf.distribute.InputContext(num_replicas_in_sync=replicas)
        return evaluation_dataset(files, task, batch_size=batch_size // workers, context=context)

    tiles = strategy.distribute_datasets_from_function(tiles_of)

    def evaluate() -> tuple[CaseDice, dict[str, np.ndarray]]:
        found = CaseDice(class_labels(task), detections=VolumeDetections() if detecting else None)
        shown: dict[str, np.ndarray] = {}
        most = [-1]
        for batch in tqdm(tiles, "evaluating", unit="batch", leave=False, disable=not progress):
            before_batch()
            counted = count(batch)
            counts = counted["counts"].numpy()
            found.add(counted["case_id"].numpy(), counts)
            if found.detections is not None:
                found.detections.add({name: values.numpy() for name, values in counted.items()})
            # Voxels of each class, the last class first.
            for row, voxels in enumerate(counts[:, model_config.class_count - 2 :: -1, 2].tolist()):
                if voxels > most:
                    most = voxels
                    inside = tuple(map(slice, counted["valid_zyx"][row].numpy()))
                    names = ("image", "label", "prediction")
                    shown = {name: counted[name][row].numpy()[inside] for name in names}
                    shown["spacing_mm"] = counted["spacing_mm"][row].numpy()
        if detecting:
            return found, shown
        # The counts of all workers together.
        ids, zeros = sorted({*case_ids, *found.counts}), np.zeros((len(found.names), 3), np.int64)
        counts = np.stack([found.counts.get(case_id, zeros) for case_id in ids])
        counts = sum_over_workers(strategy, counts)
        return CaseDice(found.names, dict(zip(ids, counts, strict=True))), shown

    return evaluate
