"""Malformed requests to a model server: (request, status code, words of the message)."""

from __future__ import annotations

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from serving import protocol

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
FAILED = grpc.StatusCode.FAILED_PRECONDITION
EXPECTED_CODES = {INVALID, NOT_FOUND, FAILED, grpc.StatusCode.RESOURCE_EXHAUSTED}


def sound_request(signature_name="predict_windows", dtype=np.float32):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "ahnet"
    request.model_spec.signature_name = signature_name
    image = protocol.encode_tensor(np.ones((1, 2, 3, 4, 1), dtype))
    request.inputs["image"].CopyFrom(image)
    return request


def with_spec(**changes):
    request = sound_request()
    for name, value in changes.items():
        if name == "version":
            request.model_spec.version.value = value
        else:
            setattr(request.model_spec, name, value)
    return request


def with_image(change):
    request = sound_request()
    change(request.inputs["image"])
    return request


def sized(*sizes, values=(1.0,), content=b""):
    def change(image):
        image.Clear()
        image.dtype = tf.float32.as_datatype_enum
        for size in sizes:
            image.tensor_shape.dim.add(size=size)
        image.float_val.extend(values)
        image.tensor_content = content

    return with_image(change)


def of_dtype(number):
    return with_image(lambda image: setattr(image, "dtype", number))


def of_array(array, signature_name="predict_windows"):
    request = sound_request(signature_name)
    request.inputs["image"].CopyFrom(tf.make_tensor_proto(array))
    return request


def of_examples(*examples, dtype=tf.string):
    request = sound_request("serialized_examples")
    del request.inputs["image"]
    request.inputs["examples"].CopyFrom(tf.make_tensor_proto(list(examples), dtype))
    return request


def of_descriptions(count):
    """Asks for copies of the settings by a number that one value stands for."""
    request = sound_request("describe")
    del request.inputs["image"]
    request.inputs["unused"].dtype = tf.int32.as_datatype_enum
    request.inputs["unused"].tensor_shape.dim.add(size=count)
    request.inputs["unused"].int_val.append(0)
    return request


def spoiled(value):
    windows = np.ones((1, 2, 3, 4, 1), np.float32)
    windows[0, 1, 2, 3] = value
    return of_array(windows)


def without_image():
    request = sound_request()
    del request.inputs["image"]
    return request


def with_extra_input():
    request = sound_request()
    request.inputs["mask"].CopyFrom(request.inputs["image"])
    return request


def asking_for(*outputs):
    request = sound_request()
    request.output_filter.extend(outputs)
    return request


def malformed_requests():
    """Yields (request, status code, words of the message)."""
    yield with_spec(name=""), INVALID, "expected 'ahnet', found none"
    for name in ("liver", "AHNET", "ahnet ", "../ahnet", "x" * 10_000, "\u00e4"):
        yield with_spec(name=name), NOT_FOUND, "is not served here"
    for version in (0, 2, -1, 2**63 - 1, -(2**63)):
        yield with_spec(version=version), NOT_FOUND, "version 1 is being served"
    for label in ("stable", "canary", "1", "y" * 10_000):
        yield with_spec(version_label=label), INVALID, "has no version label"
    for name in ("predict", "__saved_model_init_op", "SEGMENT", "z" * 10_000, "\n"):
        yield with_spec(signature_name=name), FAILED, "expected one of describe, predict_windows"
    yield without_image(), INVALID, "expected image, found none"
    yield with_extra_input(), INVALID, "found 'image', 'mask'"
    yield with_spec(signature_name="serialized_examples"), INVALID, "expected examples"
    yield with_spec(signature_name="describe"), INVALID, "expected unused, found 'image'"
    yield of_descriptions(1_000_000), INVALID, "unused of describe: expected 1 to 64 elements"
    for outputs in (("label",), ("probabilities", "x"), ("",)):
        yield asking_for(*outputs), INVALID, "output_filter: expected outputs of predict_windows"
    for number in (0, 2, 3, 4, 5, 7, 9, 14, 19, 20, 21, 101, 999, 2**31 - 1, -1):
        yield of_dtype(number), INVALID, "expected dtype float32"
    yield of_array(np.ones((1, 1, 1, 1, 1))), INVALID, "expected dtype float32, found float64"
    yield of_array(np.ones((1, 1, 1, 1, 1), np.int16), "segment"), INVALID, "found int16"
    yield of_array(["text"]), INVALID, "expected dtype float32, found string"
    yield with_image(lambda image: image.Clear()), INVALID, "expected dtype float32"
    yield (
        with_image(lambda image: setattr(image.tensor_shape, "unknown_rank", True)),
        INVALID,
        "rank",
    )
    for rank in (0, 1, 2, 3, 4, 6, 7, 200):
        yield sized(*[1] * rank), INVALID, "expected shape [any, any, any, any, 1]"
    for channels in (0, 2, 3, 2**40):
        yield sized(1, 1, 1, 1, channels), INVALID, "expected shape [any, any, any, any, 1]"
    for sizes in ((-1, 1, 1, 1, 1), (1, -5, 1, 1, 1), (-(2**63), 1, 1, 1, 1), (1, 1, 1, 1, -1)):
        yield sized(*sizes), INVALID, "expected shape"
    for sizes in ((2**20, 2**20, 1, 1, 1), (2**62, 4, 1, 1, 1), (1, 2**63 - 1, 1, 1, 1)):
        yield sized(*sizes), INVALID, "elements, found"
    yield sized(1, 512, 512, 65, 1), INVALID, "expected 1 to 16777216 elements, found 17039360"
    for axis in range(4):
        sizes = [0 if i == axis else 2 for i in range(4)]
        yield sized(*sizes, 1, values=()), INVALID, "elements, found 0"
    for count in (0, 2, 23, 25, 100):
        yield sized(1, 2, 3, 4, 1, values=[1.0] * count), INVALID, "expected 24 values"
    for size in (1, 4, 92, 95, 97, 100):
        yield sized(1, 2, 3, 4, 1, content=bytes(size)), INVALID, "expected 96 bytes"
    for value in (np.nan, np.inf, -np.inf):
        yield spoiled(value), INVALID, "expected finite numbers"
        yield sized(1, 2, 3, 4, 1, values=[value]), INVALID, "expected finite numbers"
    for examples in ((b"",), (b"no example",), (b"", b"\xff" * 50)):
        yield of_examples(*examples), INVALID, "serialized_examples: "
    yield of_examples(1.0, dtype=tf.float32), INVALID, "expected dtype string"
    too_many = of_examples(*[b""] * 280_000)
    yield too_many, INVALID, "expected 1 to 279620 elements, found 280000"


CASES = list(malformed_requests())
