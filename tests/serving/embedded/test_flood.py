"""Thousands of malformed requests, slow and silent connections, noise: the server stays up and small."""

from __future__ import annotations

import collections
import contextlib
import itertools
import random
import socket
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving import protocol
from serving.client.sync import AHNetClient
from serving.embedded.core import start_server
from serving.embedded.grpc_service import Limits
from tests.serving.malformed_requests import (
    CASES,
    EXPECTED_CODES,
    of_array,
    sized,
    sound_request,
    spoiled,
    with_spec,
)
from tests.serving.server_process import ServerProcess


@pytest.fixture(scope="module")
def process(models):
    running = ServerProcess(models)
    yield running
    assert running.stop() == (0, "", "")


@pytest.fixture(scope="module")
def channel(process):
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(process.address, options) as opened:
        yield opened


@pytest.fixture(autouse=True)
def still_answering(process, windows, linear_probabilities):
    yield
    with AHNetClient(process.address) as client:
        found = client.predict_windows(windows)
    np.testing.assert_allclose(found, linear_probabilities(windows, 1.0), atol=1e-5)


def noise(generator, length):
    return bytes(generator.randrange(256) for _ in range(length))


def malformed_messages():
    """Yields serialized requests, none of which is sound."""
    generator = random.Random(0)
    for request, _, _ in CASES:
        yield request.SerializeToString()
    sound = sound_request().SerializeToString()
    yield from (sound[:length] for length in range(len(sound)))
    for dtype, size in ((np.float32, 96), (np.int16, 48)):
        name = "segment" if dtype is np.float32 else "segment_int16"
        for length in itertools.chain(range(1, size), range(size + 1, size + 60)):
            request = sound_request(name, dtype)
            request.inputs["image"].tensor_content = bytes(length)
            yield request.SerializeToString()
    extremes = (-(2**63), -1, 0, 1, 2, 512, 2**31, 2**40, 2**63 - 1)
    for _ in range(500):
        sizes = [generator.choice(extremes) for _ in range(5)]
        if not 0 < np.prod([float(size) for size in sizes]) <= 512:
            yield sized(*sizes).SerializeToString()
    for rank in [*range(5), *range(6, 60)]:
        yield sized(*[1] * rank).SerializeToString()
    for value in (np.nan, np.inf, -np.inf):
        yield spoiled(value).SerializeToString()
    for number in (*range(2, 27), *range(101, 127), *range(1000, 1100), -1, -(2**31)):
        request = sound_request()
        request.inputs["image"].dtype = number
        yield request.SerializeToString()
    for dtype in (tf.bool, tf.uint8, tf.int64, tf.complex64, tf.bfloat16, tf.float16, tf.float64):
        for shape in ((1, 2, 3, 4, 1), (1,), ()):
            array = np.ones(shape, dtype.as_numpy_dtype)
            request = of_array(array.astype(bool) if dtype == tf.bool else array)
            yield request.SerializeToString()
    for _ in range(150):
        text = "".join(chr(generator.randrange(1, 0xD800)) for _ in range(generator.randrange(40)))
        yield with_spec(name=text).SerializeToString()
        yield with_spec(signature_name=text + "?").SerializeToString()
        yield with_spec(version_label=text + "?").SerializeToString()
        yield with_spec(version=generator.randrange(2, 2**63)).SerializeToString()
    for _ in range(300):
        yield noise(generator, generator.randrange(1, 400))


@pytest.mark.slow
def test_thousands_of_malformed_requests(process, channel):
    """Each gets the status of a refusal, and the server's memory doesn't follow what they claim."""
    predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    before = process.watch_peak()
    codes = collections.Counter()
    wrong = []
    for content in malformed_messages():
        try:
            predict(content, timeout=30)
            code = grpc.StatusCode.OK
        except grpc.RpcError as error:
            code = error.code()
        codes[code] += 1
        if code not in EXPECTED_CODES:
            wrong.append((content[:200], code))
    assert not wrong
    assert sum(codes.values()) >= 2000
    assert codes[grpc.StatusCode.INVALID_ARGUMENT] >= 1000
    assert codes[grpc.StatusCode.NOT_FOUND] >= 300
    assert process.peak_mib() - before < 200


def test_compressed_requests_are_not_unpacked(process):
    """A megabyte of gzip can unpack to one of zeros a thousand times as large."""
    before = process.watch_peak()
    request = sized(1, 1, 1, 1, 1, content=bytes(60 * 2**20)).SerializeToString()
    with grpc.insecure_channel(process.address) as channel:
        predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        with pytest.raises(grpc.RpcError) as caught:
            predict(request, timeout=30, compression=grpc.Compression.Gzip)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert process.peak_mib() - before < 100


def test_noise_on_the_port(process):
    generator = random.Random(1)
    openings = (b"", b"GET / HTTP/1.1\r\n", b"POST /v1/models/ahnet:predict HTTP/1.1\r\n\r\n")
    openings += (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00")
    before = process.watch_peak()
    for number in range(200):
        with socket.create_connection(("127.0.0.1", process.port), timeout=30) as connection:
            opening = openings[number % len(openings)]
            try:
                connection.sendall(opening + noise(generator, generator.randrange(1500)))
            except OSError:
                # Closed already: that is an answer too.
                continue
    assert process.peak_mib() - before < 200


@pytest.mark.slow
def test_gigabyte_messages_are_not_kept(process, channel):
    """gRPC receives a message before it knows its size, so a few may be on their way; none is kept."""
    before = process.watch_peak()
    predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    peaks = []
    for _ in range(4):
        with pytest.raises(grpc.RpcError) as caught:
            predict(bytes(2**30), timeout=60)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        peaks.append(process.peak_mib())
    assert peaks[0] - before < 1300
    # One may arrive while the one before is being freed, but four would take 4 GiB, and what each
    # message left behind would raise every peak.
    assert peaks[-1] - before < 2400
    assert min(np.diff(peaks)) < 200


def test_messages_that_do_not_come_are_given_up(models, windows, linear_probabilities):
    """More clients that begin calls and send nothing than messages are read at a time."""
    with start_server(models, limits=Limits(reads=2, read_s=0.3)) as running:
        done = threading.Event()

        def nothing():
            done.wait(30)
            yield from ()

        with grpc.insecure_channel(running.address) as channel:
            begin = channel.stream_unary("/tensorflow.serving.PredictionService/Predict").future
            silent = [begin(nothing(), timeout=30) for _ in range(6)]
            time.sleep(0.1)
            with AHNetClient(running.target, timeout_s=20) as client:
                found = client.predict_windows(windows)
            codes = {call.code() for call in silent}
            done.set()
        assert codes <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN}
    np.testing.assert_allclose(found, linear_probabilities(windows, 1.0), atol=1e-5)


@contextlib.contextmanager
def silent_calls(channel, method, count):
    """Begins calls whose message never comes; yields them, and ends them."""
    done = threading.Event()

    def nothing():
        done.wait(600)
        yield from ()

    begin = channel.stream_unary(method).future
    calls = [begin(nothing(), timeout=600) for _ in range(count)]
    # Let the server begin them all.
    time.sleep(0.5)
    try:
        yield calls
    finally:
        done.set()
        for call in calls:
            call.cancel()


def check_status_and_health(running):
    """Asks a server for status, description of the health service and metadata."""
    with AHNetClient(running.target, timeout_s=60, attempts=100) as client:
        assert client.status()[0].version == 1
    with grpc.insecure_channel(running.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        answer = check(health_pb2.HealthCheckRequest(), timeout=60)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_silent_predictions_do_not_hold_up_status(models):
    """More of them than the server has places for, each of which would be waited for ten minutes."""
    with (
        start_server(models, limits=Limits(read_s=600)) as running,
        grpc.insecure_channel(running.address) as channel,
        silent_calls(channel, "/tensorflow.serving.PredictionService/Predict", 40) as calls,
    ):
        check_status_and_health(running)
        assert not all(call.done() for call in calls)


@pytest.mark.parametrize(
    "method", ["/tensorflow.serving.ModelService/GetModelStatus", "/grpc.health.v1.Health/Check"]
)
def test_silent_status_calls_do_not_hold_up_the_others(
    models, method, windows, linear_probabilities
):
    """They have turns of their own, and are given up before the clients of others give up."""
    with (
        start_server(models, limits=Limits(read_s=600)) as running,
        grpc.insecure_channel(running.address) as channel,
        silent_calls(channel, method, 60),
        AHNetClient(running.target, timeout_s=60, attempts=100) as client,
    ):
        found = client.predict_windows(windows)
        check_status_and_health(running)
    np.testing.assert_allclose(found, linear_probabilities(windows, 1.0), atol=1e-5)


def test_limits_of_a_request_are_those_of_the_protocol(process, channel):
    """One voxel more than allowed is refused before it is unpacked."""
    predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    content = sized(1, 512, 512, 65, 1).SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        predict(content, timeout=30)
    assert str(protocol.MAX_REQUEST_VOXELS) in caught.value.details()
