"""What a client says and how it reads the answers: all of a client but the connection itself."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from tensorflow_serving.apis import get_model_status_pb2, predict_pb2

from ahnet_tf.inference.predictor import (
    IMAGE_INPUT,
    PROBABILITIES_OUTPUT,
    ExportSettings,
    check_channels,
    settings_from_json,
)
from preprocessing.errors import ServingError, SettingsError
from serving import auth as access
from serving import protocol
from serving.client.errors import BusyError, ForeignServerError, error_of

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 5.0
# A server that never answered is given up earlier than one that is being restarted.
FIRST_ATTEMPTS = 5
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class ClientSettings:
    """How a client calls.

    Attributes:
      version: version to ask for; None takes whichever the server prefers.
      label: label of a version ("stable", for example) instead of its number.
      timeout_s: time for one call, with all its attempts.
      attempts: how often a call is made while the server is UNAVAILABLE, with growing pauses; five
        at most until the server has answered once. No other failure is tried again.
      in_flight: requests of one volume that are on their way at the same time.
      max_message_bytes: largest request and largest answer.
      tls: encrypt, and trust the server only with a certificate.
      tls_roots: PEM file of the certificates to trust; None: those this machine trusts.
      token: what the server asks for.
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
            raise SettingsError("version, label", "one of both", "both")
        for name in ("attempts", "in_flight", "max_message_bytes"):
            if getattr(self, name) < 1:
                raise SettingsError(name, "at least 1", getattr(self, name))
        if not 0 < self.timeout_s < math.inf:
            raise SettingsError("timeout_s", "a time above 0 in seconds", self.timeout_s)
        if self.tls_roots is not None and not self.tls:
            raise SettingsError("tls_roots", "tls=True with it", "tls=False")


@dataclass(frozen=True)
class WindowsCall:
    """A request for windows, and the answer that fits it.

    Attributes:
      request: what is sent.
      shape: shape of the probabilities [batch, z, y, x, class].
    """

    request: predict_pb2.PredictRequest
    shape: tuple[int, ...]


class Attempts:
    """The time that one call has, and the pauses between its attempts."""

    def __init__(self, timeout_s: float, attempts: int):
        self._deadline = time.monotonic() + timeout_s
        self._left = attempts
        self._pause_s = FIRST_PAUSE_S

    def time_left_s(self) -> float:
        """Returns the seconds until the deadline, 0 after it."""
        return max(0.0, self._deadline - time.monotonic())

    def pause_s(self, code: grpc.StatusCode) -> float | None:
        """Returns how long to wait after a failure before the next attempt; None: no more.

        Pauses double from 0.2 s to 5 s, each shortened by chance to between half and all of it, so
        that clients that failed together don't come back together.
        """
        self._left -= 1
        pause_s = self._pause_s * random.uniform(0.5, 1.0)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        if code != grpc.StatusCode.UNAVAILABLE or self._left < 1 or pause_s >= self.time_left_s():
            return None
        return pause_s


class Exchange:
    """One client's side of the protocol, without the connection.

    Args:
      target: HOST:PORT, HOST:PORT/MODEL, or that with /versions/N or /labels/LABEL.
      model: name of the model, unless `target` has it.
      settings: how to call.

    Raises:
      ServingError: `target` is no address, or a token would leave this machine without TLS.
    """

    def __init__(self, target: str, model: str, settings: ClientSettings):
        address = protocol.parse_target(target, model)
        self.address, self.model = address.host_port, address.model
        self.settings = settings
        given = settings.version is not None or settings.label is not None
        self.version = settings.version if given else address.version
        self.label = settings.label if given else address.label
        self.answered = False
        self._local = self.address.rpartition(":")[0] in LOOPBACK
        if settings.token is not None and not settings.tls and not self._local:
            raise ServingError(
                target, "TLS with a token", "none", "Anyone on the way could read it: set tls=True."
            )

    @property
    def target(self) -> str:
        """HOST:PORT/MODEL."""
        return f"{self.address}/{self.model}"

    def channel_options(self) -> list[tuple[str, int]]:
        """Returns gRPC's options of the connection."""
        largest = self.settings.max_message_bytes
        options = [
            ("grpc.max_send_message_length", largest),
            ("grpc.max_receive_message_length", largest),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
            # Where a name has several addresses, calls take turns.
            ("grpc.lb_policy_name", "round_robin"),
        ]
        return [*options, ("grpc.enable_http_proxy", 0)] if self._local else options

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Returns the credentials of the connection; None without TLS."""
        roots = self.settings.tls_roots
        if not self.settings.tls:
            return None
        return access.client_credentials(None if roots is None else Path(roots))

    def call_options(self) -> dict[str, object]:
        """Returns the metadata of every call."""
        token = self.settings.token
        metadata = None if token is None else ((access.AUTHORIZATION, access.bearer(token)),)
        return {"metadata": metadata}

    def attempts(self) -> Attempts:
        """Returns the attempts that the next call has."""
        settings = self.settings
        most = settings.attempts if self.answered else min(settings.attempts, FIRST_ATTEMPTS)
        return Attempts(settings.timeout_s, most)

    def error(self, error: grpc.RpcError) -> ServingError:
        """Returns what a failed call means."""
        return error_of(error.code(), error.details(), self.target)

    def describe_request(self) -> predict_pb2.PredictRequest:
        """Returns the question what the served model was trained for."""
        request = self._request(protocol.DESCRIBE, self.version)
        unused = protocol.encode_tensor(np.zeros(1, np.int32))
        request.inputs[protocol.UNUSED_INPUT].CopyFrom(unused)
        return request

    def read_description(self, response: predict_pb2.PredictResponse) -> tuple[ExportSettings, int]:
        """Returns the answer to `describe_request`, and the version that gave it.

        Raises:
          ServingError, ModelError: it is not the answer of an export of this project.
        """
        text = self._output(response, protocol.SETTINGS_OUTPUT).ravel()[0]
        return settings_from_json(text, self.target), response.model_spec.version.value

    def windows_call(
        self, windows: np.ndarray, settings: ExportSettings, version: int | None
    ) -> WindowsCall:
        """Returns the request for the probabilities of windows [batch, z, y, x, channel].

        Args:
          windows: raw intensities. The task's stored dtype (int16 HU in CT) goes over the wire as it
            is; any other becomes float32.
          settings: of the served model.
          version: version to ask for; None takes the client's.

        Raises:
          ModelError: another number of axes or channels than the model's.
          BusyError: a message above the limit.
        """
        check_channels(windows, settings, self.target)
        stored = settings.task.image_dtype
        if windows.dtype == np.dtype(stored):
            name = protocol.stored_signature(protocol.PREDICT_WINDOWS, stored)
        else:
            name = protocol.PREDICT_WINDOWS
            windows = windows.astype(np.float32, copy=False)
        shape = (*windows.shape[:-1], settings.model.classes)
        self._check_size(windows.nbytes, 4 * math.prod(shape))
        request = self._request(name, self.version if version is None else version)
        request.inputs[IMAGE_INPUT].CopyFrom(protocol.encode_tensor(windows))
        return WindowsCall(request, shape)

    def read_probabilities(
        self, response: predict_pb2.PredictResponse, call: WindowsCall
    ) -> np.ndarray:
        """Returns the float32 probabilities [batch, z, y, x, class] of an answer.

        Raises:
          ForeignServerError: the answer holds something else.
        """
        probabilities = self._output(response, PROBABILITIES_OUTPUT)
        if probabilities.shape != call.shape or probabilities.dtype != np.float32:
            raise ForeignServerError(
                self.target,
                f"float32 probabilities of shape {call.shape}",
                f"{probabilities.dtype} of shape {probabilities.shape}",
            )
        return probabilities

    def status_request(self) -> get_model_status_pb2.GetModelStatusRequest:
        """Returns the question which versions there are, and how they are."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self.model
        return request

    def _request(self, signature_name: str, version: int | None) -> predict_pb2.PredictRequest:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = self.model
        request.model_spec.signature_name = signature_name
        if version is not None:
            request.model_spec.version.value = version
        elif self.label is not None:
            request.model_spec.version_label = self.label
        return request

    def _check_size(self, request_bytes: int, answer_bytes: int) -> None:
        limit = self.settings.max_message_bytes
        if max(request_bytes, answer_bytes) > limit:
            raise BusyError(
                self.target,
                f"messages of at most {limit} bytes",
                f"{request_bytes} bytes to send and {answer_bytes} to receive",
                "Send fewer windows at once, or raise max_message_bytes on both sides.",
            )

    def _output(self, response: predict_pb2.PredictResponse, name: str) -> np.ndarray:
        if name not in response.outputs:
            raise ForeignServerError(
                self.target,
                f"an output {name!r}",
                ", ".join(sorted(response.outputs)) or "none",
                "Export the model again with python -m serving.export.",
            )
        return protocol.as_array(response.outputs[name])
