"""Several models, version policies, labels, and their change by HandleReloadConfigRequest."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc

from preprocessing.errors import ModelError
from serving.client.errors import NotServedError
from serving.client.sync import AHNetClient
from serving.embedded.policy import ModelConfig, VersionPolicy
from serving.embedded.running import start_models, start_server


@pytest.fixture(scope="module")
def many(tmp_path_factory, export_linear):
    """Folders with the versions 1, 2, 3 of a model and 4 of another."""
    root = tmp_path_factory.mktemp("many")
    for version in (1, 2, 3):
        export_linear(root / "ahnet", version)
    export_linear(root / "liver", 4)
    return root


def reload(running, *configs):
    request = model_management_pb2.ReloadConfigRequest()
    for name, base_path, more in configs:
        config = request.config.model_config_list.config.add()
        text_format.Parse(more, config)
        config.name, config.base_path = name, str(base_path)
    with grpc.insecure_channel(running.address) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        return stub.HandleReloadConfigRequest(request, timeout=60).status.error_code


def offset_of(target):
    """The model's version by its answer: the logits at 0 HU are (0, 0, version)."""
    with AHNetClient(target) as client:
        tumour = client.predict_windows(np.zeros((1, 1, 1, 1, 1), np.int16))[0, 0, 0, 0, 2]
    return round(float(np.log(tumour / (1 - tumour) * 2)))


def test_policies_labels_and_other_models(many):
    quiet = {"poll_s": 0.1, "report": lambda line: None}
    with start_server(many / "ahnet", reload_roots=[many], **quiet) as running:
        assert offset_of(running.target) == 3
        with pytest.raises(NotServedError, match="no version 1 loaded; version 3 is being served"):
            offset_of(f"{running.target}/versions/1")

        policy = "model_version_policy { specific { versions: 1 versions: 2 } }"
        labels = (
            "version_labels { key: 'stable' value: 1 } version_labels { key: 'canary' value: 2 }"
        )
        assert reload(running, ("ahnet", many / "ahnet", f"{policy} {labels}")) == 0
        assert offset_of(running.target) == 2
        assert offset_of(f"{running.target}/versions/1") == 1
        assert offset_of(f"{running.target}/labels/stable") == 1
        assert offset_of(f"{running.target}/labels/canary") == 2
        with pytest.raises(NotServedError, match=r"no version label 'x'; labels: canary, stable"):
            offset_of(f"{running.target}/labels/x")

        latest = "model_version_policy { latest { num_versions: 2 } }"
        assert (
            reload(running, ("ahnet", many / "ahnet", latest), ("liver", many / "liver", "")) == 0
        )
        assert offset_of(f"{running.target}/versions/2") == 2
        assert offset_of(f"{running.address}/liver") == 4
        with pytest.raises(NotServedError, match="no version label 'stable'; labels: none"):
            offset_of(f"{running.target}/labels/stable")

        # The same name may come from another folder, whatever the versions' numbers.
        assert reload(running, ("ahnet", many / "liver", "")) == 0
        assert offset_of(running.target) == 4

        assert reload(running, ("liver", many / "liver", "")) == 0
        with pytest.raises(NotServedError, match="'ahnet' is not served here; 'liver' is"):
            offset_of(running.target)


def test_configurations_that_are_refused_change_nothing(many, tmp_path):
    with start_server(many / "ahnet", report=lambda line: None) as running:
        ahnet = many / "ahnet"
        for name, base_path, more, code, words in (
            ("ahnet", "/", "", "PERMISSION_DENIED", "may load models from"),
            ("liver", many / "liver", "", "PERMISSION_DENIED", "may load models from"),
            ("ahnet", ahnet / ".." / "liver", "", "PERMISSION_DENIED", "may load models from"),
            (
                "ahnet",
                ahnet,
                "version_labels { key: 'stable' value: 1 }",
                "FAILED_PRECONDITION",
                "'stable' names version 1, which is not loaded",
            ),
            (
                "ahnet",
                ahnet,
                "model_version_policy { specific { versions: 9 } }",
                "FAILED_PRECONDITION",
                "none of the wanted versions",
            ),
            ("ahnet", ahnet / "absent", "", "FAILED_PRECONDITION", "found nothing there"),
            ("ahnet", ahnet, "model_platform: 'other'", "INVALID_ARGUMENT", "model_platform"),
            ("", ahnet, "", "INVALID_ARGUMENT", "expected a name"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                reload(running, (name, base_path, more))
            assert caught.value.code().name == code
            assert words in caught.value.details()
        with pytest.raises(grpc.RpcError) as caught:
            reload(running)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert offset_of(running.target) == 3


def test_all_versions(many):
    config = ModelConfig("ahnet", many / "ahnet", VersionPolicy(latest=0), {"old": 1})
    with start_models([config], report=lambda line: None) as running:
        assert [offset_of(f"{running.target}/versions/{n}") for n in (1, 2, 3)] == [1, 2, 3]
        assert offset_of(f"{running.target}/labels/old") == 1


def test_label_of_a_version_that_is_not_there(many):
    config = ModelConfig("ahnet", many / "ahnet", VersionPolicy(), {"stable": 1})
    refused = pytest.raises(ModelError, match="expected a loaded version for each label")
    with refused, start_models([config], report=lambda line: None):
        pass
