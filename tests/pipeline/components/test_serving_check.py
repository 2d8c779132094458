"""A model is pushed only if a server in another process returns the same numbers."""

from __future__ import annotations

import shutil
import time

import numpy as np
import pytest
from tfx.components.infra_validator.error_types import ValidationFailed
from tfx.components.infra_validator.model_server_clients.tensorflow_serving_client import (
    TensorFlowServingClient,
)
from tfx.components.infra_validator.request_builder import build_requests
from tfx.types import standard_artifacts

from ahnet_tf.inference.predictor import ExportSettings
from ahnet_tf.networks import build_network
from pipeline.components.serving_check import (
    _compare,
    answer_requests,
    check_answers,
    first_patches,
    serving_sentence,
)
from pipeline.dag import serving_requests
from preprocessing.errors import ModelError, PipelineError
from serving.embedded.core import start_server
from serving.export.exporter import export_model


@pytest.fixture(scope="module")
def export(tmp_path_factory, task, model_config):
    settings = ExportSettings(task, model_config, task.patch_shape_zyx)
    return export_model(
        build_network(model_config), settings, tmp_path_factory.mktemp("model") / "export"
    )


def test_patches_are_of_different_cases(records, task):
    files = [str(path) for split in ("train", "eval") for path in (records / split).iterdir()]
    patches = first_patches(files * 2, task, 3)
    assert list(patches) == ["case-0", "case-1"]
    assert patches["case-0"].shape == (1, *task.patch_shape_zyx, 1)
    assert list(first_patches(files, task, 1)) == ["case-0"]


def answered(model_folder, examples_folder, folder):
    """Runs the component; returns its blessing."""
    model, examples = standard_artifacts.Model(), standard_artifacts.Examples()
    model.uri, examples.uri = str(model_folder), str(examples_folder)
    examples.split_names = '["eval"]'
    blessing = standard_artifacts.InfraBlessing()
    blessing.uri = str(folder / "blessing")
    answer_requests.EXECUTOR_SPEC.executor_class().Do(
        {"model": [model], "examples": [examples]},
        {"blessing": [blessing]},
        {"requests": 3, "code_version": "1"},
    )
    return blessing


def test_a_model_that_nothing_was_asked_is_refused(records, tmp_path):
    """Without a record, or with no request to send, nothing speaks for the model."""
    empty = tmp_path / "empty.tfrecord"
    empty.touch()
    files = [str(path) for path in (records / "eval").iterdir()]
    for given, requests in (([], 3), ([str(empty)], 3), (files, 0)):
        with pytest.raises(ModelError, match="expected a request, and an evaluation patch"):
            check_answers(str(tmp_path / "no export"), given, requests)

    blessing = answered(tmp_path, tmp_path, tmp_path)
    assert blessing.get_int_custom_property("blessed") == 0
    assert "found 3 requests, and no record in 0 files" in serving_sentence(blessing.uri, False)


@pytest.mark.slow
def test_a_sound_export_answers_and_a_damaged_one_does_not(export, records, tmp_path):
    files = [str(path) for path in (records / "eval").iterdir()]
    check_answers(str(export), files, 1)

    damaged = tmp_path / "damaged"
    shutil.copytree(export, damaged)
    (damaged / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"no requests")
    with pytest.raises(ModelError, match="expected a TFRecord of PredictionLog"):
        check_answers(str(damaged), files, 1)


@pytest.mark.slow
def test_a_server_that_is_not_ready_in_time_says_nothing_about_the_model(
    export, records, tmp_path, monkeypatch
):
    """TFX repeats a component that failed, but not one that refused a model."""
    shutil.copytree(records / "eval", tmp_path / "examples" / "Split-eval")
    model = tmp_path / "model"
    shutil.copytree(export, model / "Format-Serving")
    monkeypatch.setattr("pipeline.stages.START_S", 0.1)
    with pytest.raises(PipelineError, match=r"model server of .*: expected a line"):
        answered(model, tmp_path / "examples", tmp_path)
    assert not list(tmp_path.glob("blessing/*"))

    (model / "Format-Serving" / "saved_model.pb").write_bytes(b"no model")
    blessing = answered(model, tmp_path / "examples", tmp_path)
    assert blessing.get_int_custom_property("blessed") == 0
    assert "a readable SavedModel" in serving_sentence(blessing.uri, False)


def test_requests_of_infra_validator_are_answered(export, records, task, tmp_path):
    """Those that TFX builds from the pipeline's own settings, sent as its client sends them."""
    examples = standard_artifacts.Examples()
    examples.uri, examples.split_names = str(tmp_path / "examples"), '["train", "eval"]'
    for split in ("train", "eval"):
        shutil.copytree(records / split, tmp_path / "examples" / f"Split-{split}")
    model = standard_artifacts.Model()
    model.uri = str(tmp_path / "model")
    shutil.copytree(export, tmp_path / "model" / "Format-Serving")
    versions = tmp_path / "versions"
    shutil.copytree(export, versions / "1")
    requests = build_requests("ahnet", model, examples, serving_requests(task))
    assert {request.model_spec.signature_name for request in requests} == {"serialized_examples"}
    with start_server(versions) as server:
        client = TensorFlowServingClient(server.address, "ahnet")
        client.WaitUntilModelLoaded(time.time() + 30, polling_interval_sec=1)
        client.SendRequests(requests)
        requests[0].inputs["examples"].string_val[:] = [b"no record"]
        with pytest.raises(ValidationFailed, match="failed to respond"):
            client.SendRequests(requests)


def test_other_numbers_are_refused(tmp_path):
    answer = np.full((1, 2, 2, 2, 3), 1 / 3, np.float32)
    _compare(answer, answer + 5e-5, "model", "case-0")
    for other in (answer + 2e-4, np.full_like(answer, np.nan)):
        with pytest.raises(ModelError, match="case case-0: expected probabilities"):
            _compare(other, answer, "model", "case-0")
    assert "answered" in serving_sentence(str(tmp_path), True)
    (tmp_path / "refusal.json").write_text('{"reason": "out of memory"}')
    assert serving_sentence(str(tmp_path), False).endswith("(out of memory)")
