"""The train state: network, optimizer, averages and progress; created, restored, saved."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf

from ahnet_tf.config import IMAGENET, ModelConfig, TrainingConfig
from ahnet_tf.keras_versions import tensorflow_variables
from ahnet_tf.networks import build_network, named_weights
from ahnet_tf.networks.factory import precision
from ahnet_tf.training.checkpoints import (
    CHECKPOINTS,
    KEPT,
    finished_checkpoints,
    remove_unfinished,
    restore,
)
from ahnet_tf.training.optimizer import Adam, WeightAverage, make_optimizer
from ahnet_tf.weights.checkpoint import load_network
from ahnet_tf.weights.importing import import_network
from ahnet_tf.weights.keras_resnet50 import imagenet_file
from ahnet_tf.weights.transfer import TransferReport, transfer_encoder, transfer_weights
from preprocessing.errors import SettingsError
from preprocessing.files import atomic_write


class Progress(tf.Module):
    """Step, best score and unfinished history row of a training."""

    def __init__(self):
        super().__init__()
        self.step = tf.Variable(0, dtype=tf.int64)  # finished steps, int64
        # Score of the best evaluation (see `validation.measure_of`), float64; its name in checkpoints.
        self.best_dice = tf.Variable(-1.0, dtype=tf.float64)
        # Seconds spent training and evaluating up to the last row of the history, float64.
        self.seconds = tf.Variable(0.0, dtype=tf.float64)
        self.logged = tf.Variable(0, dtype=tf.int64)  # step of the last row of the history, int64
        # Sums of loss, gradient norm and skipped steps since that row, float32 [3].
        self.sums = tf.Variable(tf.zeros(3))
        # Seconds since that row, and those spent waiting for data, float64 [2].
        self.interval_seconds = tf.Variable(tf.zeros(2, tf.float64))


@dataclass(frozen=True)
class TrainState:
    """Model plus all checkpointed training state; `manager` saves it, and knows the last checkpoint."""

    model: keras.Model
    optimizer: Adam
    average: WeightAverage | None
    progress: Progress
    manager: tf.train.CheckpointManager

    def ema_weights(self) -> contextlib.AbstractContextManager:
        """Gives the network its averaged weights, if there are any, inside a context."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def loss_scale(self) -> float | None:
        """Returns the current loss scale of float16; None in other precisions."""
        scale = self.optimizer.loss_scale
        return None if scale is None else float(scale.numpy())


def make_train_state(
    strategy: tf.distribute.Strategy,
    model_config: ModelConfig,
    config: TrainingConfig,
    output: Path,
    own: Path,
    initial: keras.Model | str | Path | None,
    say: Callable[[str], None],
) -> TrainState:
    """Returns the train state of a new run, or of one that resumes from its last checkpoint.

    Checkpoints are read from the run's folder `output` and written to `own`, which is the same for
    the chief. `initial` (see `train_network`) is used where there is no checkpoint yet; `say` prints
    a line. Raises ModelError if `initial` or the checkpoints don't fit.
    """
    with strategy.scope(), precision(config.precision):
        model = build_network(model_config, seed=config.seed)
    resumes = bool(finished_checkpoints(output / CHECKPOINTS))
    if initial is not None and not resumes:
        report = start_from(initial, model)
        say(f"{output}: start weights: {report.summary()}")
        with atomic_write(own / "transfer.txt") as temporary:
            temporary.write_text(f"{report}\n", encoding="utf-8")
    optimizer = make_optimizer(strategy, model, config)
    average = WeightAverage(strategy, model, config.ema_momentum) if config.ema_momentum else None
    progress = Progress()
    # Names are the same in Keras 2 and 3, the network's object graph is not.
    names, variables = zip(*named_weights(model).items(), strict=True)
    weights = dict(zip(names, tensorflow_variables(variables), strict=True))
    parts = {"weights": weights, "optimizer": optimizer, "state": progress}
    if average is not None:
        parts["average"] = average
    checkpoint = tf.train.Checkpoint(**parts)
    if resumes:
        restore(checkpoint, output / CHECKPOINTS, say)
        say(f"{output}: resuming after step {int(progress.step)}")
    manager = tf.train.CheckpointManager(checkpoint, str(own / CHECKPOINTS), KEPT)
    remove_unfinished(manager)
    return TrainState(model, optimizer, average, progress, manager)


def start_from(initial: keras.Model | str | Path, model: keras.Model) -> TransferReport:
    """Gives `model` the weights of another network by name, or its encoder's; returns a report.

    `initial` is as in `train_network`. A network of the same architecture gives all, or with other
    classes those that don't depend on their number. Raises ModelError if the weights don't fit, SettingsError if they were trained for
    another prior of the foreground.
    """
    if initial == IMAGENET:
        network, _, _ = import_network(imagenet_file(), model.network_config)
        return transfer_encoder(network, model)
    network = initial if isinstance(initial, keras.Model) else load_network(initial)[0]
    report = transfer_weights(network, model)
    given, wanted = (each.network_config.foreground_prior for each in (network, model))
    if report is not None and not report.fresh and given != wanted:
        expected = f"{given:g}, as in the network to start from"
        remedy = f"Set foreground_prior to {given:g}."
        raise SettingsError("foreground_prior", expected, wanted, remedy)
    return report or transfer_encoder(network, model)
