"""Address and settings of a client."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from tensorflow_serving.apis import model_pb2

from preprocessing.errors import ServingError, SettingsError
from serving import protocol

_TARGET = re.compile(
    r"(?P<address>[^/]+:(?P<port>\d+))"
    r"(/|/(?P<model>[^/]+)(/versions/(?P<version>\d{1,18})|/labels/(?P<label>[^/]+))?)?"
)


@dataclass(frozen=True)
class ClientSettings:
    """How a client calls.

    Attributes:
      version: version to ask for; None leaves the choice to the server.
      label: label of a version ("stable", for example) instead of its number.
      timeout_s: time for one call, including all attempts.
      attempts: how often a call is made while the server is UNAVAILABLE, with growing pauses; at
        most five until the server has answered once. Other failures are not tried again.
      in_flight: requests of one volume that are sent at the same time.
      max_message_bytes: largest request and largest answer.
      tls: encrypt the connection, and check the server's certificate.
      tls_roots: PEM file of the certificates to trust; None uses gRPC's default ones.
      token: sent with every call.
    """

    version: int | None = None
    label: str | None = None
    timeout_s: float = 300.0
    attempts: int = 9
    in_flight: int = 2
    max_message_bytes: int = protocol.MAX_ANSWER_BYTES
    tls: bool = False
    tls_roots: str | Path | None = None
    token: str | None = field(default=None, repr=False)

    def __post_init__(self):
        if self.version is not None and self.label is not None:
            raise SettingsError("version, label", "at most one of them", "both")
        for name in ("attempts", "in_flight", "max_message_bytes"):
            if getattr(self, name) < 1:
                raise SettingsError(name, "at least 1", getattr(self, name))
        if not 0 < self.timeout_s < math.inf:
            raise SettingsError("timeout_s", "a time above 0 in seconds", self.timeout_s)
        if self.tls_roots is not None and not self.tls:
            raise SettingsError("tls_roots", "tls=True with it", "tls=False")


def parse_target(target: str, model: str) -> tuple[str, model_pb2.ModelSpec]:
    """Splits HOST:PORT[/MODEL[/versions/N|/labels/LABEL]] into HOST:PORT and the rest.

    `model` is the name of the model if the target has none. Other forms raise a ServingError.
    """
    match = _TARGET.fullmatch(target)
    if match is None or not 0 < int(match["port"]) < 65536:
        expected = "HOST:PORT or HOST:PORT/MODEL, optionally with /versions/N or /labels/LABEL"
        raise ServingError(target, expected, "another form", "For example localhost:8500.")
    spec = model_pb2.ModelSpec(name=match["model"] or model)
    if match["version"]:
        spec.version.value = int(match["version"])
    elif match["label"]:
        spec.version_label = match["label"]
    return match["address"], spec
