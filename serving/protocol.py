"""Signature names, message size limits and tensor encoding, shared by client and server."""

from __future__ import annotations

import math

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

PREDICTION_SERVICE = "tensorflow.serving.PredictionService"
MODEL_SERVICE = "tensorflow.serving.ModelService"
HEALTH_SERVICE = "grpc.health.v1.Health"
DEFAULT_MODEL_NAME = "ahnet"

SERVING_DEFAULT = "serving_default"
PREDICT_WINDOWS = "predict_windows"
SEGMENT = "segment"
SERIALIZED_EXAMPLES = "serialized_examples"
DESCRIBE = "describe"
UNUSED_INPUT = "unused"
SETTINGS_OUTPUT = "settings"

# TensorFlow Serving replays the requests in this file before a version is available.
WARM_UP_FILE = "assets.extra/tf_serving_warmup_requests"

# gRPC's default limit of 4 MiB is less than one window. A request holds up to 512 x 512 x 64 voxels
# as float32; an answer holds the probabilities of three classes for each of them.
MAX_REQUEST_VOXELS = 512 * 512 * 64
MAX_REQUEST_BYTES = 72 * 2**20
MAX_ANSWER_BYTES = 256 * 2**20

# The TensorProto field that holds separate values, for each dtype that the signatures accept.
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
    """Returns the error for an inconsistent request or one that does not match the signature."""
    return RefusedError(grpc.StatusCode.INVALID_ARGUMENT, reason)


def busy(reason: str) -> RefusedError:
    """Returns the error for a request that may be answered later.

    The status and "is full" are TF Serving's when more requests wait than its batching allows.
    """
    return RefusedError(grpc.StatusCode.UNAVAILABLE, f"the queue is full; {reason}")


def stored_signature(name: str, image_dtype: str) -> str:
    """Returns the name of the signature variant for voxels in their stored dtype, e.g. int16 HU."""
    return f"{name}_{image_dtype}"


def encode_tensor(array: np.ndarray) -> tensor_pb2.TensorProto:
    """Returns an array as a TensorProto, with numbers as one block of bytes.

    `tf.make_tensor_proto` stores uint16 values one by one, which is hundreds of times slower.
    """
    if array.dtype.kind not in "fiu":
        return tf.make_tensor_proto(array)
    return tensor_pb2.TensorProto(
        dtype=tf.as_dtype(array.dtype).as_datatype_enum,
        tensor_shape=tf.TensorShape(array.shape).as_proto(),
        tensor_content=array.tobytes(),
    )


def decode_tensor(
    content: tensor_pb2.TensorProto, spec: tf.TensorSpec, *, max_elements: int, where: str
) -> np.ndarray:
    """Returns the array of an untrusted TensorProto, validated before any memory is allocated.

    `where` names the input in error messages.

    Raises:
      RefusedError: (INVALID_ARGUMENT) dtype, rank, shape, number of elements or content do not match
        the signature's `spec` and `max_elements`, or a value is not finite.
    """
    dtype = spec.dtype
    if content.dtype != dtype.as_datatype_enum:
        found = _dtype_name(content.dtype)
        raise malformed(f"{where}: expected dtype {dtype.name}, found {found}")
    if content.tensor_shape.unknown_rank:
        raise malformed(f"{where}: expected a tensor shape, found an unknown rank")
    shape = [dim.size for dim in content.tensor_shape.dim]
    if min(shape, default=1) < 0 or not spec.shape.is_compatible_with(shape):
        expected = ", ".join("any" if size is None else str(size) for size in spec.shape)
        raise malformed(f"{where}: expected shape [{expected}], found {shape}")
    elements = math.prod(shape)
    if not 0 < elements <= max_elements:
        raise malformed(
            f"{where}: expected 1 to {max_elements} elements, found {elements} in {shape}"
        )
    if content.tensor_content and dtype != tf.string:
        size, length = elements * dtype.size, len(content.tensor_content)
        if length != size:
            raise malformed(f"{where}: expected {size} bytes for shape {shape}, found {length}")
    else:
        values = getattr(content, _VALUE_FIELDS[dtype])
        # A single value is repeated for all elements.
        if len(values) not in (1, elements):
            raise malformed(
                f"{where}: expected {elements} values for shape {shape}, found {len(values)}"
            )
        if dtype == tf.string:
            return np.resize(np.array(values, object), shape)
        if dtype.is_integer and not dtype.min <= min(values) <= max(values) <= dtype.max:
            raise malformed(f"{where}: expected {dtype.name} values, found one out of range")
    array = tf.make_ndarray(content)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise malformed(f"{where}: expected finite numbers, found NaN or infinity")
    return array


def _dtype_name(number: int) -> str:
    try:
        return tf.as_dtype(number).name
    except TypeError:
        return f"number {number}"
