"""TLS and tokens over gRPC, with certificates made for the test."""

from __future__ import annotations

import subprocess

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ahnet_tf.inference.predictor import open_predictor
from preprocessing.errors import ServingError, SettingsError
from serving import status
from serving.auth import ServerAccess, read_token
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
    access = ServerAccess(TOKEN, *certificate)
    with start_server(models, access=access) as running:
        yield running


def test_right_certificate_and_token(secure, certificate, windows, linear_probabilities):
    with AHNetClient(secure.target, tls=True, tls_roots=certificate[0], token=TOKEN) as client:
        found = client.predict_windows(windows)
    np.testing.assert_allclose(found, linear_probabilities(windows, 1.0), atol=1e-5)


@pytest.mark.parametrize("token", [None, "another-token-of-some-length", TOKEN + " "])
def test_wrong_token(secure, certificate, token):
    client = AHNetClient(secure.target, tls=True, tls_roots=certificate[0], token=token)
    with pytest.raises(AccessError, match=r"UNAUTHENTICATED.*AHNET_SERVING_TOKEN_FILE"):
        client.describe()
    with pytest.raises(AccessError):
        client.status()


def test_without_tls_or_with_another_certificate(secure):
    for tls in ({}, {"tls": True}):
        with pytest.raises(UnreachableError, match="whether it requires TLS"):
            AHNetClient(secure.target, attempts=1, timeout_s=5, **tls).describe()


def test_health_needs_no_token(secure, certificate):
    credentials = grpc.ssl_channel_credentials(certificate[0].read_bytes())
    with grpc.secure_channel(secure.address, credentials) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_commands_take_token_and_roots_from_the_environment(
    secure, certificate, tmp_path, monkeypatch, capsys
):
    (tmp_path / "token").write_text(TOKEN + "\n")
    monkeypatch.setenv("AHNET_SERVING_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AHNET_SERVING_ROOTS", str(certificate[0]))
    assert status.main(["--target", secure.target]) == 0
    assert "version 1: AVAILABLE" in capsys.readouterr().out
    assert open_predictor(secure.target).settings.task.name == "tiny"


def test_tokens_do_not_leave_the_machine_unencrypted():
    with pytest.raises(ServingError, match="expected TLS with a token, found none"):
        AHNetClient("model.example:8500", token=TOKEN)
    AHNetClient("localhost:8500", token=TOKEN).close()


def test_certificates_that_are_none(models, certificate, tmp_path):
    (tmp_path / "x.pem").write_text("no certificate")
    with pytest.raises(SettingsError, match="expected a certificate and its key, found one"):
        ServerAccess(certificate=certificate[0])
    access = ServerAccess(certificate=tmp_path / "x.pem", key=certificate[1])
    refused = pytest.raises(SettingsError, match="PEM files of a certificate and its key")
    with refused, start_server(models, access=access):
        pass
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
