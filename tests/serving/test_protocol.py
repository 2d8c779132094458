"""TF Serving's protocol as the clients of others use it: the embedded server, and TF Serving itself where
`tensorflow_model_server` is on the PATH, give the same answers and the same status codes."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
import tensorflow as tf
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from ahnet_tf.inference.predictor import open_predictor

State = get_model_status_pb2.ModelVersionStatus.State


@pytest.fixture
def channel(model_server):
    with grpc.insecure_channel(model_server) as opened:
        yield opened


@pytest.fixture
def predict(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict


@pytest.fixture
def get_metadata(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel).GetModelMetadata


@pytest.fixture
def get_status(channel):
    return model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus


def sound_request(signature="predict_windows"):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "ahnet"
    request.model_spec.signature_name = signature
    request.inputs["image"].CopyFrom(tf.make_tensor_proto(np.ones((1, 2, 3, 4, 1), np.float32)))
    return request


def code_of(method, request):
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=30)
    return caught.value.code()


def test_remote_answer_is_the_local_one(model_server, models, windows, linear_probabilities):
    local, remote = open_predictor(str(models)), open_predictor(f"{model_server}/ahnet")
    assert remote.settings == local.settings
    for given in (windows, windows.astype(np.float32), windows.astype(np.float64)):
        found = remote.predict(given)
        np.testing.assert_allclose(found, local.predict(given), atol=1e-6)
        np.testing.assert_allclose(found, linear_probabilities(windows, 1.0), atol=1e-5)


def test_predict_request_as_other_programs_send_it(predict, windows):
    """By the public stubs alone, with tf.make_tensor_proto and the default signature."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "ahnet"
    request.model_spec.version.value = 1
    request.inputs["image"].CopyFrom(tf.make_tensor_proto(windows.astype(np.float32)))
    request.output_filter.append("probabilities")
    response = predict(request, timeout=30)
    assert response.model_spec.name == "ahnet"
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == "serving_default"
    assert list(response.outputs) == ["probabilities"]
    assert tf.make_ndarray(response.outputs["probabilities"]).shape == (2, 3, 5, 7, 3)


def test_prediction_without_a_deadline(predict):
    assert predict(sound_request()).model_spec.version.value == 1


def metadata_request(model="ahnet", fields=("signature_def",)):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    request.model_spec.name = model
    return request


def test_metadata_is_the_signatures_of_the_file(get_metadata):
    response = get_metadata(metadata_request(), timeout=30)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert response.model_spec.version.value == 1
    # TF Serving lists an internal entry of the file too.
    assert sorted(set(signatures.signature_def) - {"__saved_model_init_op"}) == [
        "describe",
        "predict_windows",
        "predict_windows_int16",
        "segment",
        "segment_int16",
        "serialized_examples",
        "serving_default",
    ]
    image = signatures.signature_def["segment_int16"].inputs["image"]
    assert image.dtype == tf.int16.as_datatype_enum
    assert [dim.size for dim in image.tensor_shape.dim] == [-1, -1, -1, -1, 1]


def status_request(version=None, model="ahnet"):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = model
    if version:
        request.model_spec.version.value = version
    return request


def test_status_of_versions(get_status):
    for version in (None, 1):
        (entry,) = get_status(status_request(version), timeout=30).model_version_status
        assert (entry.version, entry.state) == (1, State.AVAILABLE)


def test_health(channel):
    check = health_pb2_grpc.HealthStub(channel).Check
    answer = check(health_pb2.HealthCheckRequest(), timeout=30)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    unknown = health_pb2.HealthCheckRequest(service="unknown")
    assert code_of(check, unknown) == grpc.StatusCode.NOT_FOUND


def other_model(request):
    request.model_spec.name = "liver"


def no_model(request):
    request.model_spec.name = ""


def other_version(request):
    request.model_spec.version.value = 7


def unknown_label(request):
    request.model_spec.version_label = "stable"


def unknown_signature(request):
    request.model_spec.signature_name = "predict"


def unknown_output(request):
    request.output_filter.append("labels")


def no_input(request):
    request.ClearField("inputs")


def other_input(request):
    request.inputs["volume"].CopyFrom(request.inputs["image"])
    del request.inputs["image"]


def other_dtype(request):
    request.inputs["image"].CopyFrom(tf.make_tensor_proto(np.ones((1, 2, 3, 4, 1), np.float64)))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (other_model, grpc.StatusCode.NOT_FOUND),
        (no_model, grpc.StatusCode.INVALID_ARGUMENT),
        (other_version, grpc.StatusCode.NOT_FOUND),
        (unknown_label, grpc.StatusCode.INVALID_ARGUMENT),
        (unknown_signature, grpc.StatusCode.FAILED_PRECONDITION),
        (unknown_output, grpc.StatusCode.INVALID_ARGUMENT),
        (no_input, grpc.StatusCode.INVALID_ARGUMENT),
        (other_input, grpc.StatusCode.INVALID_ARGUMENT),
        (other_dtype, grpc.StatusCode.INVALID_ARGUMENT),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_status_codes_of_refused_predictions(predict, change, code):
    request = sound_request()
    assert predict(request, timeout=30).model_spec.version.value == 1
    change(request)
    assert code_of(predict, request) == code


def test_status_codes_of_other_methods(get_status, get_metadata):
    not_found, invalid = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT
    assert code_of(get_status, status_request(version=2)) == not_found
    assert code_of(get_status, status_request(model="liver")) == not_found
    assert code_of(get_metadata, metadata_request(model="liver")) == not_found
    assert code_of(get_metadata, metadata_request(fields=())) == invalid
    assert code_of(get_metadata, metadata_request(fields=("assets",))) == invalid
