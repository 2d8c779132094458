"""How the embedded server refuses to start: folders that can't be served, options, ports."""

from __future__ import annotations

import shutil
import socket

import pytest

from preprocessing.errors import ServingError
from serving import server
from serving.embedded.core import start_server


def bad_folder(kind, tmp_path, models):
    """Makes a folder that can't be served; returns it and what the error says."""
    base = tmp_path / "models"
    if kind == "absent":
        return base, "expected a folder of numbered SavedModel folders, found nothing there"
    if kind == "version":
        return models / "1", "Give the folder above it"
    shutil.copytree(models, base)
    if kind == "unnumbered":
        (base / "1").rename(base / "liver")
        return base, "expected numbered folders (1, 2, ...) with a saved_model.pb in each"
    if kind == "foreign":
        (base / "1" / "assets.extra" / "ahnet.json").unlink()
        return base, "expected a SavedModel with assets.extra/ahnet.json, found none"
    if kind == "truncated graph":
        path = base / "1" / "saved_model.pb"
        path.write_bytes(path.read_bytes()[:-100])
        return base, "expected a readable SavedModel"
    if kind == "truncated weights":
        path = base / "1" / "variables" / "variables.data-00000-of-00001"
        path.write_bytes(path.read_bytes()[:-10])
        return base, "expected a readable SavedModel"
    if kind == "damaged warm-up":
        path = base / "1" / "assets.extra" / "tf_serving_warmup_requests"
        path.write_bytes(path.read_bytes()[:-3])
        return base, "expected a TFRecord of PredictionLog messages"
    path = base / "1" / "assets.extra" / "ahnet.json"
    path.write_text(path.read_text(encoding="utf-8").replace("softmax", "softplus"))
    return base, "activation: expected one of softmax, sigmoid, found 'softplus'"


@pytest.mark.parametrize(
    "kind",
    [
        "absent",
        "version",
        "unnumbered",
        "foreign",
        "truncated graph",
        "truncated weights",
        "damaged warm-up",
        "changed settings",
    ],
)
def test_folder_that_can_not_be_served(kind, tmp_path, models, capsys):
    base, words = bad_folder(kind, tmp_path, models)
    with pytest.raises(Exception, match="expected") as caught, start_server(base):
        pass
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port", "70000"], "--port: expected a number from 0 to 65535, found 70000"),
        (["--running", "0"], "--running: expected at least 1, found 0"),
        (["--waiting", "-1"], "--waiting: expected at least 0, found -1"),
        (["--grace-s", "-1"], "--grace-s: expected at least 0, found -1.0"),
        (["--metrics-port", "-1"], "--metrics-port: expected a number from 0 to 65535, found -1"),
        (["--batch-windows", "0"], "--batch-windows: expected at least 1, found 0"),
        (["--grace-s", "inf"], "--grace-s: expected at least 0, found inf"),
        (["--tls-key", "key.pem"], "TLS: expected a certificate and its key, found one of them"),
    ],
)
def test_command_refuses_impossible_options(models, capsys, options, words):
    assert server.main(["--model-base-path", str(models), *options]) == 1
    assert words in capsys.readouterr().err


def test_port_in_use(models):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for ports in ({"port": port}, {"metrics_port": port}):
            refused = pytest.raises(ServingError, match=f"127.0.0.1:{port}: expected a free port")
            with refused, start_server(models, **ports):
                pass
