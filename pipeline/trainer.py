"""What TFX's two Trainers run: `ahnet_tf.training` on the pipeline's records, and the export."""

from __future__ import annotations

import tensorflow as tf
from tfx.components.trainer.fn_args_utils import FnArgs

from ahnet_tf.config import ModelConfig, TrainingConfig, from_dict
from ahnet_tf.devices import set_up_devices
from ahnet_tf.nets.checkpoint import save_network
from ahnet_tf.predictors import ExportSettings, load_checkpoint
from ahnet_tf.training import train_network
from preprocessing.tasks import task_from_dict
from serving.export import export_model


def run_fn_2d(fn_args: FnArgs) -> None:
    """Trains the 2D network, called by Trainer2D; its model artifact is a checkpoint folder.

    It is no SavedModel: nothing but Trainer3D uses it.
    """
    network, settings = _train(fn_args, initial=None)
    save_network(fn_args.serving_model_dir, network, settings.model)


def run_fn_3d(fn_args: FnArgs) -> None:
    """Trains the 3D network from the encoder of the base model and exports it, called by Trainer3D."""
    network, settings = _train(fn_args, initial=fn_args.base_model)
    export_model(network, settings, fn_args.serving_model_dir)


def _train(fn_args: FnArgs, initial: str | None) -> tuple[tf.keras.Model, ExportSettings]:
    """Trains in the model run artifact and returns the best network."""
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
    return load_checkpoint(fn_args.model_run_dir)


def _files(patterns: list[str]) -> list[str]:
    return sorted(file for pattern in patterns for file in tf.io.gfile.glob(pattern))
