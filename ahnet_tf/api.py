"""What `import ahnet_tf` offers for notebooks and scripts: networks, data, prediction.

The commands use the same parts: see `ahnet_tf.train`, `ahnet_tf.predict` and `ahnet_tf.evaluate`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from ahnet_tf.config import AugmentationConfig, ModelConfig, TrainingConfig
from ahnet_tf.data.dataset import evaluation_dataset, training_dataset
from ahnet_tf.data.records import find_records
from ahnet_tf.networks.factory import build_network
from ahnet_tf.presets import check_settings, model_settings
from ahnet_tf.training.losses import VoxelLoss
from ahnet_tf.weights.checkpoint import save_network
from ahnet_tf.weights.transfer import TransferReport, transfer_encoder
from preprocessing.errors import ModelError, SettingsError
from preprocessing.files import write_json
from preprocessing.settings import check_seed, from_dict
from preprocessing.tasks import Task, load_task, records_task

SPLITS = ("train", "eval")


def build(
    architecture: str, *, task: Task | str | None = None, seed: int = 0, **settings: Any
) -> keras.Model:
    """Returns a new network as a Keras model, from raw intensities to logits.

    It maps float32 [batch, z, y, x, channel] of any size to float32 [batch, z, y, x, class].

    Args:
      architecture: "ahnet", "mcgcn", "unet2d" or "unet3d".
      task: name of a preset, JSON file or `Task`, from which number of classes, intensity window and
        activation follow.
      seed: seed of the initial weights.
      settings: attributes of `ahnet_tf.config.ModelConfig`, for example `classes=3` or `width=0.25`.

    Raises:
      SettingsError: an unknown setting (the nearest name is suggested), a value out of range, or an
        activation that the task's loss does not train.
    """
    of_task = {} if task is None else model_settings(load_task(task))
    chosen = of_task | settings | {"architecture": architecture}
    config = from_dict(ModelConfig, chosen, "build")
    if task is not None and config.activation != of_task["activation"] and config.classes > 1:
        expected = f"{of_task['activation']}, which ahnet_tf.loss of this task trains"
        remedy = "A network of two classes with one output (classes=1) may have a sigmoid."
        raise SettingsError("activation", expected, config.activation, remedy)
    return build_network(config, seed=seed)


def dataset(
    records: str | os.PathLike,
    split: str = "train",
    *,
    batch_size: int = 2,
    seed: int = 0,
    augment: bool | AugmentationConfig = False,
) -> tf.data.Dataset:
    """Returns the patches of a record folder for `fit` and `evaluate` of a Keras model.

    Training patches are shuffled, endless (give `fit` its `steps_per_epoch`) and augmented if asked
    for; evaluation patches come once, in order.

    Args:
      records: folder written by `convert_cases` or `python -m preprocessing.convert`.
      split: "train" or "eval".
      batch_size: patches per batch.
      seed: seed of order and augmentation.
      augment: True for the default magnitudes, or the magnitudes.

    Returns:
      A dataset of image [b, z, y, x, 1] float32 (raw intensities), target [b, z, y, x] (uint8 classes,
      or a float32 heat map) and voxel weight [b, z, y, x] float32 (0 outside the volume).

    Raises:
      InputError: no records, or damaged ones.
      SettingsError: an unknown split, or a seed out of range.
    """
    check_seed(seed, "seed")
    if split not in SPLITS:
        raise SettingsError("split", f"one of {', '.join(SPLITS)}", split)
    task = records_task(Path(records))
    files = find_records(Path(records) / split)
    if split == "eval":
        batches = evaluation_dataset(files, task, batch_size=batch_size)
    else:
        chosen = AugmentationConfig() if augment is True else augment or None
        batches = training_dataset(files, task, batch_size=batch_size, seed=seed, augment=chosen)
    target = "heat_map" if task.target == "heat_map" else "label"
    return batches.map(lambda batch: (batch["image"], batch[target], batch["weight"]))


def loss(
    task: Task | str,
    kind: str = "focal",
    *,
    gamma: float = 2.0,
    class_weights: Sequence[float] | None = None,
) -> VoxelLoss:
    """Returns a loss of logits for `compile` that fits the targets of a task.

    Args:
      task: name of a preset, JSON file or `Task`; one with a heat map gets the sigmoid form, other ones that
        of a softmax, or of a network with one output.
      kind: "focal", "cross_entropy" or, for heat maps, "heat_map_l2".
      gamma: focusing exponent of the focal loss.
      class_weights: a factor for each class; for a heat map those of voxels without and with a lesion.

    Raises:
      SettingsError: another kind, or weights or a kind that don't fit the task.
    """
    own = load_task(task)
    weights = None if class_weights is None else [float(weight) for weight in class_weights]
    given = {"loss": kind, "gamma": gamma, "class_weights": weights}
    config = from_dict(TrainingConfig, given, "loss")
    if kind == "dice_focal":
        remedy = "Soft Dice is not a loss of single voxels; python -m ahnet_tf.train has it."
        raise SettingsError("loss", "focal, cross_entropy or heat_map_l2", kind, remedy)
    check_settings(ModelConfig(**model_settings(own)), config, own)
    heat_map = own.target == "heat_map"
    return VoxelLoss(kind, gamma=gamma, class_weights=weights, heat_map=heat_map)


def transfer(source: keras.Model, target: keras.Model) -> TransferReport:
    """Copies the encoder of a 2D network into a 3D one; see `ahnet_tf.weights.transfer`.

    Raises:
      ModelError: weights without a partner or of another shape, all of them listed.
    """
    return transfer_encoder(source, target)


def save(model: keras.Model, folder: str | os.PathLike, task: Task | str) -> None:
    """Writes a network from `build` as a checkpoint that `load` and the commands read.

    Raises:
      ModelError: not a network from `build`, or one that doesn't fit the task.
    """
    own = load_task(task)
    save_network(Path(folder), model, config_of(model, own))
    write_json(Path(folder) / "task.json", own.to_dict())


def config_of(model: keras.Model, task: Task) -> ModelConfig:
    """Returns the settings of a network from `build`, checked against the task."""
    config = getattr(model, "network_config", None)
    if config is None:
        remedy = "Build a new one, and set its weights."
        raise ModelError(model.name, "a network from ahnet_tf.build", "another model", remedy)
    check_settings(config, TrainingConfig(), task)
    return config
