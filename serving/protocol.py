"""What both ends of a connection agree on: signature names, message sizes, tensors on the wire."""

from __future__ import annotations

import math
from dataclasses import dataclass

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2

from preprocessing.errors import ServingError

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
DEFAULT_MODEL_NAME = "ahnet"

SERVING_DEFAULT = "serving_default"
PREDICT_WINDOWS = "predict_windows"
SEGMENT = "segment"
SERIALIZED_EXAMPLES = "serialized_examples"
DESCRIBE = "describe"
UNUSED_INPUT = "unused"
SETTINGS_OUTPUT = "settings"

# gRPC's own limit of 4 MiB is less than one window. Requests hold 512 x 512 x 64 voxels as float32,
# answers the probabilities of three classes on as many.
MAX_REQUEST_VOXELS = 512 * 512 * 64
MAX_REQUEST_BYTES = 72 * 2**20
MAX_ANSWER_BYTES = 256 * 2**20

# Where a TensorProto keeps values one by one, for the dtypes that signatures take.
_VALUE_FIELDS = {
    tf.float32: "float_val",
    tf.int16: "int_val",
    tf.int32: "int_val",
    tf.uint16: "int_val",
    tf.string: "string_val",
}


class RefusedError(Exception):
    """A request that the server answers with a status code other than OK."""

    def __init__(self, code: grpc.StatusCode, reason: str):
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


def malformed(reason: str) -> RefusedError:
    """Returns the error for a request that contradicts itself or the signature."""
    return RefusedError(grpc.StatusCode.INVALID_ARGUMENT, reason)


def stored_signature(name: str, image_dtype: str) -> str:
    """Returns the name of the signature variant that takes voxels as stored, e.g. int16 HU."""
    return f"{name}_{image_dtype}"


@dataclass(frozen=True)
class Target:
    """Where a model is served.

    Attributes:
      host_port: HOST:PORT.
      model: name of the model.
      version: number of a version, if the target names one.
      label: label of a version, if the target names one.
    """

    host_port: str
    model: str
    version: int | None = None
    label: str | None = None


def parse_target(target: str, model: str) -> Target:
    """Returns the parts of HOST:PORT[/MODEL[/versions/N|/labels/LABEL]].

    Args:
      target: as people type it; the path is that of TF Serving's REST addresses.
      model: name of the model where the target has none.

    Raises:
      ServingError: another form.
    """
    address, _, path = target.partition("/")
    host, _, port = address.rpartition(":")
    parts = path.split("/") if path else [model]
    fits = bool(host) and port.isdecimal() and 0 < int(port) < 65536 and all(parts)
    if fits and len(parts) == 1:
        return Target(address, parts[0])
    if fits and len(parts) == 3 and parts[1] == "versions" and parts[2].isdecimal():
        return Target(address, parts[0], version=int(parts[2]))
    if fits and len(parts) == 3 and parts[1] == "labels":
        return Target(address, parts[0], label=parts[2])
    raise ServingError(
        target,
        "HOST:PORT or HOST:PORT/MODEL, then /versions/N or /labels/LABEL if need be",
        "another form",
        "For example localhost:8500.",
    )


def encode_tensor(array: np.ndarray) -> tensor_pb2.TensorProto:
    """Returns an array as it goes over the wire; numbers as one block of bytes."""
    if array.dtype.kind not in "fiu":
        return tf.make_tensor_proto(array)
    shape = tensor_shape_pb2.TensorShapeProto(
        dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in array.shape]
    )
    return tensor_pb2.TensorProto(
        dtype=tf.as_dtype(array.dtype).as_datatype_enum,
        tensor_shape=shape,
        tensor_content=np.ascontiguousarray(array).tobytes(),
    )


def as_array(content: tensor_pb2.TensorProto) -> np.ndarray:
    """Returns the array of a tensor in a server's answer."""
    return tf.make_ndarray(content)


def repeated_value(
    value: float, shape: tuple[int, ...], dtype: tf.dtypes.DType
) -> tensor_pb2.TensorProto:
    """Returns a constant tensor in a few bytes: the protocol repeats a single value."""
    content = tf.make_tensor_proto(value, dtype=dtype, shape=[1])
    content.tensor_shape.CopyFrom(tf.TensorShape(shape).as_proto())
    return content


def decode_tensor(
    content: tensor_pb2.TensorProto, spec: tf.TensorSpec, *, max_elements: int, where: str
) -> np.ndarray:
    """Returns the array of a tensor on the wire, checked before any memory is taken for it.

    Args:
      content: the tensor as received, from anyone.
      spec: dtype and (partly known) shape that the signature wants.
      max_elements: most elements that are accepted.
      where: name of the input, for the message.

    Raises:
      RefusedError: (INVALID_ARGUMENT) dtype, rank, size or content don't fit, or a number is not finite.
    """
    if content.dtype != spec.dtype.as_datatype_enum:
        found = _dtype_name(content.dtype)
        raise malformed(f"{where}: expected dtype {spec.dtype.name}, found {found}")
    if content.tensor_shape.unknown_rank:
        raise malformed(f"{where}: expected a tensor shape, found an unknown rank")
    shape = tuple(dim.size for dim in content.tensor_shape.dim)
    check_shape(shape, spec, max_elements, where)
    array = _values(content, spec.dtype, shape, where)
    check_finite(array, where)
    return array


def check_shape(shape: tuple[int, ...], spec: tf.TensorSpec, max_elements: int, where: str) -> None:
    """Refuses a shape that the signature doesn't take, no elements, or too many."""
    fits = min(shape, default=1) >= 0 and spec.shape.is_compatible_with(shape)
    if not fits:
        raise malformed(f"{where}: expected shape {_shape_name(spec.shape)}, found {list(shape)}")
    elements = math.prod(shape)
    if not 0 < elements <= max_elements:
        raise malformed(
            f"{where}: expected 1 to {max_elements} elements, found {elements} in {list(shape)}"
        )


def check_finite(array: np.ndarray, where: str) -> None:
    """Refuses NaN and infinity."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise malformed(f"{where}: expected finite numbers, found NaN or infinity")


def _values(
    content: tensor_pb2.TensorProto, dtype: tf.dtypes.DType, shape: tuple[int, ...], where: str
) -> np.ndarray:
    elements = math.prod(shape)
    if content.tensor_content and dtype != tf.string:
        expected = elements * dtype.size
        if len(content.tensor_content) != expected:
            found = len(content.tensor_content)
            raise malformed(
                f"{where}: expected {expected} bytes for shape {list(shape)}, found {found}"
            )
        flat = np.frombuffer(content.tensor_content, dtype.as_numpy_dtype)
        return flat.reshape(shape)
    values = getattr(content, _VALUE_FIELDS[dtype])
    # A single value stands for all elements.
    if len(values) not in (1, elements):
        raise malformed(
            f"{where}: expected {elements} values for shape {list(shape)}, found {len(values)}"
        )
    if dtype == tf.string:
        return np.resize(np.array(values, object), shape)
    if dtype.is_integer and not dtype.min <= min(values) <= max(values) <= dtype.max:
        raise malformed(f"{where}: expected {dtype.name} values, found one out of range")
    flat = np.fromiter(values, dtype.as_numpy_dtype, len(values))
    return flat.reshape(shape) if len(values) == elements else np.full(shape, flat[0])


def _dtype_name(number: int) -> str:
    try:
        return tf.as_dtype(number).name
    except TypeError:
        return f"number {number}"


def _shape_name(shape: tf.TensorShape) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
