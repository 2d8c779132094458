"""The embedded server with OpenVINO: the answers of TensorFlow for every signature."""

import importlib.util

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from ahnet_tf.inference import openvino_runtime
from ahnet_tf.inference.predictor import open_predictor
from preprocessing.errors import ModelError
from serving.embedded.core import start_server
from tests.serving.server_process import ServerProcess

if importlib.util.find_spec("openvino") is None:
    pytest.skip("OpenVINO is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def fast_server(models):
    with start_server(models, backend="openvino") as running:
        yield running


def answer(address, signature, name, content):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "ahnet", signature
    request.inputs[name].CopyFrom(tf.make_tensor_proto(content))
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        outputs = stub.Predict(request, timeout=60).outputs
    return {name: tf.make_ndarray(found) for name, found in outputs.items()}


@pytest.mark.parametrize("signature", ["predict_windows", "segment", "serving_default"])
def test_window_signatures_answer_as_tensorflow(fast_server, server, windows, signature):
    kinds = [(signature, windows.astype(np.float32))]
    if signature != "serving_default":
        kinds.append((f"{signature}_int16", windows))
    for name, given in kinds:
        found, expected = (
            answer(each.address, name, "image", given) for each in (fast_server, server)
        )
        assert found.keys() == expected.keys()
        for key, values in expected.items():
            assert found[key].dtype == values.dtype
            np.testing.assert_allclose(found[key], values, atol=1e-4)


def test_settings_and_clients(fast_server, server, windows, linear_probabilities):
    given = np.zeros(1, np.int32)
    found = answer(fast_server.address, "describe", "unused", given)
    assert found == answer(server.address, "describe", "unused", given)
    found = open_predictor(fast_server.target).predict(windows)
    np.testing.assert_allclose(found, linear_probabilities(windows, 1.0), atol=1e-4)


@pytest.mark.slow
def test_command(models, windows, linear_probabilities):
    process = ServerProcess(models, "--backend", "openvino")
    try:
        found = open_predictor(f"{process.address}/ahnet").predict(windows)
        np.testing.assert_allclose(found, linear_probabilities(windows, 1.0), atol=1e-4)
    finally:
        code, _, errors = process.stop()
    assert (code, errors) == (0, "")


def test_not_installed(models, monkeypatch):
    monkeypatch.setattr(openvino_runtime, "_is_installed", lambda: False)
    with (
        pytest.raises(ModelError, match="expected the package openvino, found none"),
        start_server(models, backend="openvino", report=lambda line: None),
    ):
        pass
