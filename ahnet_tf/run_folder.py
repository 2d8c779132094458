"""A training's folder: claimed with its settings, its best network kept, its end recorded.

model.json, weights   the network of the best evaluation so far (a checkpoint folder); without any
                      evaluation that of the last step
last/                 the network of the last step, once the run is complete
checkpoints/          all that a killed run needs to go on: weights, optimizer, step
training.json         settings
task.json             what the records hold
history.csv           loss, learning rate, Dice, throughput
tensorboard/          the same for TensorBoard, with pictures of the evaluations
overlay.png           the last evaluation's prediction of one tile, if there was any
curves.png            the history as curves, once the run is complete
evaluation.json       Dice per case of the best evaluation, if there was any
transfer.txt          which start weights came from another network, if any
result.json           the summary; it says that the run is complete
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import tensorflow as tf

from ahnet_tf.case_dice import CaseDice, mean_over_classes
from ahnet_tf.config import ModelConfig, TrainingConfig, to_dict
from ahnet_tf.nets.checkpoint import save_network
from preprocessing.errors import ModelError, SettingsError
from preprocessing.files import without_nan, write_json
from preprocessing.tasks import Task

# Settings that may differ when a killed run goes on: they don't change what is learned.
FREE_SETTINGS = ("replicas", "log_every", "checkpoint_every", "jit_compile")


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended.

    Attributes:
      output: the run's folder, which holds the network of `best_step`.
      architecture: of the network.
      parameters: its trainable weights.
      steps: optimizer steps made.
      best_step: step of the best evaluation (highest mean Dice over the foreground classes), or the
        last one where nothing was evaluated.
      dice: mean Dice per case at that step, by class name; NaN where no case has the class; empty
        where nothing was evaluated.
      undefined: cases without a Dice, by class name.
      loss: mean loss over the last logged steps.
      seconds: time spent training and evaluating, without what was repeated after a kill.
      patches_per_second: median over the logged steps.
      voxels_per_second: the same in voxels.
      waiting_share: mean share of the steps' time spent waiting for data.
    """

    output: str
    architecture: str
    parameters: int
    steps: int
    best_step: int
    dice: dict[str, float]
    undefined: dict[str, int]
    loss: float
    seconds: float
    patches_per_second: float
    voxels_per_second: float
    waiting_share: float


class State(tf.Module):
    """What a checkpoint keeps besides weights and optimizer."""

    def __init__(self):
        super().__init__()
        self.step = tf.Variable(0, dtype=tf.int64)
        self.best_step = tf.Variable(0, dtype=tf.int64)
        self.best_dice = tf.Variable(-1.0, dtype=tf.float64)
        self.seconds = tf.Variable(0.0, dtype=tf.float64)


def claim_folder(
    output: Path, model_config: ModelConfig, config: TrainingConfig, task: Task
) -> None:
    """Writes the settings into the run's folder, or checks that the run there has the same.

    Raises:
      SettingsError: a run with other settings has begun there.
    """
    settings = {"model": to_dict(model_config), "training": to_dict(config)}
    settings["task"] = task.to_dict()
    path = output / "training.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        for section, wanted in settings.items():
            for name, value in wanted.items():
                found = before.get(section, {}).get(name)
                if name not in FREE_SETTINGS and found != value:
                    raise SettingsError(
                        path,
                        f"a run with the {section} setting {name} = {value}",
                        found,
                        "Choose another output folder, or the settings that run began with.",
                    )
    write_json(path, settings)
    write_json(output / "task.json", task.to_dict())


def restore(manager: tf.train.CheckpointManager) -> None:
    """Restores the newest checkpoint.

    Raises:
      ModelError: it is of another network.
    """
    path = manager.latest_checkpoint
    try:
        manager.checkpoint.restore(path).assert_existing_objects_matched()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        raise ModelError(
            path,
            "a checkpoint of this network",
            str(error).split("\n")[0],
            "Choose another output folder to train from the start.",
        ) from None


def keep_best(
    found: CaseDice,
    state: State,
    model: tf.keras.Model,
    model_config: ModelConfig,
    output: Path,
) -> dict[str, float]:
    """Saves the network if it is the best so far; returns the history's Dice columns."""
    summary = found.summary()
    mean = mean_over_classes(summary["dice"])
    if mean > float(state.best_dice):
        save_network(output, model, model_config)
        content = without_nan(summary) | {"step": int(state.step)}
        write_json(output / "evaluation.json", content)
        state.best_dice.assign(mean)
        state.best_step.assign(state.step)
    return {
        f"{kind}_{name}": value
        for kind in ("dice", "undefined")
        for name, value in summary[kind].items()
    }


def write_result(path: Path, result: TrainingResult) -> None:
    """Writes the summary that says that a run is complete."""
    write_json(path, without_nan(asdict(result)))


def read_result(path: Path) -> TrainingResult:
    """Returns the summary of a complete run."""
    content = json.loads(path.read_text(encoding="utf-8"))
    dice = {name: math.nan if value is None else value for name, value in content["dice"].items()}
    return TrainingResult(**content | {"dice": dice})
