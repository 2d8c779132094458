"""Builds requests and parses responses for both clients."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from ahnet_tf.inference.predictor import (
    IMAGE_INPUT,
    PROBABILITIES_OUTPUT,
    ExportSettings,
    Predictor,
    check_channels,
    settings_from_json,
)
from ahnet_tf.inference.segment import PredictionSettings, Segmentation, segment_volume
from preprocessing.errors import ServingError, SettingsError
from preprocessing.volumes.geometry import Volume
from serving import auth, protocol
from serving.client.errors import BusyError, ForeignServerError, NotServedError, error_of

# How often a volume is started again because its version was replaced.
MAX_RESTARTS = 3
FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 5.0
# Fewer attempts for a server that has never answered than for one that is being restarted.
FIRST_ATTEMPTS = 5
_TARGET = re.compile(
    r"(?P<address>[^/]+:(?P<port>\d+))"
    r"(/|/(?P<model>[^/]+)(/versions/(?P<version>\d{1,18})|/labels/(?P<label>[^/]+))?)?"
)
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


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
            raise SettingsError("version, label", "one of both", "both")
        for name in ("attempts", "in_flight", "max_message_bytes"):
            if getattr(self, name) < 1:
                raise SettingsError(name, "at least 1", getattr(self, name))
        if not 0 < self.timeout_s < math.inf:
            raise SettingsError("timeout_s", "a time above 0 in seconds", self.timeout_s)
        if self.tls_roots is not None and not self.tls:
            raise SettingsError("tls_roots", "tls=True with it", "tls=False")


def parse_target(target: str, model: str) -> tuple[str, model_pb2.ModelSpec]:
    """Splits HOST:PORT[/MODEL[/versions/N|/labels/LABEL]] into HOST:PORT and the rest.

    `model` is the name of the model if the target has none.

    Raises:
      ServingError: the target has another form.
    """
    match = _TARGET.fullmatch(target)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ServingError(
            target,
            "HOST:PORT or HOST:PORT/MODEL, optionally with /versions/N or /labels/LABEL",
            "another form",
            "For example localhost:8500.",
        )
    spec = model_pb2.ModelSpec(name=match["model"] or model)
    if match["version"]:
        spec.version.value = int(match["version"])
    elif match["label"]:
        spec.version_label = match["label"]
    return match["address"], spec


class Attempts:
    """Deadline of one call, and the pauses between its attempts."""

    def __init__(self, target: str, timeout_s: float, attempts: int):
        self._target = target
        self._deadline = time.monotonic() + timeout_s
        self._left = attempts
        self._pause_s = FIRST_PAUSE_S

    def time_left_s(self) -> float:
        """Returns the seconds until the deadline, 0 after it."""
        return max(0.0, self._deadline - time.monotonic())

    def pause_s(self, error: grpc.RpcError) -> float:
        """Returns how long to wait after a failure before the next attempt.

        Pauses double from 0.2 s to 5 s. Each is multiplied by a random factor from 0.5 to 1, so that
        clients that failed together do not try again together.

        Raises:
          ServingError: no further attempt is allowed.
        """
        self._left -= 1
        pause_s = self._pause_s * random.uniform(0.5, 1.0)
        self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
        is_final = error.code() != grpc.StatusCode.UNAVAILABLE or self._left < 1
        if is_final or pause_s >= self.time_left_s():
            raise error_of(error, self._target) from None
        return pause_s


class RequestBuilder:
    """Connection, requests and responses of one client.

    Args:
      module: `grpc` or `grpc.aio`.
      target: see `parse_target`.
      model: name of the model if the target has none.
      settings: its version or label takes precedence over that in `target`.

    Attributes:
      answered: whether the server has answered a call.
      described: settings of the served model, once read.

    Raises:
      ServingError: `target` is invalid, or the token would leave this machine without TLS.
    """

    def __init__(self, module: ModuleType, target: str, model: str, settings: ClientSettings):
        self.address, self._spec = parse_target(target, model)
        self.settings = settings
        if settings.version is not None:
            self._spec.version.value = settings.version
        elif settings.label is not None:
            self._spec.version_label = settings.label
        self.answered = False
        self.described: ExportSettings | None = None
        self._is_local = self.address.rpartition(":")[0] in LOOPBACK
        if settings.token is not None and not settings.tls and not self._is_local:
            raise ServingError(
                target, "TLS with a token", "none", "The token would be readable: set tls=True."
            )
        token = settings.token
        self.metadata = None if token is None else ((auth.AUTHORIZATION, f"Bearer {token}"),)
        self.channel = self._connect(module)
        self.predict = prediction_service_pb2_grpc.PredictionServiceStub(self.channel).Predict
        self.get_status = model_service_pb2_grpc.ModelServiceStub(self.channel).GetModelStatus

    @property
    def target(self) -> str:
        """HOST:PORT/MODEL."""
        return f"{self.address}/{self._spec.name}"

    def attempts(self) -> Attempts:
        """Returns the attempts of the next call."""
        count = self.settings.attempts
        if not self.answered:
            count = min(count, FIRST_ATTEMPTS)
        return Attempts(self.target, self.settings.timeout_s, count)

    def describe_request(self) -> predict_pb2.PredictRequest:
        """Returns the request for the settings of the served model."""
        request = self._request(protocol.DESCRIBE, None)
        unused = protocol.encode_tensor(np.zeros(1, np.int32))
        request.inputs[protocol.UNUSED_INPUT].CopyFrom(unused)
        return request

    def read_description(self, response: predict_pb2.PredictResponse) -> tuple[ExportSettings, int]:
        """Returns the served model's settings and version from the response to `describe_request`.

        Raises:
          ServingError, ModelError: the response is not that of an export of this project.
        """
        text = self._output(response, protocol.SETTINGS_OUTPUT).ravel()[0]
        self.described = settings_from_json(text, self.target)
        return self.described, response.model_spec.version.value

    def windows_request(
        self, windows: np.ndarray, settings: ExportSettings, version: int | None
    ) -> predict_pb2.PredictRequest:
        """Returns the request for the probabilities of windows [batch, z, y, x, channel].

        Without a version, it asks for the client's.

        Raises:
          ModelError: the number of axes or channels is not the model's.
          BusyError: the request or its answer would exceed the message limit.
        """
        check_channels(windows, settings, self.target)
        stored = settings.task.image_dtype
        if windows.dtype == np.dtype(stored):
            name = protocol.stored_signature(protocol.PREDICT_WINDOWS, stored)
        else:
            name = protocol.PREDICT_WINDOWS
            windows = windows.astype(np.float32, copy=False)
        answer_bytes = 4 * math.prod(_probabilities_shape(windows, settings))
        limit = self.settings.max_message_bytes
        if max(windows.nbytes, answer_bytes) > limit:
            raise BusyError(
                self.target,
                f"messages of at most {limit} bytes",
                f"{windows.nbytes} bytes to send and {answer_bytes} to receive",
                "Send fewer windows at once, or raise max_message_bytes on both sides.",
            )
        request = self._request(name, version)
        request.inputs[IMAGE_INPUT].CopyFrom(protocol.encode_tensor(windows))
        return request

    def read_probabilities(
        self, response: predict_pb2.PredictResponse, windows: np.ndarray, settings: ExportSettings
    ) -> np.ndarray:
        """Returns the float32 probabilities [batch, z, y, x, class] in the response for `windows`.

        Raises:
          ForeignServerError: the response contains something else.
        """
        shape = _probabilities_shape(windows, settings)
        probabilities = self._output(response, PROBABILITIES_OUTPUT)
        if probabilities.shape != shape or probabilities.dtype != np.float32:
            raise ForeignServerError(
                self.target,
                f"float32 probabilities of shape {shape}",
                f"{probabilities.dtype} of shape {probabilities.shape}",
            )
        return probabilities

    def segment(
        self,
        open_predictor: Callable[[], Predictor],
        volume: Volume,
        settings: PredictionSettings | None,
        progress: Callable[[int, int], object] | None,
    ) -> Segmentation:
        """Segments a volume, again from its start if the version of the model is replaced.

        `open_predictor` returns the version that is served now.
        """
        restarts = 0
        while True:
            try:
                return segment_volume(volume, open_predictor(), settings, progress=progress)
            except NotServedError:
                restarts += 1
                if restarts > MAX_RESTARTS or self._spec.HasField("version"):
                    raise

    def status_request(self) -> get_model_status_pb2.GetModelStatusRequest:
        """Returns the request for the states of all versions."""
        spec = model_pb2.ModelSpec(name=self._spec.name)
        return get_model_status_pb2.GetModelStatusRequest(model_spec=spec)

    def _connect(self, module: ModuleType) -> Any:
        size = self.settings.max_message_bytes
        options: list[tuple[str, object]] = [
            ("grpc.max_send_message_length", size),
            ("grpc.max_receive_message_length", size),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
            # Spread the calls over all addresses of the host name.
            ("grpc.lb_policy_name", "round_robin"),
        ]
        if self._is_local:
            options.append(("grpc.enable_http_proxy", 0))
        if self.settings.tls:
            credentials = auth.client_credentials(self.settings.tls_roots)
            return module.secure_channel(self.address, credentials, options)
        return module.insecure_channel(self.address, options)

    def _request(self, signature_name: str, version: int | None) -> predict_pb2.PredictRequest:
        request = predict_pb2.PredictRequest(model_spec=self._spec)
        request.model_spec.signature_name = signature_name
        if version is not None:
            request.model_spec.version.value = version
        return request

    def _output(self, response: predict_pb2.PredictResponse, name: str) -> np.ndarray:
        if name not in response.outputs:
            raise ForeignServerError(
                self.target,
                f"an output {name!r}",
                ", ".join(sorted(response.outputs)) or "none",
                "Export the model again with python -m serving.export.",
            )
        return tf.make_ndarray(response.outputs[name])


def _probabilities_shape(windows: np.ndarray, settings: ExportSettings) -> tuple[int, ...]:
    return (*windows.shape[:-1], settings.model.classes)
