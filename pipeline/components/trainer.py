"""What TFX's two Trainers run: `ahnet_tf.training.trainer` on the pipeline's records, and the export."""

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
from ahnet_tf.training.distribution import set_up_devices, workers_of
from ahnet_tf.training.run_folder import FREE_SETTINGS
from ahnet_tf.training.trainer import train_network
from pipeline.training_job import make_job
from pipeline.training_process import train_as_chief
from preprocessing.errors import PipelineError
from preprocessing.files import write_json
from preprocessing.settings import from_dict
from preprocessing.tasks import task_from_dict
from serving.export.exporter import export_model

# Beside a 3D model's export: the network itself, for a later run to go on from.
CHECKPOINT = "checkpoint"


def run_fn_2d(fn_args: FnArgs) -> None:
    """Trains the 2D network, called by Trainer2D; its model artifact is a checkpoint folder.

    It is no SavedModel: nothing but Trainer3D uses it.
    """
    work = working_folder(fn_args)
    network, settings = _train(fn_args, work, initial=None)
    save_network(fn_args.serving_model_dir, network, settings.model)
    _hand_over(work, Path(fn_args.model_run_dir))


def run_fn_3d(fn_args: FnArgs) -> None:
    """Trains the 3D network from the base model and exports it, called by Trainer3D.

    The base model is Trainer2D's, whose encoder is transferred, or an earlier export of this
    function, all of whose weights are taken.

    Raises:
      PipelineError: a warm start without a model to start from.
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
    _hand_over(work, Path(fn_args.model_run_dir))


def training_of(fn_args: FnArgs) -> dict[str, Any]:
    """Returns the settings of the training with those that a tuner has found."""
    training = dict(fn_args.custom_config["training"])
    if fn_args.hyperparameters:
        training |= fn_args.hyperparameters["values"]
    return training


def working_folder(fn_args: FnArgs) -> Path:
    """Returns where a training works: a folder that the next run of the same training finds again.

    TFX removes the output folders of a component that fails. This one lies beside them and is named
    after all that decides the training, so that a run after a crash goes on from its checkpoints.
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
    """Returns the record files that TFX names by patterns."""
    return sorted(file for pattern in patterns for file in tf.io.gfile.glob(pattern))


def _train(
    fn_args: FnArgs, work: Path, initial: str | None
) -> tuple[tf.keras.Model, ExportSettings]:
    """Trains in the working folder, with the other workers of TF_CONFIG; returns the best network."""
    settings = fn_args.custom_config
    training = from_dict(TrainingConfig, training_of(fn_args))
    arguments = (
        from_dict(ModelConfig, settings["model"]),
        training,
        task_from_dict(settings["task"]),
        record_files(fn_args.train_files),
        record_files(fn_args.eval_files),
        work,
    )
    if workers_of().count > 1:
        train_as_chief(make_job(*arguments, initial))
    else:
        set_up_devices(training.replicas)
        train_network(*arguments, initial=initial)
    return load_checkpoint(work)


def _hand_over(work: Path, model_run: Path) -> None:
    """Moves all that a finished training wrote into the model run artifact."""
    model_run.mkdir(parents=True, exist_ok=True)
    for path in work.iterdir():
        shutil.move(path, model_run / path.name)
    work.rmdir()
