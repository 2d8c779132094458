"""What TFX's Tuner runs: short trainings of the 3D network at several learning rates."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attrs
import keras_tuner
from keras_tuner.engine.base_tuner import BaseTuner
from keras_tuner.errors import FatalError
from tfx.components.trainer.fn_args_utils import FnArgs
from tfx.components.tuner.component import TunerFnResult

from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.training.distribution import check_alone, set_up_devices
from ahnet_tf.training.trainer import train_network
from ahnet_tf.training.validation import mean_over_classes
from pipeline.components.trainer import record_files
from preprocessing.settings import from_dict
from preprocessing.tasks import Task, task_from_dict

OBJECTIVE = "dice"
# Rates from a quarter of the setting to four times it.
FACTOR = 4.0


@dataclass(frozen=True)
class Trials:
    """What all trials have in common.

    Attributes:
      model: the network.
      training: the recipe, its steps those of a trial.
      task: what the records hold.
      train_files: record files of the training split.
      eval_files: record files of the evaluation split.
      initial: folder of the network that each starts from.
    """

    model: ModelConfig
    training: TrainingConfig
    task: Task
    train_files: Sequence[str]
    eval_files: Sequence[str]
    initial: str | None


class TrainingTuner(BaseTuner):
    """Keras Tuner's loop around `ahnet_tf.training.trainer`: a trial is a whole, short training.

    Args:
      trials: what they have in common.
      oracle: decides on the learning rates.
      directory: where trainings and trials go.
    """

    def __init__(self, trials: Trials, oracle: keras_tuner.Oracle, directory: Path):
        self._trials = trials
        super().__init__(oracle=oracle, directory=str(directory), project_name="trials")

    def run_trial(self, trial: Any) -> dict[str, float]:
        """Trains at the trial's learning rate; the best mean Dice over classes is its score.

        Raises:
          FatalError: the training failed, from its own error; Keras Tuner would go on after others.
        """
        trials = self._trials
        rate = trial.hyperparameters.get("learning_rate")
        output = Path(self.get_trial_dir(trial.trial_id)) / "training"
        try:
            result = train_network(
                trials.model,
                attrs.evolve(trials.training, learning_rate=rate),
                trials.task,
                trials.train_files,
                trials.eval_files,
                output,
                initial=trials.initial,
            )
        except Exception as error:
            raise FatalError("a trial failed") from error
        shutil.rmtree(output)
        return {OBJECTIVE: max(0.0, mean_over_classes(result.dice))}


def tuner_fn(fn_args: FnArgs) -> TunerFnResult:
    """Returns the search that TFX's Tuner runs: random learning rates on a logarithmic scale.

    Raises:
      SettingsError: TF_CONFIG describes several workers, whom no trial would reach.
    """
    check_alone("Tuner")
    settings = fn_args.custom_config
    training = from_dict(TrainingConfig, settings["training"])
    set_up_devices(training.replicas)
    space = keras_tuner.HyperParameters()
    rate = training.learning_rate
    space.Float(
        "learning_rate",
        rate / FACTOR,
        rate * FACTOR,
        sampling="log",
        default=training.learning_rate,
    )
    oracle = keras_tuner.oracles.RandomSearchOracle(
        objective=keras_tuner.Objective(OBJECTIVE, "max"),
        max_trials=settings["trials"],
        seed=training.seed,
        hyperparameters=space,
    )
    trials = Trials(
        from_dict(ModelConfig, settings["model"]),
        training,
        task_from_dict(settings["task"]),
        record_files(fn_args.train_files),
        record_files(fn_args.eval_files),
        fn_args.base_model,
    )
    return TunerFnResult(TrainingTuner(trials, oracle, Path(fn_args.working_dir)), {})
