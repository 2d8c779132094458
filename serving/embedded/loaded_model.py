"""One loaded version of a model, and how it answers a PredictRequest."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

from ahnet_tf.inference.predictor import SETTINGS_FILE, ExportSettings, settings_from_json
from preprocessing.errors import ModelError
from serving import protocol
from serving.export.warm_up import read_warm_up
from serving.protocol import RefusedError, malformed

# Lines of TensorFlow's error texts that say where in the graph, not why.
_NOT_A_REASON = ("Graph execution error", "Detected at node", "<stack traces", "\t", "Stack trace")

# More would hold more of the requests, of any size, at a time.
WARM_UP_THREADS = 2

# What reading a damaged SavedModel raises, from the file system up to TensorFlow's object graph.
_DAMAGED = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    DecodeError,
    tf.errors.OpError,
)


@dataclass(frozen=True)
class ServedModel:
    """A SavedModel in memory.

    Attributes:
      version: its number.
      settings: what it was trained for.
      saved_model: TensorFlow's object; a signature does not own its variables, this does.
      signature_defs: the signatures as in the file, for GetModelMetadata.
    """

    version: int
    settings: ExportSettings
    saved_model: Any
    signature_defs: get_model_metadata_pb2.SignatureDefMap


@dataclass(frozen=True)
class Call:
    """A checked PredictRequest.

    Attributes:
      signature_name: the signature to run.
      inputs: its inputs by name.
      outputs: names of the outputs to return.
      windows: length of the first axis of all inputs and outputs, along which calls can be merged;
        None where there is no such axis.
    """

    signature_name: str
    inputs: dict[str, np.ndarray]
    outputs: list[str]
    windows: int | None


def load_model(folder: Path, version: int) -> ServedModel:
    """Loads an exported model and runs its warm-up requests.

    Raises:
      ModelError: no such export, a damaged one, or one that fails its own warm-up.
    """
    settings_path = folder / SETTINGS_FILE
    if not settings_path.is_file():
        raise ModelError(
            folder,
            f"a SavedModel with {SETTINGS_FILE}",
            "none",
            "Export the model with python -m serving.export.",
        )
    try:
        settings = settings_from_json(settings_path.read_bytes(), settings_path)
        content = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        saved_model = tf.saved_model.load(str(folder))
    except _DAMAGED as error:
        raise ModelError(
            folder, "a readable SavedModel", reason_of(error), "Export the model again."
        ) from None
    signature_defs = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in content.meta_graphs[0].signature_def.items():
        # Private entries, such as the initialisation op, are no signatures.
        if name in saved_model.signatures:
            signature_defs.signature_def[name].CopyFrom(definition)
    model = ServedModel(version, settings, saved_model, signature_defs)
    try:
        _warm_up(model, folder)
    except RefusedError as error:
        raise ModelError(
            folder, "warm-up requests that it answers", error.reason, "Export the model again."
        ) from None
    return model


def _warm_up(model: ServedModel, folder: Path) -> None:
    """Answers an export's warm-up requests, a few at a time: each optimises its graph on one core."""

    def answer(request: predict_pb2.PredictRequest) -> None:
        run_call(model, check_request(model, request, protocol.MAX_REQUEST_VOXELS))

    requests = read_warm_up(folder)
    with ThreadPoolExecutor(WARM_UP_THREADS) as pool:
        while some := list(itertools.islice(requests, WARM_UP_THREADS)):
            for _ in pool.map(answer, some):
                pass


def check_request(model: ServedModel, request: predict_pb2.PredictRequest, max_voxels: int) -> Call:
    """Returns what a request asks for, after checking it against the signature.

    Args:
      model: the model that is to answer.
      request: as received, from anyone.
      max_voxels: most voxels, summed over the batch, that a request may hold.

    Raises:
      RefusedError: (INVALID_ARGUMENT) unknown signature, input or output, or a tensor that doesn't
        fit.
    """
    name, signature = find_signature(model, request.model_spec.signature_name)
    specs = signature.structured_input_signature[1]
    if set(request.inputs) != set(specs):
        found = ", ".join(_shown(key) for key in sorted(request.inputs)[:5]) or "none"
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
    return call_of(model, name, inputs, request.output_filter, max_voxels)


def find_signature(model: ServedModel, name: str) -> tuple[str, Any]:
    """Returns a signature's name, the default one for "", and the signature.

    Raises:
      RefusedError: (INVALID_ARGUMENT) no such signature.
    """
    signatures = model.saved_model.signatures
    name = name or protocol.SERVING_DEFAULT
    if name not in signatures:
        raise malformed(
            f"signature {_shown(name)}: expected one of {', '.join(sorted(signatures))}"
        )
    return name, signatures[name]


def call_of(
    model: ServedModel,
    name: str,
    inputs: dict[str, np.ndarray],
    output_filter: Sequence[str],
    max_voxels: int,
) -> Call:
    """Returns a call of a signature with all its inputs, after checking shapes and outputs.

    Raises:
      RefusedError: (INVALID_ARGUMENT) a shape that doesn't fit, or an unknown output.
    """
    _, signature = find_signature(model, name)
    specs, known = signature.structured_input_signature[1], signature.structured_outputs
    for key, spec in specs.items():
        limit = _max_elements(model.settings, spec, max_voxels)
        protocol.check_shape(inputs[key].shape, spec, limit, f"input {key} of {name}")
    for output in output_filter:
        if output not in known:
            raise malformed(
                f"output_filter: expected outputs of {name} ({', '.join(known)}), "
                f"found {_shown(output)}"
            )
    shapes = [spec.shape for spec in (*specs.values(), *known.values())]
    batched = specs and all(shape.rank and shape[0] is None for shape in shapes)
    lengths = {array.shape[0] for array in inputs.values()} if batched else set()
    return Call(
        name,
        inputs,
        list(dict.fromkeys(output_filter)) or list(known),
        lengths.pop() if len(lengths) == 1 else None,
    )


def run_call(model: ServedModel, call: Call) -> dict[str, np.ndarray]:
    """Runs a checked request and returns the outputs it asks for.

    Raises:
      RefusedError: (INVALID_ARGUMENT) the graph refuses the values, for example bytes that are no
        tf.Example; (RESOURCE_EXHAUSTED) out of memory; (INTERNAL) anything else in the graph.
    """
    tensors = {name: tf.constant(array) for name, array in call.inputs.items()}
    try:
        outputs = model.saved_model.signatures[call.signature_name](**tensors)
    except tf.errors.InvalidArgumentError as error:
        raise malformed(f"{call.signature_name}: {reason_of(error)}") from None
    except UnicodeDecodeError:
        # TensorFlow's error quotes the bytes that it refuses, and fails to decode its own text.
        raise malformed(f"{call.signature_name}: the graph refuses the values") from None
    except tf.errors.ResourceExhaustedError:
        raise RefusedError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"{call.signature_name}: out of memory; send fewer or smaller windows",
        ) from None
    except tf.errors.OpError as error:
        raise RefusedError(
            grpc.StatusCode.INTERNAL, f"{call.signature_name}: {reason_of(error)}"
        ) from None
    return {name: np.asarray(outputs[name].numpy()) for name in call.outputs}


def reason_of(error: BaseException) -> str:
    """Returns the line of an error's text that says why, without the graph's node names."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    reasons = [line for line in lines if not line.startswith(_NOT_A_REASON)]
    line = (reasons or lines or [type(error).__name__])[0]
    return line if len(line) <= 300 else line[:297] + "..."


def _max_elements(settings: ExportSettings, spec: tf.TensorSpec, max_voxels: int) -> int:
    if spec.dtype != tf.string:
        return max_voxels * settings.model.channels
    # Each string is one record, which holds one patch.
    z, y, x = settings.task.patch_shape_zyx
    return max(1, max_voxels // (z * y * x))


def _shown(name: str) -> str:
    return repr(name if len(name) <= 60 else name[:57] + "...")
