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

import contextlib
import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.networks.checkpoint import save_network
from ahnet_tf.training.validation import CaseDice, mean_over_classes
from ahnet_tf.training.workers import sum_over_workers, workers_of
from preprocessing.errors import SettingsError
from preprocessing.files import remove_stale_temporaries, without_nan, write_json
from preprocessing.settings import to_dict
from preprocessing.tasks import Task

CHECKPOINTS, HISTORY = "checkpoints", "history.csv"
EVALUATION, RESULT = "evaluation.json", "result.json"

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
    """What a checkpoint keeps besides weights and optimizer.

    Attributes:
      step: steps made, int64.
      best_step: step of the best evaluation, int64.
      best_dice: its mean Dice over the foreground classes, float64.
      seconds: spent training and evaluating up to the last row of the history, float64.
      logged: step of the last row of the history, int64.
      sums: of loss, gradient norm and steps left out, since that row, float32 [3].
      interval_seconds: since that row, and how many of them were spent waiting for data, float64 [2].
    """

    def __init__(self):
        super().__init__()
        self.step = tf.Variable(0, dtype=tf.int64)
        self.best_step = tf.Variable(0, dtype=tf.int64)
        self.best_dice = tf.Variable(-1.0, dtype=tf.float64)
        self.seconds = tf.Variable(0.0, dtype=tf.float64)
        self.logged = tf.Variable(0, dtype=tf.int64)
        self.sums = tf.Variable(tf.zeros(3))
        self.interval_seconds = tf.Variable(tf.zeros(2, tf.float64))


@contextlib.contextmanager
def own_folder(output: Path, chief: bool) -> Iterator[Path]:
    """Yields where a worker writes: the chief into the run's folder, another one where nothing stays.

    What a killed chief left half-written is removed.
    """
    if chief:
        for folder in (output, output / "last"):
            remove_stale_temporaries(folder)
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="ahnet-worker-") as folder:
        yield Path(folder)


def complete_for_all(strategy: tf.distribute.Strategy, output: Path) -> bool:
    """Whether the run is complete; waits until all workers are here.

    Raises:
      SettingsError: they do not see the same in the run's folder.
    """
    complete = (output / RESULT).is_file()
    newest = tf.train.latest_checkpoint(str(output / CHECKPOINTS)) or "-0"
    own = np.array([complete, int(newest.rsplit("-", 1)[1])], np.int64)
    if (sum_over_workers(strategy, own) != own * workers_of().count).any():
        raise SettingsError(
            output,
            "the same folder for all workers",
            "other checkpoints here than elsewhere",
            "Give all workers the same --output, on a disk that all of them see.",
        )
    return complete


def claim_folder(
    output: Path, own: Path, model_config: ModelConfig, config: TrainingConfig, task: Task
) -> None:
    """Checks that a run that has begun in the folder has the same settings, and writes them.

    Args:
      output: the run's folder.
      own: where this process writes; `output` itself for the chief.
      model_config: the network.
      config: the recipe.
      task: what the records hold.

    Raises:
      SettingsError: a run with other settings has begun there.
    """
    settings = {"model": to_dict(model_config), "training": to_dict(config)}
    settings["task"] = task.to_dict()
    path = output / "training.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        defaults = {
            "model": to_dict(ModelConfig()),
            "training": to_dict(TrainingConfig()),
            "task": {},
        }
        for section, wanted in settings.items():
            for name, value in wanted.items():
                # A setting that did not exist yet had no effect: that is what its default means.
                found = before.get(section, {}).get(name, defaults[section].get(name))
                if name not in FREE_SETTINGS and found != value:
                    raise SettingsError(
                        path,
                        f"a run with the {section} setting {name} = {value}",
                        found,
                        "Choose another output folder, or the settings that run began with.",
                    )
    write_json(own / path.name, settings)
    write_json(own / "task.json", task.to_dict())


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
        write_json(output / EVALUATION, content)
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
