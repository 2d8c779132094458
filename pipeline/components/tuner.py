"""The function of TFX's Tuner: short trainings of the 3D network at several learning rates."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import keras_tuner
from keras_tuner.errors import FatalError
from tfx.components.trainer.fn_args_utils import FnArgs
from tfx.components.tuner.component import TunerFnResult

from ahnet_tf.config import TrainingConfig
from ahnet_tf.training.distribution import check_alone, set_up_devices
from ahnet_tf.training.validation import mean_over_classes
from pipeline.components.trainer import train
from preprocessing.settings import from_dict

OBJECTIVE = "dice"
# Rates from a quarter of the setting to four times it.
FACTOR = 4.0


class LearningRateSearch(keras_tuner.RandomSearch):
    """Keras Tuner's random search, in which each trial is a whole, short training.

    Args:
      score: trains at a learning rate in a folder and returns the mean Dice over classes.
      options: of `keras_tuner.RandomSearch`.
    """

    def __init__(self, score: Callable[[float, Path], float], **options: Any):
        self._score = score
        super().__init__(**options)

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Returns the score of a trial's learning rate.

        Raises:
          FatalError: the training failed. Keras Tuner ignores other errors and starts another trial.
        """
        output = Path(self.get_trial_dir(trial.trial_id)) / "training"
        try:
            score = self._score(trial.hyperparameters.get("learning_rate"), output)
        except Exception as error:
            raise FatalError("a trial failed") from error
        shutil.rmtree(output)
        return {OBJECTIVE: max(0.0, score)}


def tuner_fn(fn_args: FnArgs) -> TunerFnResult:
    """Returns the search that TFX's Tuner runs: random learning rates on a logarithmic scale.

    Raises:
      SettingsError: TF_CONFIG describes several workers; a trial uses one.
    """
    check_alone("Tuner")
    training = from_dict(TrainingConfig, fn_args.custom_config["training"])
    set_up_devices(training.replicas)

    def score(learning_rate: float, output: Path) -> float:
        recipe = attrs.evolve(training, learning_rate=learning_rate)
        return mean_over_classes(train(fn_args, recipe, output, fn_args.base_model).dice)

    space = keras_tuner.HyperParameters()
    rate = training.learning_rate
    space.Float("learning_rate", rate / FACTOR, rate * FACTOR, sampling="log", default=rate)
    search = LearningRateSearch(
        score,
        objective=keras_tuner.Objective(OBJECTIVE, "max"),
        max_trials=fn_args.custom_config["trials"],
        seed=training.seed,
        hyperparameters=space,
        directory=fn_args.working_dir,
        project_name="trials",
    )
    return TunerFnResult(search, {})
