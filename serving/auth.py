"""TLS certificates of server and client, and the client's bearer token."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

import grpc

from preprocessing.errors import SettingsError

MIN_TOKEN_LENGTH = 16

# Commands that call a server read these; other users could see a token on a command line.
TOKEN_FILE_VARIABLE = "AHNET_SERVING_TOKEN_FILE"
ROOTS_VARIABLE = "AHNET_SERVING_ROOTS"


def server_credentials(
    certificate: str | Path | None, key: str | Path | None
) -> grpc.ServerCredentials | None:
    """Returns the TLS credentials of a server from two PEM files; None, without TLS, if both are None.

    Raises:
      SettingsError: one file without the other, a file that can't be read, or they are not a
        certificate (with its chain) and its private key.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        remedy = "Give both files, or neither."
        raise SettingsError("TLS", "a certificate and its key", "one of them", remedy)
    try:
        # gRPC accepts any bytes here and fails at the first call; Python's ssl checks them.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        pair = (Path(key).read_bytes(), Path(certificate).read_bytes())
    except (OSError, ssl.SSLError) as error:
        expected = "PEM files of a certificate and its key"
        raise SettingsError(f"{certificate}, {key}", expected, error) from None
    return grpc.ssl_server_credentials([pair])


def read_token(path: str | Path) -> str:
    """Returns the token in a file, without surrounding white space.

    Raises:
      SettingsError: the file can't be read, or the token is too short or not one ASCII word.
    """
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(path, "a file with a token", error) from None
    if len(token) < MIN_TOKEN_LENGTH or not token.isprintable() or " " in token:
        expected = f"one word of at least {MIN_TOKEN_LENGTH} ASCII characters"
        remedy = "Make one: python -c 'import secrets; print(secrets.token_urlsafe())' > FILE"
        raise SettingsError(path, expected, f"{len(token)} characters", remedy)
    return token


def client_credentials(roots: str | Path | None) -> grpc.ChannelCredentials:
    """Returns the TLS credentials of a client that trusts the certificates in the PEM file `roots`.

    With None it trusts gRPC's default ones.

    Raises:
      SettingsError: the file can't be read or holds no certificate.
    """
    if roots is None:
        return grpc.ssl_channel_credentials()
    try:
        ssl.create_default_context(cafile=str(roots))
        return grpc.ssl_channel_credentials(Path(roots).read_bytes())
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(roots, "a PEM file of certificates to trust", error) from None


def access_from_environment() -> dict[str, Any]:
    """Returns the `ClientSettings` fields that commands read from the environment.

    AHNET_SERVING_TOKEN_FILE names a file with the token. AHNET_SERVING_ROOTS enables TLS and names a
    PEM file of certificates to trust, or is "system" for the default ones.
    """
    settings: dict[str, Any] = {}
    if os.environ.get(TOKEN_FILE_VARIABLE):
        settings["token"] = read_token(os.environ[TOKEN_FILE_VARIABLE])
    roots = os.environ.get(ROOTS_VARIABLE)
    if roots:
        settings["tls"] = True
        settings["tls_roots"] = None if roots == "system" else roots
    return settings
