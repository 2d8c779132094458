"""What TFX's two Trainers run: `ahnet_tf.training` on the pipeline's records, then the export."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from tfx.components.trainer.fn_args_utils import FnArgs

from ahnet_tf.config import ModelConfig, TrainingConfig, from_dict
from ahnet_tf.devices import set_up_devices
from ahnet_tf.nets.checkpoint import save_network
from ahnet_tf.predictors import load_checkpoint
from ahnet_tf.training import train_network
from preprocessing.tasks import task_from_dict
from serving.export import export_model

# Beside the SavedModel in a model artifact: the same network for further training.
CHECKPOINT = "checkpoint"


def run_fn_2d(fn_args: FnArgs) -> None:
    """Trains and exports the 2D network; called by the component Trainer2D."""
    _train_and_export(fn_args, initial=None)


def run_fn_3d(fn_args: FnArgs) -> None:
    """Trains and exports the 3D network from the encoder of the base model; called by Trainer3D."""
    _train_and_export(fn_args, initial=Path(fn_args.base_model).parent / CHECKPOINT)


def _train_and_export(fn_args: FnArgs, initial: Path | None) -> None:
    """Leaves the SavedModel and a checkpoint in the model artifact, all else in the model run."""
    settings = fn_args.custom_config
    training = from_dict(TrainingConfig, settings["training"])
    set_up_devices(training.replicas)
    train_network(
        from_dict(ModelConfig, settings["model"]),
        training,
        task_from_dict(settings["task"]),
        _files(fn_args.train_files),
        _files(fn_args.eval_files),
        fn_args.model_run_dir,
        initial=initial,
    )
    network, export_settings = load_checkpoint(fn_args.model_run_dir)
    checkpoint = Path(fn_args.serving_model_dir).parent / CHECKPOINT
    save_network(checkpoint, network, export_settings.model)
    export_model(network, export_settings, fn_args.serving_model_dir)


def _files(patterns: list[str]) -> list[str]:
    return sorted(file for pattern in patterns for file in tf.io.gfile.glob(pattern))
