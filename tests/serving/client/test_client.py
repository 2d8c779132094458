"""The client: what it sends, when it tries again, and what its errors say."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import attrs
import grpc
import keras
import numpy as np
import pytest
from tensorflow_serving.apis import predict_pb2

from ahnet_tf.inference.predictor import is_address
from preprocessing.errors import ModelError, ServingError
from serving import protocol
from serving.client import sync
from serving.client.errors import (
    AccessError,
    BadRequestError,
    BusyError,
    ForeignServerError,
    NotServedError,
    TooSlowError,
    UnfitError,
    UnreachableError,
)
from serving.client.settings import parse_target
from serving.client.sync import AHNetClient, open_predictor
from serving.embedded.core import start_server
from serving.embedded.grpc_service import Limits
from serving.export.exporter import export_model


@pytest.fixture
def predict_server():
    """Starts servers whose Predict is a given function: for answers no sound server gives."""
    started = []

    def start(predict, port=0):
        handler = grpc.unary_unary_rpc_method_handler(
            predict,
            request_deserializer=predict_pb2.PredictRequest.FromString,
            response_serializer=predict_pb2.PredictResponse.SerializeToString,
        )
        service = {"Predict": handler}
        running = grpc.server(ThreadPoolExecutor(2))
        running.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(protocol.PREDICTION_SERVICE, service)]
        )
        bound = running.add_insecure_port(f"127.0.0.1:{port}")
        running.start()
        started.append(running)
        return f"127.0.0.1:{bound}"

    yield start
    for running in started:
        running.stop(None).wait()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("localhost:8500", ("localhost:8500", "ahnet")),
        ("localhost:8500/liver", ("localhost:8500", "liver")),
        ("10.0.0.7:1/a-b.c", ("10.0.0.7:1", "a-b.c")),
        ("[::1]:8500/liver", ("[::1]:8500", "liver")),
        ("localhost:8500/liver/versions/12", ("localhost:8500", "liver", 12)),
        ("localhost:8500/liver/labels/stable", ("localhost:8500", "liver", None, "stable")),
    ],
)
def test_targets(target, expected):
    address, spec = parse_target(target, "ahnet")
    model, *version = expected[1:]
    assert (address, spec.name) == (expected[0], model)
    assert spec.version.value == (version[0] if version and version[0] else 0)
    assert spec.version_label == (version[1] if len(version) == 2 else "")
    assert is_address(target)


@pytest.mark.parametrize(
    "target",
    [
        *("", "localhost", ":8500", "host:", "host:0", "host:65536", "h:1/a/b"),
        *("h:1/a/versions/x", "h:1/a/labels/", "h:1/a/versions/1/2", f"h:1/a/versions/{2**63}"),
    ],
)
def test_targets_that_are_none(target):
    with pytest.raises(ServingError, match="expected HOST:PORT or HOST:PORT/MODEL"):
        AHNetClient(target)


def test_description_is_what_was_exported(server, settings):
    with AHNetClient(server.target) as client:
        assert client.describe() == settings
        assert client.target == server.target


def test_model_argument_names_the_model(server, settings):
    assert AHNetClient(server.address, "ahnet").describe() == settings
    with pytest.raises(ServingError, match=r"NOT_FOUND: model 'liver' is not served here"):
        AHNetClient(server.address, "liver").describe()


@pytest.mark.parametrize("shape", [(3, 5, 7, 1), (1, 3, 5, 7, 2), (0,)])
def test_windows_of_another_shape_are_not_sent(server, shape):
    with pytest.raises(ModelError, match=r"expected windows \[batch, z, y, x, 1\], found shape"):
        AHNetClient(server.target).predict_windows(np.zeros(shape, np.int16))


def test_version_that_is_not_served(server, windows):
    client = AHNetClient(server.target, version=4)
    with pytest.raises(ServingError, match="no version 4 loaded; version 1 is being served"):
        client.predict_windows(windows)


def test_values_that_are_no_intensities(server):
    windows = np.full((1, 1, 2, 2, 1), np.nan, np.float32)
    with pytest.raises(ServingError, match=r"INVALID_ARGUMENT: .*expected finite numbers"):
        AHNetClient(server.target).predict_windows(windows)


def test_messages_above_the_limit_are_not_sent(server):
    client = AHNetClient(server.target, max_message_bytes=10_000)
    fits = np.zeros((1, 1, 20, 40, 1), np.int16)
    assert client.predict_windows(fits).nbytes == 9600
    with pytest.raises(ServingError, match="2000 bytes to send and 12000 to receive"):
        client.predict_windows(np.zeros((1, 1, 25, 40, 1), np.int16))


def test_message_above_the_servers_limit(models):
    with start_server(models, limits=Limits(10_000, 10_000)) as small:
        client = AHNetClient(small.target)
        with pytest.raises(ServingError, match="RESOURCE_EXHAUSTED: the answer of 12000 bytes"):
            client.predict_windows(np.zeros((1, 1, 25, 40, 1), np.int16))
        with pytest.raises(ServingError, match=r"RESOURCE_EXHAUSTED: .*Send fewer or smaller"):
            client.predict_windows(np.zeros((1, 1, 100, 100, 1), np.int16))


def test_no_server():
    port = free_port()
    start = time.monotonic()
    with pytest.raises(ServingError) as caught:
        AHNetClient(f"127.0.0.1:{port}", attempts=2, timeout_s=600).describe()
    assert time.monotonic() - start < 60
    line = str(caught.value)
    assert line.startswith(f"127.0.0.1:{port}/ahnet: expected a model server, found UNAVAILABLE")
    assert "python -m serving.server --model-base-path DIR" in line
    assert "\n" not in line


def test_server_that_comes_up_late_is_waited_for(models, settings, monkeypatch):
    # Loading the model can take longer than a client's usual first attempts.
    monkeypatch.setattr(sync, "FIRST_ATTEMPTS", 30)
    port = free_port()
    found = []
    client = AHNetClient(f"127.0.0.1:{port}", attempts=30, timeout_s=300)
    asking = threading.Thread(target=lambda: found.append(client.describe()))
    asking.start()
    time.sleep(0.3)
    with start_server(models, port=port):
        asking.join(timeout=300)
    assert found == [settings]


def test_only_unavailable_is_tried_again(predict_server):
    for code, calls_expected in (
        (grpc.StatusCode.UNAVAILABLE, 3),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1),
        (grpc.StatusCode.INTERNAL, 1),
        (grpc.StatusCode.INVALID_ARGUMENT, 1),
    ):
        calls = []

        def refuse(request, context, code=code, calls=calls):
            calls.append(request.model_spec.signature_name)
            context.abort(code, "for this test")

        client = AHNetClient(predict_server(refuse), attempts=3)
        with pytest.raises(ServingError, match=f"{code.name}: for this test"):
            client.describe()
        assert calls == ["describe"] * calls_expected


FULL = "The batch scheduling queue to which this task was submitted is full"
TWO_SIZES = "Tensors with name 'image' from different tasks have different shapes and padding is turned off."


@pytest.mark.parametrize(
    ("code", "details", "kind", "words"),
    [
        # What TF Serving answers, in its words.
        ("UNAVAILABLE", FULL, BusyError, "lower in_flight"),
        ("UNAVAILABLE", f"{FULL}; task size is 3", BusyError, "room for the request"),
        ("UNAVAILABLE", "failed to connect to all addresses", UnreachableError, "a model server"),
        ("RESOURCE_EXHAUSTED", "Run() timeout exceeded while waiting", BusyError, "room for"),
        ("FAILED_PRECONDITION", TWO_SIZES, UnfitError, "the model's window size"),
        (
            "FAILED_PRECONDITION",
            'Serving signature key "x" not found.',
            UnfitError,
            "lacks the sig",
        ),
        (
            "NOT_FOUND",
            "Servable not found for request: Latest(x)",
            NotServedError,
            "HOST:PORT/MODEL",
        ),
        ("INVALID_ARGUMENT", "Unrecognized servable version label: x", BadRequestError, "label"),
        ("DEADLINE_EXCEEDED", "", TooSlowError, "Raise timeout_s"),
        ("PERMISSION_DENIED", "", AccessError, "Ask the operator"),
        ("UNIMPLEMENTED", "", ForeignServerError, "Another program"),
    ],
)
def test_what_a_status_means(predict_server, code, details, kind, words):
    def refuse(request, context):
        context.abort(grpc.StatusCode[code], details)

    with pytest.raises(ServingError) as caught:
        AHNetClient(predict_server(refuse), attempts=1).describe()
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert f"{code}: {details}" in str(caught.value)


def test_full_queue_is_waited_for_longer_than_a_server_that_never_answered(
    predict_server, monkeypatch
):
    monkeypatch.setattr(sync, "FIRST_PAUSE_S", 0.01)
    for details, expected in ((FULL, 8), ("failed to connect", sync.FIRST_ATTEMPTS)):
        calls = []

        def refuse(request, context, details=details, calls=calls):
            calls.append(request)
            context.abort(grpc.StatusCode.UNAVAILABLE, details)

        with pytest.raises(ServingError):
            AHNetClient(predict_server(refuse), attempts=8).describe()
        assert len(calls) == expected


def test_version_with_other_classes_or_another_dtype_is_taken_up(tmp_path, settings, export_linear):
    """A client that has asked before gets the answers of the version that is served now."""
    lines = []
    export_linear(tmp_path, 1)

    def export(version, classes, dtype):
        image = keras.Input((None, None, None, 1))
        network = keras.Model(image, keras.layers.Conv3D(classes, 1)(image))
        weights = np.zeros((1, 1, 1, 1, classes), np.float32)
        network.set_weights([weights, np.arange(classes, dtype=np.float32)])
        names = ("background", "liver", "x")[:classes]
        task = attrs.evolve(settings.task, class_names=names, image_dtype=dtype, outside_value=0)
        model = attrs.evolve(settings.model, classes=classes)
        changed = attrs.evolve(settings, task=task, model=model)
        export_model(network, changed, tmp_path / str(version))
        deadline = time.monotonic() + 300
        while not lines or f"version {version} replaces" not in lines[-1]:
            assert time.monotonic() < deadline, lines
            time.sleep(0.02)

    def probabilities(classes):
        return np.exp(np.arange(classes)) / np.exp(np.arange(classes)).sum()

    windows = np.zeros((1, 1, 2, 2, 1), np.int16)
    with (
        start_server(tmp_path, poll_s=0.05, report=lines.append) as running,
        AHNetClient(running.target) as client,
    ):
        assert client.predict_windows(windows).shape == (1, 1, 2, 2, 3)
        export(2, 2, "int16")
        found = client.predict_windows(windows)
        np.testing.assert_allclose(found[0, 0, 0, 0], probabilities(2), atol=1e-6)
        assert client.describe().task.class_names == ("background", "liver")
        # It has no signature for int16: they are sent as float32.
        export(3, 3, "uint16")
        found = client.predict_windows(windows)
        np.testing.assert_allclose(found[0, 0, 0, 0], probabilities(3), atol=1e-6)
        # An error of the version itself remains.
        with pytest.raises(ServingError, match="INVALID_ARGUMENT"):
            client.predict_windows(np.full((1, 1, 1, 1, 1), np.nan, np.float32))


def test_deadline_covers_all_attempts(predict_server):
    released = threading.Event()

    def wait(request, context):
        released.wait(120)
        return predict_pb2.PredictResponse()

    start = time.monotonic()
    with pytest.raises(ServingError, match=r"DEADLINE_EXCEEDED.*Raise timeout_s"):
        AHNetClient(predict_server(wait), timeout_s=0.2).describe()
    with pytest.raises(ServingError, match=r"UNAVAILABLE|DEADLINE_EXCEEDED"):
        AHNetClient(f"127.0.0.1:{free_port()}", timeout_s=0.5, attempts=500).describe()
    assert time.monotonic() - start < 60
    released.set()


def test_another_program_at_the_port():
    other = grpc.server(ThreadPoolExecutor(2))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    with pytest.raises(ServingError, match=r"UNIMPLEMENTED.*Another program answers at this port"):
        AHNetClient(f"127.0.0.1:{port}").describe()
    other.stop(None).wait()


def test_answers_that_are_not_the_expected_ones(predict_server, settings, windows):
    def answer(outputs):
        response = predict_pb2.PredictResponse()
        for name, array in outputs.items():
            response.outputs[name].CopyFrom(protocol.encode_tensor(array))
        return response

    def predict(request, context):
        if request.model_spec.signature_name == "describe":
            return answer({"settings": np.array(json.dumps(settings.to_dict()).encode())})
        return answer({"probabilities": np.zeros((1, 2), np.float32)})

    predictor = open_predictor(predict_server(predict))
    with pytest.raises(
        ServingError, match=r"shape \(2, 3, 5, 7, 3\), found float32 of shape \(1, 2\)"
    ):
        predictor.predict(windows)

    empty = predict_server(lambda request, context: answer({}))
    with pytest.raises(ServingError, match="expected an output 'settings', found none"):
        open_predictor(empty)
    foreign = predict_server(lambda request, context: answer({"settings": np.array(b"{}")}))
    with pytest.raises(ModelError, match="expected the entries task, model"):
        open_predictor(foreign)
