"""REST as TF Serving has it: predictions, status, metadata, errors, metrics."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request

import numpy as np
import pytest

from ahnet_tf.inference.predictor import settings_from_json
from preprocessing.records.schema import Patch, encode_patch
from serving.auth import ServerAccess
from serving.embedded.running import start_server


def ask(address, body=None, headers=()):
    """Returns the status and the JSON (or text) of an answer."""
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address, content, dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            status, text = response.status, response.read().decode()
            is_json = response.headers["Content-Type"].startswith("application/json")
    except urllib.error.HTTPError as error:
        status, text, is_json = error.code, error.read().decode(), True
    return status, json.loads(text) if is_json else text


@pytest.fixture(scope="module")
def model(server):
    return f"{server.rest_address}/v1/models/ahnet"


@pytest.mark.parametrize("path", ["", "/versions/1"])
def test_predictions_by_rows_and_by_columns(model, windows, linear_probabilities, path):
    expected = linear_probabilities(windows, 1.0)
    for body, key in (
        ({"instances": windows.tolist()}, "predictions"),
        ({"instances": [{"image": window} for window in windows.tolist()]}, "predictions"),
        ({"inputs": windows.tolist()}, "outputs"),
        ({"inputs": {"image": windows.tolist()}}, "outputs"),
        (
            {"inputs": windows.tolist(), "signature_name": "predict_windows_int16"},
            "outputs",
        ),
    ):
        status, answer = ask(f"{model}{path}:predict", body)
        assert (status, list(answer)) == (200, [key])
        np.testing.assert_allclose(answer[key], expected, atol=1e-5)
    status, answer = ask(
        f"{model}{path}:predict", {"instances": windows.tolist(), "signature_name": "segment"}
    )
    assert np.array_equal(answer["predictions"], expected.argmax(axis=-1))


def test_examples_as_base64(model, task):
    patch = Patch(
        image_zyx=np.full((3, 4, 5), 100, np.int16),
        label_zyx=np.ones((3, 4, 5), np.uint8),
        case_id="case",
        source="hand",
        index=0,
        origin_zyx=(0, 0, 0),
        valid_zyx=(3, 4, 5),
        volume_shape_zyx=(3, 4, 5),
        spacing_mm=(1.0, 1.0, 5.0),
        intensity_quantiles=(0.0, 0.0, 100.0),
        case_label_voxels=(0, 60, 0),
    )
    text = base64.b64encode(encode_patch(patch, task)).decode()
    status, answer = ask(
        f"{model}:predict",
        {"signature_name": "serialized_examples", "instances": [{"b64": text}, {"b64": text}]},
    )
    assert status == 200
    # Logits (0, 1, 1): the lower class of equals, so all 60 voxels are liver.
    assert [each["counts"] for each in answer["predictions"]] == 2 * [
        [[0, 0, 0], [60, 60, 60], [0, 0, 0]]
    ]


def test_description(model, settings):
    body = {"signature_name": "describe", "inputs": [0]}
    _, answer = ask(f"{model}:predict", body)
    assert settings_from_json(answer["outputs"][0], "answer") == settings


def test_status_and_metadata(model):
    for path in ("", "/versions/1"):
        assert ask(model + path) == (
            200,
            {
                "model_version_status": [
                    {
                        "version": "1",
                        "state": "AVAILABLE",
                        "status": {"error_code": "OK", "error_message": ""},
                    }
                ]
            },
        )
    status, answer = ask(f"{model}/metadata")
    assert status == 200
    assert answer["model_spec"]["version"] == "1"
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert signatures["predict_windows"]["inputs"]["image"]["dtype"] == "DT_FLOAT"


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("ahnet:predict", b"", 400, "expected JSON"),
        ("ahnet:predict", b"[" * 100_000, 400, "expected JSON"),
        ("ahnet:predict", b"\xff\xfe", 400, "expected JSON"),
        ("ahnet:predict", [], 400, "expected an object"),
        ("ahnet:predict", {"instances": [1], "more": 1}, 400, "expected an object"),
        ("ahnet:predict", {"instances": [1], "inputs": [1]}, 400, "exactly one of"),
        ("ahnet:predict", {"instances": []}, 400, "at least one entry"),
        ("ahnet:predict", {"instances": 1}, 400, "at least one entry"),
        ("ahnet:predict", {"instances": [[[[[1]]]]], "signature_name": 3}, 400, "a string"),
        ("ahnet:predict", {"instances": [1], "signature_name": "no"}, 400, "expected one of"),
        ("ahnet:predict", {"inputs": {"mask": [1]}}, 400, "expected image"),
        ("ahnet:predict", {"instances": [[[[[1]]], [[[1, 2]]]]]}, 400, "of one shape"),
        ("ahnet:predict", {"instances": [[[[["a"]]]]]}, 400, "expected numbers"),
        ("ahnet:predict", {"instances": [[[[[None]]]]]}, 400, "expected numbers"),
        ("ahnet:predict", {"instances": [[[[[True]]]]]}, 400, "expected numbers"),
        ("ahnet:predict", b'{"instances": [[[[[NaN]]]]]}', 400, "finite"),
        ("ahnet:predict", b'{"instances": [[[[[1e999]]]]]}', 400, "finite"),
        ("ahnet:predict", b'{"instances": [[[[[1e300]]]]]}', 400, "finite"),
        ("ahnet:predict", {"instances": [[[[1]]]]}, 400, "expected shape"),
        ("ahnet:predict", {"instances": [[[[[]]]]]}, 400, "expected shape"),
        (
            "ahnet:predict",
            {"inputs": [[[[[40000]]]]], "signature_name": "segment_int16"},
            400,
            "int16",
        ),
        (
            "ahnet:predict",
            {"inputs": [[[[[0.5]]]]], "signature_name": "segment_int16"},
            400,
            "int16",
        ),
        ("ahnet:predict", {"inputs": 10**400}, 400, "expected numbers"),
        (
            "ahnet:predict",
            {"inputs": [{"b64": "?"}], "signature_name": "serialized_examples"},
            400,
            "expected base64",
        ),
        (
            "ahnet:predict",
            {"inputs": [7], "signature_name": "serialized_examples"},
            400,
            "strings",
        ),
        ("liver:predict", {"instances": [1]}, 404, "'liver' is not served here"),
        ("ahnet/versions/2:predict", {"instances": [1]}, 404, "no version 2 loaded"),
        ("ahnet/labels/stable:predict", {"instances": [1]}, 404, "no version label 'stable'"),
        (f"ahnet/versions/{2**63}:predict", {"instances": [1]}, 400, "below 2\\*\\*63"),
        ("ahnet:classify", {"instances": [1]}, 404, "Not Found"),
        ("liver", None, 404, "is not served here"),
        ("ahnet/versions/9", None, 404, "no version 9"),
        ("ahnet/metadata/more", None, 404, "Not Found"),
        ("ahnet:predict", None, 405, "Method Not Allowed"),
    ],
)
def test_errors(server, path, body, status, words):
    found, answer = ask(f"{server.rest_address}/v1/models/{path}", body)
    assert found == status, answer
    assert list(answer) == ["error"]
    assert words.replace("\\", "") in answer["error"]


def test_bodies_and_answers_that_are_too_large(model):
    status, answer = ask(f"{model}:predict", b'{"instances": [' + b"0," * 2**23 + b"0]}")
    assert (status, answer) == (413, {"error": "expected a body of at most 16777216 bytes"})
    row = "[" + ",".join(["[0]"] * 1200) + "]"
    body = '{"instances": [[[' + ",".join([row] * 1200) + "]]]}"
    status, answer = ask(f"{model}:predict", body.encode())
    assert status == 503
    assert "above the limit of 4194304 for JSON; use gRPC" in answer["error"]


def test_metrics(models, windows):
    with start_server(models, rest_port=0) as running:
        model = f"{running.rest_address}/v1/models/ahnet"
        for _ in range(3):
            ask(f"{model}:predict", {"instances": windows.tolist()})
        ask(f"{model}:predict", b"")
        status, text = ask(f"{running.rest_address}/monitoring/prometheus/metrics")
    assert status == 200
    lines = text.splitlines()
    counts = 'ahnet_serving_requests_total{method="Predict",protocol="rest",status='
    assert f'{counts}"OK"}} 3.0' in lines
    assert f'{counts}"INVALID_ARGUMENT"}} 1.0' in lines
    assert "ahnet_serving_batch_requests_count 3.0" in lines
    assert "ahnet_serving_waiting 0.0" in lines


def test_token_is_asked_for(models, windows):
    access = ServerAccess(token="a-token-of-some-length")
    with start_server(models, rest_port=0, access=access) as running:
        for path, body in (
            ("/v1/models/ahnet", None),
            ("/v1/models/ahnet:predict", {"instances": windows.tolist()}),
            ("/monitoring/prometheus/metrics", None),
        ):
            address = running.rest_address + path
            for header in ("", "Bearer a-token-of-some-lengtH", "Basic a-token-of-some-length"):
                status, answer = ask(address, body, [("Authorization", header)])
                assert status == 401
                assert "authorization: Bearer TOKEN" in answer["error"]
            right = [("Authorization", "Bearer a-token-of-some-length")]
            assert ask(address, body, right)[0] == 200
