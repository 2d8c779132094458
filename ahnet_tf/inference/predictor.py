"""Inference back ends (TensorFlow, OpenVINO, a server) behind one interface."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from ahnet_tf.config import ModelConfig
from ahnet_tf.inference.openvino_runtime import OpenVINONetwork, is_preferred, networks_digest
from preprocessing.errors import ModelError, ServingError, SettingsError, named_extra
from preprocessing.quiet_start import quiet_saving
from preprocessing.settings import from_dict, load_settings, to_dict
from preprocessing.tasks import Task, load_task

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

# Where an exported SavedModel stores its `ExportSettings`; TensorFlow Serving ignores that folder.
SETTINGS_FILE = "assets.extra/ahnet.json"

# The signature for windows: float32 [batch, z, y, x, channel] -> [batch, z, y, x, class].
PREDICT_SIGNATURE = "predict_windows"
IMAGE_INPUT = "image"
PROBABILITIES_OUTPUT = "probabilities"

# What computes: "auto" is OpenVINO where it is installed and there is no GPU, else TensorFlow.
BACKENDS = ("auto", "tensorflow", "openvino")
PRECISIONS = ("float32", "bfloat16")

# Clients of servers register here (see setup.py), because `serving` may not be imported from here.
ENTRY_POINT_GROUP = "ahnet_tf.predictors"

_ADDRESS = re.compile(
    r"^(\[[0-9a-fA-F:]+\]|[^\s:/\\]+):\d{1,5}(/[\w.-]+(/versions/\d+|/labels/[\w.-]+)?)?$"
)


@attrs.frozen
class ExportSettings:
    """All that is needed to run a model, stored with every export."""

    task: Task  # classes, intensity window, spacing and dtype of the volumes it was trained on
    model: ModelConfig
    window_shape_zyx: tuple[int, int, int]  # in voxels, to predict with; the result depends on it
    versions: dict[str, str] = attrs.field(factory=dict)  # of the exporting packages, by name
    precision: str = "float32"  # or "bfloat16" arithmetic; probabilities are float32 in either case

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain JSON types."""
        return to_dict(self)


def settings_from_json(text: str | bytes, where: object) -> ExportSettings:
    """Returns `ExportSettings` from the JSON text of `ExportSettings.to_dict`.

    Raises ModelError for other texts than JSON and missing or unknown entries, SettingsError for a
    setting of the task or of the network that is out of range.
    """
    names = list(attrs.fields_dict(ExportSettings))
    try:
        content = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(where, "JSON settings of an exported model", error) from None
    if not isinstance(content, dict) or sorted(content) != sorted(names):
        found = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise ModelError(where, f"the entries {', '.join(names)}", found or "none")
    return from_dict(ExportSettings, content, where)


@dataclass(frozen=True)
class Predictor:
    """A network that is ready to predict.

    `predict` maps raw intensities [batch, z, y, x, channel] of any numeric dtype to float32
    probabilities [batch, z, y, x, class].
    """

    settings: ExportSettings  # what it was trained for
    predict: Callable[[np.ndarray], np.ndarray]
    in_flight: int = 1  # useful number of concurrent calls of `predict`; more than 1 for a server
    backend: str = "tensorflow"  # what computes; "server" for any server
    version: int | None = None  # of the model that a server answers with


def open_predictor(
    location: str | Path, *, backend: str = "tensorflow", precision: str | None = None
) -> Predictor:
    """Opens the network at `location`.

    That is a SavedModel folder, a folder of numbered SavedModel versions (the highest is taken), a
    checkpoint folder (`model.json`), or HOST:PORT or HOST:PORT/MODEL of a server. `backend` is one of
    `BACKENDS`; a server has its own. `precision` is that of the arithmetic, by default the network's
    own; another one needs OpenVINO. Raises ModelError for no model, a SavedModel that this project did
    not export, or a back end that is not installed or can't run it, SettingsError for a precision or
    back end that is not possible, and ServingError if the server does not answer or no client is
    installed.
    """
    if backend not in BACKENDS:
        raise SettingsError("backend", f"one of {', '.join(BACKENDS)}", backend)
    if precision not in (None, *PRECISIONS):
        raise SettingsError("precision", f"one of {', '.join(PRECISIONS)}", precision)
    folder = Path(location)
    if not folder.exists() and is_address(str(location)):
        for name, given in (("backend", backend == "openvino"), ("precision", precision)):
            if given:
                raise SettingsError(name, "none for a server, which has its own", given)
        clients = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
        if not clients:
            expected = f"an installed client (entry point group {ENTRY_POINT_GROUP})"
            remedy = "In a checkout, pip install '.[serving]' adds it."
            raise ServingError(location, expected, "none", remedy)
        with named_extra(ServingError):
            predictor = next(iter(clients)).load()(str(location))
        return dataclasses.replace(predictor, backend="server")
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing there"
        raise ModelError(location, "a SavedModel or checkpoint folder, or HOST:PORT", found)
    is_checkpoint = (folder / "model.json").is_file()
    folder = folder if is_checkpoint else _newest_version(folder)
    if backend == "openvino":
        return _open_with_openvino(folder, precision)
    if backend == "auto" and is_preferred():
        # Whatever OpenVINO can't read is TensorFlow's to run, or to explain.
        with contextlib.suppress(ModelError):
            return _open_with_openvino(folder, precision)
    own = (_checkpoint_settings if is_checkpoint else _export_settings)(folder).precision
    if precision not in (None, own):
        remedy = "With --backend openvino any of them is possible; or export it in this precision."
        raise SettingsError("precision", f"{own}, the network's own", precision, remedy)
    if is_checkpoint:
        return predictor_of(*load_checkpoint(folder), folder)
    return _open_saved_model(folder)


def is_address(location: str) -> bool:
    """Returns whether `location` is HOST:PORT or HOST:PORT/MODEL, with or without version or label."""
    return _ADDRESS.match(location) is not None


def _newest_version(folder: Path) -> Path:
    """Returns the SavedModel folder itself, or the highest numbered one in it."""
    if (folder / "saved_model.pb").is_file():
        return folder
    files = [file for file in folder.glob("*/saved_model.pb") if file.parent.name.isdigit()]
    if not files:
        found = ", ".join(sorted(child.name for child in folder.iterdir())[:5])
        expected = "saved_model.pb, numbered versions of it, or model.json of a checkpoint"
        raise ModelError(folder, expected, found or "an empty folder")
    return max((file.parent for file in files), key=lambda version: int(version.name))


def _export_settings(folder: Path) -> ExportSettings:
    path = folder / SETTINGS_FILE
    if not path.is_file():
        remedy = "It was exported by another program; export it with python -m serving.export."
        raise ModelError(folder, f"a SavedModel with {SETTINGS_FILE}", "none", remedy)
    return settings_from_json(path.read_bytes(), path)


def _open_saved_model(folder: Path) -> Predictor:
    settings = _export_settings(folder)
    import tensorflow as tf

    try:
        model = tf.saved_model.load(str(folder))
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise ModelError(folder, "a readable SavedModel", error) from None
    expected = f"the signature {PREDICT_SIGNATURE}({IMAGE_INPUT}) -> {PROBABILITIES_OUTPUT}"
    remedy = "Export it again with python -m serving.export."
    if PREDICT_SIGNATURE not in model.signatures:
        raise ModelError(folder, expected, ", ".join(model.signatures) or "no signature", remedy)
    signature = model.signatures[PREDICT_SIGNATURE]
    inputs, outputs = signature.structured_input_signature[1], signature.structured_outputs
    if list(inputs) != [IMAGE_INPUT] or PROBABILITIES_OUTPUT not in outputs:
        found = f"({', '.join(inputs)}) -> {', '.join(outputs)}"
        raise ModelError(folder, expected, found, remedy)

    def predict(windows: np.ndarray) -> np.ndarray:
        image = tf.constant(check_channels(windows, settings, folder), tf.float32)
        # Looked up in `model` each time to keep it alive: a signature does not own its variables.
        outputs = model.signatures[PREDICT_SIGNATURE](**{IMAGE_INPUT: image})
        return outputs[PROBABILITIES_OUTPUT].numpy()

    return Predictor(settings, predict)


def load_checkpoint(folder: str | Path) -> tuple[keras.Model, ExportSettings]:
    """Loads the network (raw intensities to logits) of a checkpoint, and the settings of its export.

    The folder has `model.json`, weights and `task.json`; windows have the task's patch shape.
    Raises ModelError if one is missing or does not fit, SettingsError for a setting that is out of
    range.
    """
    from ahnet_tf.weights.checkpoint import load_network

    settings = _checkpoint_settings(Path(folder))
    return load_network(folder)[0], settings


def _checkpoint_settings(folder: Path) -> ExportSettings:
    path = folder / "task.json"
    if not path.is_file():
        remedy = "Training writes one, and so does python -m ahnet_tf.weights import --task."
        raise ModelError(folder, "a checkpoint folder with task.json", "none", remedy)
    config = load_settings(folder / "model.json", ModelConfig)
    task = load_task(str(path))
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras")}
    return ExportSettings(task, config, task.patch_shape_zyx, versions)


def _open_with_openvino(folder: Path, precision: str | None) -> Predictor:
    """Opens an export or a checkpoint; TensorFlow is imported only if a checkpoint is not yet cached."""
    is_checkpoint = (folder / "model.json").is_file()
    settings = (_checkpoint_settings if is_checkpoint else _export_settings)(folder)
    if not is_checkpoint and settings.precision != "float32":
        expected = "an export in float32, which OpenVINO can read"
        remedy = "OpenVINO computes that one in bfloat16, too: --precision bfloat16."
        raise ModelError(folder, expected, settings.precision, remedy)
    code = networks_digest() if is_checkpoint else ""
    digest = hashlib.sha256(f"{content_digest(str(folder))} {code}".encode()).hexdigest()
    settings = attrs.evolve(settings, precision=precision or settings.precision)
    network = OpenVINONetwork(
        folder,
        digest,
        precision=settings.precision,
        window_shape=(*settings.window_shape_zyx, settings.model.channels),
        classes=settings.model.class_count,
        write_saved_model=functools.partial(_write_graph, folder)
        if is_checkpoint
        else lambda _: folder,
    )

    def predict(windows: np.ndarray) -> np.ndarray:
        return network(check_channels(windows, settings, folder))

    return Predictor(settings, predict, backend="openvino")


def _write_graph(checkpoint: Path, output: Path) -> Path:
    """Writes the network of a checkpoint as a SavedModel with one signature; returns its folder."""
    import tensorflow as tf

    from ahnet_tf.keras_versions import tensorflow_variables
    from ahnet_tf.networks.inputs import network_probabilities

    model, settings = load_checkpoint(checkpoint)
    windows = tf.TensorSpec([None] * 4 + [settings.model.channels], tf.float32, IMAGE_INPUT)

    @tf.function(input_signature=[windows], autograph=False)
    def probabilities(image: tf.Tensor) -> dict[str, tf.Tensor]:
        found = network_probabilities(model, image, settings.model.activation)
        return {PROBABILITIES_OUTPUT: found}

    module = tf.Module()
    module.network_variables = tensorflow_variables(model.variables)
    with quiet_saving():
        tf.saved_model.save(module, str(output), {"serving_default": probabilities})
    return output


def content_digest(location: str) -> str | None:
    """Returns the SHA-256 of a model's settings and weights; None if there is no folder.

    Those are the files that predictions depend on, and their names: of a checkpoint folder without the
    rest of its training (logs, pictures), of several SavedModel versions the newest.
    """
    folder = Path(location)
    if not folder.is_dir():
        return None
    patterns = ["model.json", "weights.safetensors", "task.json"]
    if not (folder / patterns[0]).is_file():
        folder = _newest_version(folder)
        patterns = ["saved_model.pb", "variables/*", "assets/*", SETTINGS_FILE]
    digest = hashlib.sha256()
    found = (path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    for path in sorted(found):
        digest.update(f"{path.relative_to(folder)}\n{path.stat().st_size}\n".encode())
        with open(path, "rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def predictor_of(model: keras.Model, settings: ExportSettings, where: object) -> Predictor:
    """Returns the predictor of a Keras model from raw intensities to logits."""
    import tensorflow as tf

    from ahnet_tf.networks.inputs import network_probabilities

    # Traced for each window shape: static shapes let TensorFlow fuse sums into convolutions.
    @tf.function(autograph=False)
    def probabilities(image: tf.Tensor) -> tf.Tensor:
        return network_probabilities(model, image, settings.model.activation)

    def predict(windows: np.ndarray) -> np.ndarray:
        image = tf.constant(check_channels(windows, settings, where), tf.float32)
        return probabilities(image).numpy()

    return Predictor(settings, predict)


def check_channels(windows: np.ndarray, settings: ExportSettings, where: object) -> np.ndarray:
    """Returns windows; raises ModelError unless [batch, z, y, x, c] of the network's channels c."""
    channels = settings.model.channels
    if windows.ndim != 5 or windows.shape[-1] != channels:
        remedy = "The network takes volumes with another number of channels."
        expected = f"windows [batch, z, y, x, {channels}]"
        raise ModelError(where, expected, f"shape {windows.shape}", remedy)
    return windows
