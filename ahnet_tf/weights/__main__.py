"""Imports weights of ResNet-50 or AH-Net from other programs as a checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs

from preprocessing.cli import make_parser, run_command

EXAMPLES = (
    "python -m ahnet_tf.weights import resnet50.safetensors --to imagenet2d",
    "python -m ahnet_tf.weights import monai_ahnet.npz --to liver --task ct_liver",
    "python -m ahnet_tf.weights import --weights imagenet --to imagenet2d",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m ahnet_tf.weights`; returns its exit code."""
    parser = make_parser(
        "ahnet_tf.weights",
        "Converts weights of ResNet-50 (Keras, torchvision) or of MONAI's AHNet to a checkpoint: a "
        "folder for training and, with --task, for export and prediction.",
        EXAMPLES,
    )
    commands = parser.add_subparsers(dest="action", required=True, metavar="import")
    command = commands.add_parser("import", help="read a weight file, write a checkpoint")
    add = command.add_argument
    add("file", nargs="?", metavar="FILE", help=".h5, .safetensors, .npz, or .pth (needs torch)")
    add("--weights", choices=["imagenet"], help="download Keras' ImageNet weights, without FILE")
    add("--to", required=True, metavar="FOLDER", help="the checkpoint to write")
    task_help = "preset or JSON file: what the classes are; decides classes and window of a network"
    add("--task", help=task_help)
    add("--config", help="model.json of the network whose encoder gets the ImageNet weights")
    add("--architecture", choices=["mcgcn", "ahnet"], help="without --config (default: mcgcn)")
    add("--classes", type=int, help="number of classes of a fresh decoder")
    window_help = "raw intensities that are scaled to -1 and +1"
    ends = ("LOW", "HIGH")
    add("--intensity-window", nargs=2, type=float, metavar=ends, help=window_help)
    add("--seed", type=int, default=0, help="seed of weights not in the file")
    add("--debug", action="store_true", default=argparse.SUPPRESS)
    return run_command(_run, parser.parse_args(argv))


def _run(arguments: argparse.Namespace) -> None:
    from ahnet_tf.config import ModelConfig, TrainingConfig
    from ahnet_tf.presets import check_settings, model_settings
    from ahnet_tf.weights.checkpoint import save_network
    from ahnet_tf.weights.importing import import_network
    from ahnet_tf.weights.keras_resnet50 import imagenet_file
    from preprocessing.errors import SettingsError
    from preprocessing.files import write_json
    from preprocessing.settings import load_settings
    from preprocessing.tasks import load_task

    if (arguments.file is None) == (arguments.weights is None):
        raise SettingsError("import", "FILE or --weights imagenet", "both or neither")
    task = load_task(arguments.task) if arguments.task else None
    config = ModelConfig(architecture="mcgcn", **(model_settings(task) if task else {}))
    if arguments.config:
        config = load_settings(arguments.config, ModelConfig)
    changes = {
        "architecture": arguments.architecture,
        "classes": arguments.classes,
        "intensity_window": arguments.intensity_window and tuple(arguments.intensity_window),
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    config = attrs.evolve(config, **changes)
    path = imagenet_file() if arguments.weights else arguments.file
    model, config, report = import_network(path, config, seed=arguments.seed)
    for name, value in changes.items():
        found = getattr(config, name)
        if found != value:
            option = f"--{name.replace('_', '-')}"
            raise SettingsError(option, f"{found}, as in {path}", value)
    if task:
        check_settings(config, TrainingConfig(), task)
    save_network(arguments.to, model, config)
    if task:
        write_json(Path(arguments.to) / "task.json", task.to_dict())
    print(report)
    print(f"written: {arguments.to} ({config.architecture})")


if __name__ == "__main__":
    sys.exit(main())
