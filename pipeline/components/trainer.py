"""The functions of TFX's Trainers and Tuner: train on the pipeline's records, export the network."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import attrs
import keras
import keras_tuner
import tensorflow as tf
from keras_tuner.errors import FatalError
from tfx.components.trainer.fn_args_utils import FnArgs
from tfx.components.tuner.component import TunerFnResult

from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.inference.predictor import ExportSettings, load_checkpoint
from ahnet_tf.training.distribution import check_alone, set_up_devices
from ahnet_tf.training.run_folder import FREE_SETTINGS, TrainingResult
from ahnet_tf.training.trainer import train_network
from ahnet_tf.weights.checkpoint import save_network
from preprocessing.errors import PipelineError
from preprocessing.files import write_json
from preprocessing.settings import from_dict
from preprocessing.tasks import task_from_dict
from serving.export.exporter import export_model

# Folder of the trained network beside a 3D model's export, for warm starts.
CHECKPOINT = "checkpoint"
OBJECTIVE = "score"
# The Tuner tries learning rates from a quarter of the setting to four times it.
FACTOR = 4.0


def run_fn_2d(fn_args: FnArgs) -> None:
    """Trains the 2D network for Trainer2D; the model artifact is a checkpoint, not a SavedModel."""
    work = working_folder(fn_args)
    network, settings = _train_in(work, fn_args, initial=None)
    save_network(fn_args.serving_model_dir, network, settings.model)
    _move_to_model_run(work, fn_args)


def run_fn_3d(fn_args: FnArgs) -> None:
    """Trains the 3D network for Trainer3D and exports it.

    The base model is Trainer2D's, whose encoder is transferred, or for a warm start an earlier output
    of this function, of which all weights are taken. Raises PipelineError without a base model.
    """
    base = fn_args.base_model
    if base is None:
        expected = "a blessed model for these records that has not seen this data"
        remedy = "Run the pipeline without --warm-start first."
        raise PipelineError("warm start", expected, "none", remedy)
    earlier = Path(base).parent / CHECKPOINT
    work = working_folder(fn_args)
    network, settings = _train_in(work, fn_args, str(earlier) if earlier.is_dir() else base)
    checkpoint = Path(fn_args.serving_model_dir).parent / CHECKPOINT
    save_network(checkpoint, network, settings.model)
    write_json(checkpoint / "task.json", settings.task.to_dict())
    export_model(network, settings, fn_args.serving_model_dir)
    _move_to_model_run(work, fn_args)


class LearningRateSearch(keras_tuner.RandomSearch):
    """Keras Tuner's random search, in which each trial is a whole, short training."""

    def __init__(self, fn_args: FnArgs, training: TrainingConfig, **options: Any):
        self._fn_args, self._training = fn_args, training
        super().__init__(**options)

    def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Returns the score by which networks are chosen, at a trial's learning rate.

        Raises FatalError if the training failed: Keras Tuner goes on after any other error.
        """
        learning_rate = trial.hyperparameters.get("learning_rate")
        training = attrs.evolve(self._training, learning_rate=learning_rate)
        output = Path(self.get_trial_dir(trial.trial_id)) / "training"
        try:
            result = _train(self._fn_args, training, output, self._fn_args.base_model)
        except Exception as error:
            raise FatalError("a trial failed") from error
        shutil.rmtree(output)
        return {OBJECTIVE: max(0.0, result.score)}


def tuner_fn(fn_args: FnArgs) -> TunerFnResult:
    """Returns the search that TFX's Tuner runs: random learning rates on a logarithmic scale.

    Raises SettingsError if TF_CONFIG describes several workers; a trial uses one.
    """
    check_alone("Tuner")
    training = from_dict(TrainingConfig, fn_args.custom_config["training"])
    set_up_devices(training.replicas)
    space = keras_tuner.HyperParameters()
    rate = training.learning_rate
    space.Float("learning_rate", rate / FACTOR, rate * FACTOR, sampling="log", default=rate)
    search = LearningRateSearch(
        fn_args,
        training,
        objective=keras_tuner.Objective(OBJECTIVE, "max"),
        max_trials=fn_args.custom_config["trials"],
        seed=training.seed,
        hyperparameters=space,
        directory=fn_args.working_dir,
        project_name="trials",
    )
    return TunerFnResult(search, {})


def working_folder(fn_args: FnArgs) -> Path:
    """Returns the folder in which a training works, the same for each run of the same training.

    TFX removes the output folders of a component that fails. This folder lies beside them and is
    named after everything that determines the training, so that the next run resumes from its
    checkpoints.
    """
    training = _tuned(fn_args)
    content = fn_args.custom_config | {
        "training": {name: training[name] for name in training if name not in FREE_SETTINGS},
        "files": [sorted(fn_args.train_files), sorted(fn_args.eval_files)],
        "base_model": fn_args.base_model,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return Path(fn_args.model_run_dir).parents[1] / "unfinished" / key


def record_files(patterns: list[str]) -> list[str]:
    """Returns the record files that match TFX's patterns."""
    return sorted(tf.io.gfile.glob(patterns))


def _tuned(fn_args: FnArgs) -> dict[str, Any]:
    """Returns the training settings, with the values that a Tuner found."""
    found = (fn_args.hyperparameters or {}).get("values", {})
    return fn_args.custom_config["training"] | found


def _train_in(
    work: Path, fn_args: FnArgs, initial: str | None
) -> tuple[keras.Model, ExportSettings]:
    """Trains in the working folder and returns the best network."""
    check_alone("Trainer")
    training = from_dict(TrainingConfig, _tuned(fn_args))
    set_up_devices(training.replicas)
    _train(fn_args, training, work, initial)
    return load_checkpoint(work)


def _train(
    fn_args: FnArgs, training: TrainingConfig, output: Path, initial: str | None
) -> TrainingResult:
    return train_network(
        from_dict(ModelConfig, fn_args.custom_config["model"]),
        training,
        task_from_dict(fn_args.custom_config["task"]),
        record_files(fn_args.train_files),
        record_files(fn_args.eval_files),
        output,
        initial=initial,
    )


def _move_to_model_run(work: Path, fn_args: FnArgs) -> None:
    """Moves the files of a finished training to the model run artifact."""
    model_run = Path(fn_args.model_run_dir)
    model_run.mkdir(parents=True, exist_ok=True)
    for path in work.iterdir():
        shutil.move(path, model_run / path.name)
    work.rmdir()
