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
from tensorflow_serving.apis import get_model_metadata_pb2

from serving import protocol
from serving.client.sync import AHNetClient
from tests.serving.malformed_requests import (
    CASES,
    EXPECTED_CODES,
    INVALID,
    of_array,
    sized,
    sound_request,
)


@pytest.fixture(scope="module")
def send(server):
    """Sends bytes to a method and returns the status code and its message."""
    channel = grpc.insecure_channel(server.address, [("grpc.max_send_message_length", 2**28)])

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


def test_sound_requests_are_answered(send):
    for name, dtype in (("predict_windows", np.float32), ("segment_int16", np.int16)):
        assert send(sound_request(name, dtype).SerializeToString())[0] == grpc.StatusCode.OK


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
    request = sized(1, 1, 1, 1, 1, content=bytes(protocol.MAX_REQUEST_BYTES - 20))
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
    content = tf.make_tensor_proto(7, tf.int16, (2, 3))
    assert content.ByteSize() < 20
    found = protocol.decode_tensor(
        content, tf.TensorSpec([None, 3], tf.int16), max_elements=6, where="input"
    )
    np.testing.assert_array_equal(found, np.full((2, 3), 7, np.int16))
