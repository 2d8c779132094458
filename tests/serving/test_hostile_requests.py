"""Malformed requests: each gets the right status, and the server goes on answering."""

from __future__ import annotations

import socket

import grpc
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2

from serving import protocol
from serving.client import AHNetClient

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
EXPECTED_CODES = {INVALID, NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED}


@pytest.fixture(scope="module")
def send(server):
    """Sends bytes to a method and returns the status code and its message."""
    channel = grpc.insecure_channel(server.address, protocol.message_options(2**28))

    def call(content, method="PredictionService/Predict"):
        try:
            channel.unary_unary(f"/tensorflow.serving.{method}")(content, timeout=30)
        except grpc.RpcError as error:
            return error.code(), error.details()
        return grpc.StatusCode.OK, ""

    yield call
    channel.close()


@pytest.fixture(autouse=True)
def still_answering(server, windows, linear_probabilities):
    yield
    with AHNetClient(server.target) as client:
        found = client.predict_windows(windows)
    np.testing.assert_allclose(found, linear_probabilities(windows, 1.0), atol=1e-5)


def sound_request(signature_name="predict_windows", dtype=np.float32):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "ahnet"
    request.model_spec.signature_name = signature_name
    image = protocol.encode_tensor(np.ones((1, 2, 3, 4, 1), dtype))
    request.inputs["image"].CopyFrom(image)
    return request


def test_sound_requests_are_answered(send):
    for name, dtype in (("predict_windows", np.float32), ("segment_int16", np.int16)):
        assert send(sound_request(name, dtype).SerializeToString())[0] == grpc.StatusCode.OK


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
        yield with_spec(version_label=label), NOT_FOUND, "no version labels"
    for name in ("predict", "__saved_model_init_op", "SEGMENT", "z" * 10_000, "\n"):
        yield with_spec(signature_name=name), INVALID, "expected one of describe, predict_windows"
    yield without_image(), INVALID, "expected image, found none"
    yield with_extra_input(), INVALID, "found 'image', 'mask'"
    yield with_spec(signature_name="serialized_examples"), INVALID, "expected examples"
    yield with_spec(signature_name="describe"), INVALID, "expected none, found 'image'"
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


def test_there_are_about_a_hundred():
    assert len(CASES) >= 90


def test_malformed_requests(send):
    wrong = []
    for request, code, words in CASES:
        found, details = send(request.SerializeToString())
        if found != code or words not in details or "\n" in details or len(details) > 500:
            wrong.append((str(request)[:300], code, words, found, details))
    assert not wrong


def test_other_methods_and_messages(send):
    metadata = get_model_metadata_pb2.GetModelMetadataRequest()
    metadata.model_spec.name = "ahnet"
    for fields in ([], ["assets"], ["signature_def", "signature_def"]):
        metadata.metadata_field[:] = fields
        content = metadata.SerializeToString()
        assert send(content, "PredictionService/GetModelMetadata")[0] == INVALID
    sound = sound_request().SerializeToString()
    for method in ("PredictionService/Predict", "ModelService/GetModelStatus"):
        for content in (b"", b"\xff" * 100, b"\x0a\x7f", b"\x0c" + sound):
            assert send(content, method)[0] == INVALID
    for method in ("PredictionService/Classify", "ModelService/Nothing", "Other/Predict"):
        assert send(b"", method)[0] == grpc.StatusCode.UNIMPLEMENTED
    integers = of_array(np.ones((1, 1, 1, 1, 1), np.int16), "segment_int16")
    integers.inputs["image"].tensor_content = b""
    for values in ([40_000], [-(2**31)]):
        integers.inputs["image"].int_val[:] = values
        assert send(integers.SerializeToString()) == (
            INVALID,
            "input image of segment_int16: expected int16 values, found one out of range",
        )


def test_message_above_the_limit_is_not_taken(send):
    request = sized(1, 1, 1, 1, 1, content=bytes(protocol.MAX_MESSAGE_BYTES - 20))
    code, _ = send(request.SerializeToString())
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_bytes_on_the_port_that_are_no_grpc(server):
    generator = np.random.default_rng(0)
    for opening in (b"", b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(opening + generator.bytes(1000))


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_changed_bytes_get_an_answer_or_a_refusal(send, data):
    content = bytearray(sound_request().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    code, details = send(bytes(content))
    assert code in EXPECTED_CODES | {grpc.StatusCode.OK}, details


DTYPES = st.sampled_from([np.float32, np.int16, np.uint16])
SHAPES = st_numpy.array_shapes(min_dims=1, max_dims=5, max_side=4)


@hypothesis_settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=DTYPES, shape=SHAPES)
def test_tensors_come_back_as_they_went(data, dtype, shape):
    """Encoded here or by TensorFlow, as bytes or value by value."""
    elements = (
        st.floats(-1e6, 1e6, width=32)
        if dtype is np.float32
        else st.integers(np.iinfo(dtype).min, np.iinfo(dtype).max)
    )
    array = data.draw(st_numpy.arrays(dtype, shape, elements=elements))
    one_by_one = tensor_pb2.TensorProto()
    one_by_one.CopyFrom(protocol.encode_tensor(array))
    one_by_one.tensor_content = b""
    if dtype is np.float32:
        one_by_one.float_val.extend(array.ravel().tolist())
    else:
        one_by_one.int_val.extend(array.ravel().tolist())
    spec = tf.TensorSpec([None] * array.ndim, tf.as_dtype(dtype))
    for content in (protocol.encode_tensor(array), tf.make_tensor_proto(array), one_by_one):
        found = protocol.decode_tensor(content, spec, max_elements=array.size, where="input")
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, array)
        np.testing.assert_array_equal(tf.make_ndarray(content), array)


def test_single_value_stands_for_all():
    content = protocol.repeated_value(7, (2, 3), tf.int16)
    assert content.ByteSize() < 20
    found = protocol.decode_tensor(
        content, tf.TensorSpec([None, 3], tf.int16), max_elements=6, where="input"
    )
    np.testing.assert_array_equal(found, np.full((2, 3), 7, np.int16))
