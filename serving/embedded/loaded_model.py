"""One loaded version of a model: loading, warm-up, request validation, prediction."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_log_pb2

from ahnet_tf.inference.predictor import (
    IMAGE_INPUT,
    PROBABILITIES_OUTPUT,
    SETTINGS_FILE,
    ExportSettings,
    open_predictor,
    settings_from_json,
)
from preprocessing.errors import AHNetError, ModelError
from serving import protocol
from serving.protocol import RefusedError, malformed

# Prefixes of the lines in TensorFlow's error texts that locate an error instead of explaining it.
_LOCATION_LINES = (
    "Graph execution error",
    "Detected at node",
    "<stack traces",
    "\t",
    "Stack trace",
)

# Copies of its settings that a model is asked for at most; a client asks for one.
MOST_DESCRIPTIONS = 64
# Each thread holds one request of any size.
WARM_UP_THREADS = 2

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class LoadedModel:
    """A SavedModel in memory; `signature_defs` are its signatures as stored in the file."""

    version: int
    settings: ExportSettings
    # Owns the variables that the signatures use.
    saved_model: Any
    signature_defs: get_model_metadata_pb2.SignatureDefMap
    # Computes the signatures of windows instead of the SavedModel: probabilities of raw intensities.
    predict: Callable[[np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True)
class CheckedRequest:
    """A validated PredictRequest.

    `batch_size` is the length of the first axis of all inputs and outputs, along which requests can
    be merged; 0 where there is no such axis.
    """

    signature_name: str
    inputs: dict[str, np.ndarray]
    outputs: list[str]
    batch_size: int


def load_model(folder: Path, version: int, backend: str = "tensorflow") -> LoadedModel:
    """Loads an exported model and runs its warm-up requests; with OpenVINO one window of its size, too.

    Raises ModelError if the folder holds no export, a damaged one, or one that fails its warm-up, and
    if the back end ("tensorflow" or "openvino") is not installed or can't run it.
    """
    settings_path = folder / SETTINGS_FILE
    if not settings_path.is_file():
        remedy = "Export the model with python -m serving.export."
        raise ModelError(folder, f"a SavedModel with {SETTINGS_FILE}", "none", remedy)
    remedy = "Export the model again."
    try:
        settings = settings_from_json(settings_path.read_bytes(), settings_path)
        content = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        saved_model = tf.saved_model.load(str(folder))
    except AHNetError:
        raise
    except Exception as error:
        # TensorFlow's loader raises errors of many types for damaged files.
        raise ModelError(folder, "a readable SavedModel", short_reason(error), remedy) from None
    signature_defs = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in content.meta_graphs[0].signature_def.items():
        # The file also lists internal entries, such as the initialization op.
        if name in saved_model.signatures:
            signature_defs.signature_def[name].CopyFrom(definition)
    predict = None
    if backend == "openvino":
        predict = open_predictor(folder, backend=backend).predict
        predict(np.zeros((1, *settings.window_shape_zyx, settings.model.channels), np.float32))
    model = LoadedModel(version, settings, saved_model, signature_defs, predict)
    try:
        _warm_up(model, folder)
    except RefusedError as error:
        raise ModelError(folder, "warm-up requests that it answers", error.reason, remedy) from None
    return model


def read_warm_up(export: Path) -> Iterator[predict_pb2.PredictRequest]:
    """Yields the warm-up requests of an export, if any; raises ModelError if they are damaged."""
    path = export / protocol.WARM_UP_FILE
    if not path.is_file():
        return
    expected, remedy = "a TFRecord of PredictionLog messages", "Export the model again."
    count = 0
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            log = prediction_log_pb2.PredictionLog.FromString(record)
            count += 1
            if log.HasField("predict_log"):
                yield log.predict_log.request
    except (tf.errors.DataLossError, DecodeError):
        raise ModelError(path, expected, "a damaged file", remedy) from None
    # TensorFlow reads a file that is truncated within its first record header as an empty one.
    if not count:
        raise ModelError(path, expected, "none", remedy)


def _warm_up(model: LoadedModel, folder: Path) -> None:
    """Runs the warm-up requests, a few at a time: optimizing a graph takes one core."""

    def answer(request: predict_pb2.PredictRequest) -> None:
        run_request(model, check_request(model, request, protocol.MAX_REQUEST_VOXELS))

    requests = (
        request
        for request in read_warm_up(folder)
        # OpenVINO would compile the network once more, for the requests' small windows.
        if model.predict is None or not _takes_windows(model, request.model_spec.signature_name)
    )
    with ThreadPoolExecutor(WARM_UP_THREADS) as pool:
        while group := list(itertools.islice(requests, WARM_UP_THREADS)):
            list(pool.map(answer, group))


def check_request(
    model: LoadedModel, request: predict_pb2.PredictRequest, max_voxels: int
) -> CheckedRequest:
    """Returns the content of an untrusted request after validating it against its signature.

    `max_voxels` limits the voxels in the request, summed over the batch. Raises RefusedError with
    FAILED_PRECONDITION, as TF Serving does, for a signature that the model does not have, and
    INVALID_ARGUMENT for a name or tensor that does not match the signature.
    """
    name = request.model_spec.signature_name or protocol.SERVING_DEFAULT
    signatures = model.saved_model.signatures
    if name not in signatures:
        expected = ", ".join(sorted(signatures))
        reason = f"signature {_quoted(name)}: expected one of {expected}"
        raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, reason)
    specs = signatures[name].structured_input_signature[1]
    outputs = signatures[name].structured_outputs
    if set(request.inputs) != set(specs):
        found = ", ".join(_quoted(key) for key in sorted(request.inputs)[:5]) or "none"
        raise malformed(f"inputs of {name}: expected {', '.join(specs) or 'none'}, found {found}")
    inputs = {
        key: protocol.decode_tensor(
            request.inputs[key],
            spec,
            max_elements=_max_elements(model.settings, spec, max_voxels),
            where=f"input {key} of {name}",
        )
        for key, spec in specs.items()
    }
    for output in request.output_filter:
        if output not in outputs:
            expected = f"outputs of {name} ({', '.join(outputs)})"
            raise malformed(f"output_filter: expected {expected}, found {_quoted(output)}")
    shapes = [spec.shape for spec in (*specs.values(), *outputs.values())]
    is_batched = specs and all(shape.rank and shape[0] is None for shape in shapes)
    lengths = {array.shape[0] for array in inputs.values()} if is_batched else set()
    return CheckedRequest(
        name,
        inputs,
        list(dict.fromkeys(request.output_filter)) or list(outputs),
        lengths.pop() if len(lengths) == 1 else 0,
    )


def run_request(model: LoadedModel, request: CheckedRequest) -> Outputs:
    """Runs a validated request and returns the requested outputs.

    Raises RefusedError with INVALID_ARGUMENT if the graph rejects the values, for example bytes
    that are no tf.Example, RESOURCE_EXHAUSTED out of memory, INTERNAL for any other of its errors.
    """
    name = request.signature_name
    if model.predict is not None and _takes_windows(model, name):
        try:
            found = model.predict(request.inputs[IMAGE_INPUT])
        except ModelError as error:
            raise RefusedError(grpc.StatusCode.INTERNAL, f"{name}: {error}") from None
        if request.outputs == [PROBABILITIES_OUTPUT]:
            return {PROBABILITIES_OUTPUT: found}
        return {key: np.argmax(found, axis=-1).astype(np.uint8) for key in request.outputs}
    tensors = {key: tf.constant(array) for key, array in request.inputs.items()}
    try:
        outputs = model.saved_model.signatures[name](**tensors)
    except tf.errors.InvalidArgumentError as error:
        raise malformed(f"{name}: {short_reason(error)}") from None
    except UnicodeDecodeError:
        # TensorFlow's error quotes the rejected bytes and then fails to decode its own text.
        raise malformed(f"{name}: the graph refuses the values") from None
    except tf.errors.ResourceExhaustedError:
        reason = f"{name}: out of memory; send fewer or smaller windows"
        raise RefusedError(grpc.StatusCode.RESOURCE_EXHAUSTED, reason) from None
    except tf.errors.OpError as error:
        raise RefusedError(grpc.StatusCode.INTERNAL, f"{name}: {short_reason(error)}") from None
    return {key: np.asarray(outputs[key].numpy()) for key in request.outputs}


def short_reason(error: BaseException) -> str:
    """Returns the line of an error's text that explains it, without the graph's node names."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if not line.startswith(_LOCATION_LINES)]
    line = (reasons or lines or [type(error).__name__])[0]
    return line if len(line) <= 300 else line[:297] + "..."


def _takes_windows(model: LoadedModel, signature: str) -> bool:
    """Returns whether a signature maps windows to probabilities or labels."""
    stored = model.settings.task.image_dtype
    names = (protocol.SERVING_DEFAULT, protocol.PREDICT_WINDOWS, protocol.SEGMENT)
    return signature.removesuffix(protocol.stored_signature("", stored)) in names


def _max_elements(settings: ExportSettings, spec: tf.TensorSpec, max_voxels: int) -> int:
    if spec.dtype != tf.string:
        # One number in a row asks for the export's settings, a text of thousands of characters.
        images = spec.shape.rank != 1
        return max_voxels * settings.model.channels if images else MOST_DESCRIPTIONS
    # Each string is one record, which holds one patch.
    z, y, x = settings.task.patch_shape_zyx
    return max(1, max_voxels // (z * y * x))


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 60 else name[:57] + "...")
