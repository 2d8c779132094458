"""Who may call: TLS certificates and tokens, at both ends of a connection."""

from __future__ import annotations

import hmac
import os
import ssl
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from preprocessing.errors import SettingsError

# gRPC's metadata keys are lower case; HTTP's header names don't care.
AUTHORIZATION = "authorization"
SHORTEST_TOKEN = 16

# What commands that call a server read; a token on a command line could be seen by everyone.
TOKEN_FILE_VARIABLE = "AHNET_SERVING_TOKEN_FILE"
ROOTS_VARIABLE = "AHNET_SERVING_ROOTS"


@dataclass(frozen=True)
class ServerAccess:
    """What a server asks of those who call.

    Attributes:
      token: what every call has to bring as "authorization: Bearer TOKEN"; None takes all.
      certificate: PEM file with the server's certificate chain; None speaks plainly.
      key: PEM file with its private key.
    """

    token: str | None = field(default=None, repr=False)
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self):
        if (self.certificate is None) != (self.key is None):
            raise SettingsError(
                "TLS", "a certificate and its key", "one of them", "Give both files, or neither."
            )

    def admits(self, authorization: str | None) -> bool:
        """Returns whether a call with this header may go on."""
        if self.token is None:
            return True
        given = (authorization or "").encode("utf-8", "replace")
        return hmac.compare_digest(given, bearer(self.token).encode("utf-8"))

    def grpc_credentials(self) -> grpc.ServerCredentials | None:
        """Returns gRPC's form of the certificate; None without one.

        Raises:
          SettingsError: a file that can't be read or is no certificate with its key.
        """
        if self.certificate is None:
            return None
        # gRPC takes any bytes and fails at the first call; Python's TLS checks them now.
        self.ssl_context()
        pair = (self.key.read_bytes(), self.certificate.read_bytes())
        return grpc.ssl_server_credentials([pair])

    def ssl_context(self) -> ssl.SSLContext | None:
        """Returns Python's form of the certificate, for HTTP; None without one.

        Raises:
          SettingsError: a file that can't be read or is no certificate with its key.
        """
        if self.certificate is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"{self.certificate}, {self.key}", "PEM files of a certificate and its key", error
            ) from None
        return context


def bearer(token: str) -> str:
    """Returns the header's value that carries a token."""
    return f"Bearer {token}"


def header_of(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """Returns the authorization header among a gRPC call's metadata."""
    values = [value for key, value in metadata if key == AUTHORIZATION]
    return values[0] if len(values) == 1 and isinstance(values[0], str) else None


def read_token(path: str | Path) -> str:
    """Returns the token in a file, without the line's end.

    Raises:
      SettingsError: no such file, or no token that can stand in a header and is hard to guess.
    """
    try:
        token = Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(path, "a file with a token", error) from None
    if len(token) < SHORTEST_TOKEN or not token.isprintable() or " " in token:
        raise SettingsError(
            path,
            f"one word of at least {SHORTEST_TOKEN} ASCII characters",
            f"{len(token)} characters",
            "Make one: python -c 'import secrets; print(secrets.token_urlsafe())' > FILE",
        )
    return token


def client_credentials(roots: Path | None) -> grpc.ChannelCredentials:
    """Returns TLS credentials of a client.

    Args:
      roots: PEM file with the certificates to trust; None trusts what this machine trusts.

    Raises:
      SettingsError: a file that can't be read or holds no certificate.
    """
    if roots is None:
        return grpc.ssl_channel_credentials()
    try:
        ssl.create_default_context(cafile=str(roots))
        return grpc.ssl_channel_credentials(roots.read_bytes())
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(roots, "a PEM file of certificates to trust", error) from None


def access_from_environment() -> dict[str, str | bool]:
    """Returns the settings of a client that commands take from the environment.

    AHNET_SERVING_TOKEN_FILE names a file with the token; AHNET_SERVING_ROOTS a PEM file to trust, or
    "system" for what this machine trusts: with it calls are encrypted.
    """
    settings: dict[str, str | bool] = {}
    if os.environ.get(TOKEN_FILE_VARIABLE):
        settings["token"] = read_token(os.environ[TOKEN_FILE_VARIABLE])
    roots = os.environ.get(ROOTS_VARIABLE)
    if roots:
        settings |= {"tls": True} if roots == "system" else {"tls": True, "tls_roots": roots}
    return settings
