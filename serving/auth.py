"""TLS certificates and bearer tokens for server and client."""

from __future__ import annotations

import hmac
import os
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from preprocessing.errors import SettingsError

# gRPC metadata keys are lower case.
AUTHORIZATION = "authorization"
MIN_TOKEN_LENGTH = 16

# Commands that call a server read these; other users could see a token on a command line.
TOKEN_FILE_VARIABLE = "AHNET_SERVING_TOKEN_FILE"
ROOTS_VARIABLE = "AHNET_SERVING_ROOTS"


@dataclass(frozen=True)
class ServerAccess:
    """What a server requires of its clients.

    Attributes:
      token: every call must send "authorization: Bearer TOKEN"; None accepts all calls.
      certificate: PEM file with the server's certificate chain; None disables TLS.
      key: PEM file with the private key of the certificate.
    """

    token: str | None = field(default=None, repr=False)
    certificate: str | Path | None = None
    key: str | Path | None = None

    def __post_init__(self):
        if (self.certificate is None) != (self.key is None):
            raise SettingsError(
                "TLS", "a certificate and its key", "one of them", "Give both files, or neither."
            )

    def admits(self, metadata: Iterable[tuple[str, str | bytes]]) -> bool:
        """Returns whether a call with this gRPC metadata is accepted."""
        if self.token is None:
            return True
        values = [value for key, value in metadata if key == AUTHORIZATION]
        if len(values) != 1 or not isinstance(values[0], str):
            return False
        return hmac.compare_digest(
            values[0].encode("utf-8", "replace"), f"Bearer {self.token}".encode()
        )

    def credentials(self) -> grpc.ServerCredentials | None:
        """Returns the certificate and key as gRPC credentials; None without TLS.

        Raises:
          SettingsError: a file can't be read, or they are not a certificate and its key.
        """
        if self.certificate is None or self.key is None:
            return None
        try:
            # gRPC accepts any bytes here and fails at the first call; Python's ssl checks them.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key)
            pair = (Path(self.key).read_bytes(), Path(self.certificate).read_bytes())
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"{self.certificate}, {self.key}", "PEM files of a certificate and its key", error
            ) from None
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
        raise SettingsError(
            path,
            f"one word of at least {MIN_TOKEN_LENGTH} ASCII characters",
            f"{len(token)} characters",
            "Make one: python -c 'import secrets; print(secrets.token_urlsafe())' > FILE",
        )
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
