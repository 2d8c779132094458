"""TLS on both sides and the client's token, with certificates made for the test."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusResponse
from tensorflow_serving.apis.predict_pb2 import PredictResponse

from ahnet_tf.inference.predictor import open_predictor
from preprocessing.errors import ServingError, SettingsError
from serving import protocol, status
from serving.auth import read_token, server_credentials
from serving.client.errors import AccessError, UnreachableError
from serving.client.sync import AHNetClient
from serving.embedded.core import start_server

TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-signed certificate for localhost and its key."""
    folder = tmp_path_factory.mktemp("tls")
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    try:
        subprocess.run(["openssl", *words.split(), *names, *files], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl to make a certificate with")
    return folder / "certificate.pem", folder / "key.pem"


@pytest.fixture(scope="module")
def secure(models, certificate):
    with start_server(models, credentials=server_credentials(*certificate)) as running:
        yield running


class Gateway(grpc.GenericRpcHandler):
    """Stands before a model: records the authorization of each call, and accepts only `TOKEN`."""

    def __init__(self, settings):
        self.seen = []
        description = protocol.encode_tensor(np.array(json.dumps(settings.to_dict()).encode()))
        status = GetModelStatusResponse()
        status.model_version_status.add(version=1, state="AVAILABLE")
        self._answers = {
            "Predict": PredictResponse(outputs={protocol.SETTINGS_OUTPUT: description}),
            "GetModelStatus": status,
        }

    def service(self, call):
        sent = [value for key, value in call.invocation_metadata if key == "authorization"]
        self.seen.append(sent)
        response = self._answers[call.method.rpartition("/")[2]].SerializeToString()

        def answer(request, context):
            if sent != [f"Bearer {TOKEN}"]:
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "another token")
            return response

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def gateway(settings, certificate):
    handler = Gateway(settings)
    running = grpc.server(ThreadPoolExecutor(2), [handler])
    port = running.add_secure_port("localhost:0", server_credentials(*certificate))
    running.start()
    yield f"localhost:{port}", handler.seen
    running.stop(None).wait()


def test_right_certificate(secure, certificate, windows, linear_probabilities):
    with AHNetClient(secure.target, tls=True, tls_roots=certificate[0]) as client:
        found = client.predict_windows(windows)
    np.testing.assert_allclose(found, linear_probabilities(windows, 1.0), atol=1e-5)


def test_every_call_sends_the_token(gateway, certificate, settings):
    address, seen = gateway
    with AHNetClient(address, tls=True, tls_roots=certificate[0], token=TOKEN) as client:
        assert client.describe() == settings
        assert client.status()[0].version == 1
    assert seen == [[f"Bearer {TOKEN}"]] * 2


@pytest.mark.parametrize("token", [None, "another-token-of-some-length", TOKEN + "x"])
def test_wrong_token(gateway, certificate, token):
    address, seen = gateway
    client = AHNetClient(address, tls=True, tls_roots=certificate[0], token=token)
    with pytest.raises(AccessError, match=r"UNAUTHENTICATED.*AHNET_SERVING_TOKEN_FILE"):
        client.describe()
    with pytest.raises(AccessError):
        client.status()
    assert seen == [[] if token is None else [f"Bearer {token}"]] * 2


def test_without_tls_or_with_another_certificate(secure):
    for tls in ({}, {"tls": True}):
        with pytest.raises(UnreachableError, match="whether it requires TLS"):
            AHNetClient(secure.target, attempts=1, timeout_s=5, **tls).describe()


def test_health_through_tls(secure, certificate):
    credentials = grpc.ssl_channel_credentials(certificate[0].read_bytes())
    with grpc.secure_channel(secure.address, credentials) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_commands_take_token_and_roots_from_the_environment(
    gateway, certificate, tmp_path, monkeypatch, capsys
):
    address, _ = gateway
    (tmp_path / "token").write_text(TOKEN + "\n")
    monkeypatch.setenv("AHNET_SERVING_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AHNET_SERVING_ROOTS", str(certificate[0]))
    assert status.main(["--target", address]) == 0
    assert "version 1: AVAILABLE" in capsys.readouterr().out
    assert open_predictor(address).settings.task.name == "tiny"


def test_tokens_do_not_leave_the_machine_unencrypted():
    with pytest.raises(ServingError, match="expected TLS with a token, found none"):
        AHNetClient("model.example:8500", token=TOKEN)
    AHNetClient("localhost:8500", token=TOKEN).close()


def test_certificates_that_are_none(certificate, tmp_path):
    (tmp_path / "x.pem").write_text("no certificate")
    with pytest.raises(SettingsError, match="expected a certificate and its key, found one"):
        server_credentials(certificate[0], None)
    with pytest.raises(SettingsError, match="PEM files of a certificate and its key"):
        server_credentials(tmp_path / "x.pem", certificate[1])
    with pytest.raises(SettingsError, match="a PEM file of certificates to trust"):
        AHNetClient("localhost:8500", tls=True, tls_roots=tmp_path / "x.pem")


@pytest.mark.parametrize("content", ["", "short", "two words of a length", "täglich-neu-gewürfelt"])
def test_tokens_that_are_none(tmp_path, content):
    (tmp_path / "token").write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match="expected"):
        read_token(tmp_path / "token")


def test_token_file_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match="expected a file with a token"):
        read_token(tmp_path / "absent")
