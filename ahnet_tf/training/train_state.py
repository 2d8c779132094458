"""All that changes while a network is trained, from the start weights or from a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.networks import build_network
from ahnet_tf.networks.checkpoint import load_network
from ahnet_tf.networks.transfer import transfer_encoder
from ahnet_tf.training.checkpoints import KEPT, finished_checkpoints, remove_unfinished, restore
from ahnet_tf.training.distribution import precision
from ahnet_tf.training.ema import WeightAverage
from ahnet_tf.training.optimizer import Optimizer, make_optimizer
from ahnet_tf.training.run_folder import CHECKPOINTS, State
from preprocessing.files import atomic_write


@dataclass(frozen=True)
class Learner:
    """A network on its way, and what its checkpoints keep besides it.

    Attributes:
      model: the network.
      optimizer: with its moments.
      average: of the weights, if they are averaged.
      state: the step and the like.
      manager: saves all of this, and knows the last checkpoint.
    """

    model: tf.keras.Model
    optimizer: Optimizer
    average: WeightAverage | None
    state: State
    manager: tf.train.CheckpointManager

    def kept_weights(self) -> contextlib.AbstractContextManager:
        """Gives the network the weights that are evaluated and kept, for a while."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def loss_scale(self) -> float:
        """Returns the factor on the loss of float16."""
        return float(self.optimizer.loss_scale)

    def save(self) -> None:
        """Writes a checkpoint of the step."""
        self.manager.save(int(self.state.step))


def make_learner(
    strategy: tf.distribute.Strategy,
    model_config: ModelConfig,
    config: TrainingConfig,
    output: Path,
    own: Path,
    initial: tf.keras.Model | str | Path | None,
    say: Callable[[str], None],
) -> Learner:
    """Returns the learner of a run that begins, or of one that goes on.

    Args:
      strategy: over whose replicas its variables are kept.
      model_config: the network.
      config: the recipe.
      output: the run's folder, with the checkpoints that there are.
      own: where this process writes; `output` itself for the chief.
      initial: see `train_network`; used where there is no checkpoint yet.
      say: is told what happens.

    Raises:
      ModelError: `initial` or the checkpoints don't fit.
    """
    with strategy.scope(), precision(config.precision):
        model = build_network(model_config, seed=config.seed)
    begun = bool(finished_checkpoints(output / CHECKPOINTS))
    if initial is not None and not begun:
        report = start_from(initial, model)
        with atomic_write(own / "transfer.txt") as temporary:
            temporary.write_text(f"{report}\n", encoding="utf-8")
    optimizer = make_optimizer(strategy, model, config)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "state": State()}
    average = None
    if config.ema_momentum:
        average = parts["average"] = WeightAverage(strategy, model, config.ema_momentum)
    checkpoint = tf.train.Checkpoint(**parts)
    if begun:
        restore(checkpoint, output / CHECKPOINTS, say)
        say(f"{output}: going on after step {int(parts['state'].step)}")
    manager = tf.train.CheckpointManager(checkpoint, str(own / CHECKPOINTS), KEPT)
    remove_unfinished(manager)
    return Learner(model, optimizer, average, parts["state"], manager)


def start_from(initial: tf.keras.Model | str | Path, model: tf.keras.Model) -> Any:
    """Gives `model` the weights of another network, all or its encoder's; returns the report.

    Raises:
      ModelError: the weights don't fit.
    """
    source = initial if isinstance(initial, tf.keras.Model) else load_network(initial)[0]
    if [w.shape for w in source.weights] != [w.shape for w in model.weights]:
        return transfer_encoder(source, model)
    for weight, value in zip(model.weights, source.get_weights(), strict=True):
        weight.assign(value)
    return f"all {len(model.weights)} weights taken from {source.name}"
