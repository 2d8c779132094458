"""Exports a trained network as a SavedModel that TF Serving, TFMA and the client can use."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.cli import make_parser, run_command
from preprocessing.errors import ModelError, SettingsError
from preprocessing.files import atomic_write, write_json

if TYPE_CHECKING:
    import tensorflow as tf

    from ahnet_tf.inference.predictor import ExportSettings


def export_model(
    model: tf.keras.Model,
    settings: ExportSettings,
    output: str | Path,
    *,
    precision: str = "float32",
    onnx: str | Path | None = None,
) -> Path:
    """Writes a network as a SavedModel in TF Serving's layout; it appears whole or not at all.

    The signatures are those of `signatures.build_signatures`. Beside the graph lie
    `assets.extra/ahnet.json` (the settings) and `assets.extra/tf_serving_warmup_requests`
    (PredictionLog records).

    Args:
      model: float32 raw intensities [batch, z, y, x, channel] -> logits [batch, z, y, x, class].
      settings: what the network was trained for.
      output: the SavedModel folder, for a server DIR/VERSION with a whole number. An earlier
        export there is replaced.
      precision: what the export computes in, "float32" or "bfloat16" (weights too), whatever the
        network was trained in.
      onnx: also write `predict_windows` as this ONNX file.

    Returns:
      `output` as a Path.

    Raises:
      ModelError: the network, its configuration and the task contradict each other.
    """
    import tensorflow as tf

    from ahnet_tf.inference.predictor import SETTINGS_FILE
    from serving.export.signatures import build_signatures
    from serving.export.warm_up import write_warm_up

    _check(model, settings, output)
    settings = dataclasses.replace(settings, precision=precision)
    network = _in_precision(model, settings)
    module, signatures = build_signatures(network, settings)
    with atomic_write(output) as folder:
        tf.saved_model.save(module, str(folder), signatures=signatures)
        write_json(folder / SETTINGS_FILE, settings.to_dict())
        write_warm_up(
            folder,
            window_shape_zyx=settings.window_shape_zyx,
            channels=settings.model.channels,
            image_dtype=settings.task.image_dtype,
        )
        if onnx is not None:
            from serving.export.onnx import export_onnx

            export_onnx(network, settings, onnx)
    return Path(output)


def next_version(folder: str | Path) -> int:
    """Returns the lowest version number above all numbered folders in `folder`, from 1."""
    path = Path(folder)
    children = path.iterdir() if path.is_dir() else ()
    return max((int(child.name) for child in children if child.name.isdigit()), default=0) + 1


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m serving.export`."""
    parser = make_parser(
        "serving.export",
        "Exports a trained network as a SavedModel for TF Serving and python -m serving.server.",
        [
            "python -m serving.export --model run/ahnet --output models/ahnet",
            "python -m serving.export --model run/ahnet --output models/ahnet --version 7",
            "python -m serving.export --model run/ahnet --output models/fast --precision bfloat16",
            "python -m serving.export --model run/ahnet --output models/ahnet --onnx ahnet.onnx",
        ],
    )
    parser.add_argument(
        "--model", required=True, metavar="DIR", help="checkpoint folder (with model.json)"
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder of versions; the model goes to DIR/N"
    )
    parser.add_argument(
        "--version", type=int, metavar="N", help="version number (default: one above the newest)"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="what the export computes in: bfloat16 takes less time and memory, and rounds more "
        "coarsely (default %(default)s)",
    )
    parser.add_argument(
        "--onnx", metavar="FILE", help="also write the network for ONNX runtimes; in float32 only"
    )
    arguments = parser.parse_args(argv)
    return run_command(_run, arguments)


def _run(arguments: argparse.Namespace) -> None:
    from ahnet_tf.inference.predictor import load_checkpoint

    version = arguments.version
    if version is None:
        version = next_version(arguments.output)
    if version < 1:
        raise SettingsError("--version", "a whole number from 1", version)
    output = Path(arguments.output) / str(version)
    if output.exists():
        raise SettingsError(
            output,
            "a version that is not there yet",
            f"version {version}",
            f"Servers notice new numbers only: use --version {next_version(arguments.output)}.",
        )
    if arguments.onnx is not None and arguments.precision != "float32":
        raise SettingsError("--onnx", "--precision float32 with it", arguments.precision)
    model, settings = load_checkpoint(arguments.model)
    exported = export_model(
        model, settings, output, precision=arguments.precision, onnx=arguments.onnx
    )
    print(exported)
    if arguments.onnx is not None:
        print(arguments.onnx)


def _check(model: tf.keras.Model, settings: ExportSettings, output: str | Path) -> None:
    config, task = settings.model, settings.task
    if config.classes != len(task.class_names):
        raise ModelError(
            output,
            f"a network with {len(task.class_names)} classes, as in task {task.name!r}",
            f"{config.classes} classes",
        )
    found = (model.input_shape[-1], model.output_shape[-1])
    if found != (config.channels, config.classes):
        raise ModelError(
            output,
            f"a network with {config.channels} channels and {config.classes} classes",
            f"{found[0]} and {found[1]}",
        )


def _in_precision(model: tf.keras.Model, settings: ExportSettings) -> tf.keras.Model:
    """Returns the network itself, or built again if it computes in another precision than asked for."""
    import tensorflow as tf

    layers = [layer for layer in model.submodules if isinstance(layer, tf.keras.layers.Layer)]
    computed_in = {layer.compute_dtype for layer in layers}
    if settings.precision == "float32" and computed_in <= {"float32"}:
        return model
    from ahnet_tf.networks import build_network
    from ahnet_tf.networks.factory import precision

    with precision(settings.precision):
        network = build_network(settings.model)
    network.set_weights(model.get_weights())
    return network


if __name__ == "__main__":
    sys.exit(main())
