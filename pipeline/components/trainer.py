"""The functions of TFX's two Trainers: train on the pipeline's records, then export the network."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tfx.components.trainer.fn_args_utils import FnArgs

from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.inference.predictor import ExportSettings, load_checkpoint
from ahnet_tf.networks.checkpoint import save_network
from ahnet_tf.training.distribution import check_alone, set_up_devices
from ahnet_tf.training.run_folder import FREE_SETTINGS, TrainingResult
from ahnet_tf.training.trainer import train_network
from preprocessing.errors import PipelineError
from preprocessing.files import write_json
from preprocessing.settings import from_dict
from preprocessing.tasks import task_from_dict
from serving.export.exporter import export_model

# Folder of the trained network beside a 3D model's export, for warm starts.
CHECKPOINT = "checkpoint"


def run_fn_2d(fn_args: FnArgs) -> None:
    """Trains the 2D network for Trainer2D; the model artifact is a checkpoint, not a SavedModel."""
    work = working_folder(fn_args)
    network, settings = _train(fn_args, work, initial=None)
    save_network(fn_args.serving_model_dir, network, settings.model)
    _move_to_model_run(work, fn_args)


def run_fn_3d(fn_args: FnArgs) -> None:
    """Trains the 3D network for Trainer3D and exports it.

    The base model is either Trainer2D's, whose encoder is transferred, or for a warm start an
    earlier output of this function, of which all weights are taken.

    Raises:
      PipelineError: there is no base model.
    """
    base = fn_args.base_model
    if base is None:
        raise PipelineError(
            "warm start",
            "a blessed model that has not seen this data",
            "none",
            "Run the pipeline without --warm-start first.",
        )
    earlier = Path(base).parent / CHECKPOINT
    work = working_folder(fn_args)
    network, settings = _train(fn_args, work, initial=str(earlier) if earlier.is_dir() else base)
    checkpoint = Path(fn_args.serving_model_dir).parent / CHECKPOINT
    save_network(checkpoint, network, settings.model)
    write_json(checkpoint / "task.json", settings.task.to_dict())
    export_model(network, settings, fn_args.serving_model_dir)
    _move_to_model_run(work, fn_args)


def training_of(fn_args: FnArgs) -> dict[str, Any]:
    """Returns the training settings, with the values that a Tuner found."""
    training = dict(fn_args.custom_config["training"])
    if fn_args.hyperparameters:
        training |= fn_args.hyperparameters["values"]
    return training


def train(
    fn_args: FnArgs, training: TrainingConfig, output: Path, initial: str | None
) -> TrainingResult:
    """Trains the network that TFX's arguments describe in the folder `output`."""
    settings = fn_args.custom_config
    return train_network(
        from_dict(ModelConfig, settings["model"]),
        training,
        task_from_dict(settings["task"]),
        record_files(fn_args.train_files),
        record_files(fn_args.eval_files),
        output,
        initial=initial,
    )


def working_folder(fn_args: FnArgs) -> Path:
    """Returns the folder in which a training works, the same for each run of the same training.

    TFX removes the output folders of a component that fails. This folder lies beside them and is
    named after everything that determines the training, so that the next run resumes from its
    checkpoints.
    """
    training = training_of(fn_args)
    content: Mapping[str, Any] = fn_args.custom_config | {
        "training": {name: training[name] for name in training if name not in FREE_SETTINGS},
        "files": [sorted(fn_args.train_files), sorted(fn_args.eval_files)],
        "base_model": fn_args.base_model,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    return Path(fn_args.model_run_dir).parents[1] / "unfinished" / key


def record_files(patterns: list[str]) -> list[str]:
    """Returns the record files that match TFX's patterns."""
    return sorted(tf.io.gfile.glob(patterns))


def _train(
    fn_args: FnArgs, work: Path, initial: str | None
) -> tuple[tf.keras.Model, ExportSettings]:
    """Trains in the working folder and returns the best network."""
    check_alone("Trainer")
    training = from_dict(TrainingConfig, training_of(fn_args))
    set_up_devices(training.replicas)
    train(fn_args, training, work, initial)
    return load_checkpoint(work)


def _move_to_model_run(work: Path, fn_args: FnArgs) -> None:
    """Moves the files of a finished training to the model run artifact."""
    model_run = Path(fn_args.model_run_dir)
    model_run.mkdir(parents=True, exist_ok=True)
    for path in work.iterdir():
        shutil.move(path, model_run / path.name)
    work.rmdir()
