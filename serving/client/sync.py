"""Client of TF Serving's gRPC protocol, for windows and whole volumes."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import Message
from tensorflow_serving.apis import model_pb2, model_service_pb2_grpc, prediction_service_pb2_grpc
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest, ModelVersionStatus
from tensorflow_serving.apis.predict_pb2 import PredictRequest, PredictResponse

from ahnet_tf.inference.predictor import (
    IMAGE_INPUT,
    PROBABILITIES_OUTPUT,
    ExportSettings,
    Predictor,
    check_channels,
    settings_from_json,
)
from ahnet_tf.inference.segment import PredictionSettings, Segmentation, segment_volume
from preprocessing.errors import ModelError, ServingError
from preprocessing.volumes.geometry import Volume
from serving import protocol
from serving.auth import access_from_environment, client_credentials
from serving.client.errors import (
    BadRequestError,
    BusyError,
    ForeignServerError,
    NotServedError,
    UnfitError,
    error_of,
    is_busy,
)
from serving.client.settings import ClientSettings, parse_target

# How often windows or a volume are started again because the model's version was replaced.
MAX_RESTARTS = 3
FIRST_PAUSE_S = 0.2
MAX_PAUSE_S = 5.0
# Fewer attempts for a server that has never answered than for one that is being restarted.
FIRST_ATTEMPTS = 5
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class AHNetClient:
    """Calls one model on TF Serving or `serving.server`; safe to use from several threads.

    Args:
      target: HOST:PORT or HOST:PORT/MODEL, optionally with /versions/N or /labels/LABEL.
      model: name of the model if `target` has none.
      **settings: the fields of `ClientSettings`: version, label (which take precedence over those in
        `target`), timeout_s, attempts, in_flight, max_message_bytes, tls, tls_roots, token.

    Raises:
      ServingError: `target` is invalid, or the token would leave this machine without TLS.
      SettingsError: a setting is invalid.
    """

    def __init__(self, target: str, model: str = protocol.DEFAULT_MODEL_NAME, **settings: Any):
        self._settings = ClientSettings(**settings)
        self._address, self._spec = parse_target(target, model)
        if self._settings.version is not None:
            self._spec.version.value = self._settings.version
        elif self._settings.label is not None:
            self._spec.version_label = self._settings.label
        self._is_local = self._address.rpartition(":")[0] in LOOPBACK
        token = self._settings.token
        if token is not None and not self._settings.tls and not self._is_local:
            remedy = "The token would be readable: set tls=True."
            raise ServingError(target, "TLS with a token", "none", remedy)
        # gRPC metadata keys are lower case.
        self._metadata = None if token is None else (("authorization", f"Bearer {token}"),)
        self._answered = False
        # Settings and number of the version that answered last; None asks for them.
        self._described: tuple[ExportSettings, int] | None = None
        self._channel = self._connect()
        predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._call_predict = predictions.Predict
        self._call_status = model_service_pb2_grpc.ModelServiceStub(self._channel).GetModelStatus

    def __enter__(self) -> AHNetClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def target(self) -> str:
        """HOST:PORT/MODEL."""
        return f"{self._address}/{self._spec.name}"

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def describe(self) -> ExportSettings:
        """Returns the settings that the served model was exported with.

        Raises:
          ServingError: no answer, or a model that can't describe itself.
        """
        return self._describe()[0]

    def predict_windows(self, windows: np.ndarray) -> np.ndarray:
        """Returns float32 probabilities [batch, z, y, x, class].

        Windows are raw intensities [batch, z, y, x, channel]. The task's stored dtype (int16 HU in
        CT) is sent as it is; any other is converted to float32. The newest version answers, also
        where it has replaced one with other classes.

        Raises:
          ModelError: the number of axes or channels is not the model's.
          ServingError: the server does not answer, refuses, or answers with something else.
        """
        restarts = 0
        while True:
            settings, version = self._described or self._describe()
            try:
                return self._predict(windows, settings, None)
            except (ModelError, BadRequestError, UnfitError, ForeignServerError):
                # Refused for what another version expects?
                restarts += 1
                if restarts > MAX_RESTARTS or self._describe()[1] == version:
                    raise

    def predictor(self) -> Predictor:
        """Returns a `Predictor` for the version that is served now.

        Once another version has replaced it, its calls raise `NotServedError`.
        """
        settings, version = self._describe()
        return Predictor(
            settings,
            lambda windows: self._predict(windows, settings, version),
            in_flight=self._settings.in_flight,
            version=version,
        )

    def segment(
        self,
        volume: Volume,
        settings: PredictionSettings | None = None,
        *,
        progress: Callable[[int, int], object] | None = None,
    ) -> Segmentation:
        """Segments a whole volume with overlapping windows, several of them in flight at a time.

        One version of the model answers all windows: when a new one replaces it, the volume is
        started again with the new one.

        Args:
          volume: raw intensities [x, y, z] as on disk, and affine.
          settings: overlap, blending and so on, as for `segment_volume`.
          progress: called after each batch with (windows just done, windows in all).

        Returns:
          What `segment_volume` returns for the same model on this machine.

        Raises:
          ServingError: the server does not answer, refuses, or answers with something else.
          SettingsError: a setting that is not possible with the task.
        """
        restarts = 0
        while True:
            try:
                return segment_volume(volume, self.predictor(), settings, progress=progress)
            except NotServedError:
                restarts += 1
                if restarts > MAX_RESTARTS or self._spec.HasField("version"):
                    raise

    def status(self) -> list[ModelVersionStatus]:
        """Returns number, state and error of each version that the server knows.

        Raises:
          ServingError: the server does not answer, or has no such model.
        """
        spec = model_pb2.ModelSpec(name=self._spec.name)
        response = self._call(self._call_status, GetModelStatusRequest(model_spec=spec))
        return list(response.model_version_status)

    def _connect(self) -> grpc.Channel:
        size = self._settings.max_message_bytes
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
        if self._settings.tls:
            credentials = client_credentials(self._settings.tls_roots)
            return grpc.secure_channel(self._address, credentials, options)
        return grpc.insecure_channel(self._address, options)

    def _describe(self) -> tuple[ExportSettings, int]:
        """Returns settings and version of the served model."""
        request = self._request(protocol.DESCRIBE, None)
        unused = protocol.encode_tensor(np.zeros(1, np.int32))
        request.inputs[protocol.UNUSED_INPUT].CopyFrom(unused)
        response = self._call(self._call_predict, request)
        text = self._output(response, protocol.SETTINGS_OUTPUT).ravel()[0]
        settings = settings_from_json(text, self.target)
        described = settings, response.model_spec.version.value
        self._described = described
        return described

    def _predict(
        self, windows: np.ndarray, settings: ExportSettings, version: int | None
    ) -> np.ndarray:
        """Returns the probabilities of windows; without a version, of the one that the server chooses."""
        check_channels(windows, settings, self.target)
        stored = settings.task.image_dtype
        if windows.dtype == np.dtype(stored):
            name = protocol.stored_signature(protocol.PREDICT_WINDOWS, stored)
        else:
            name = protocol.PREDICT_WINDOWS
            windows = windows.astype(np.float32, copy=False)
        shape = (*windows.shape[:-1], settings.model.class_count)
        answer_bytes, limit = 4 * math.prod(shape), self._settings.max_message_bytes
        if max(windows.nbytes, answer_bytes) > limit:
            found = f"{windows.nbytes} bytes to send and {answer_bytes} to receive"
            remedy = "Send fewer windows at once, or raise max_message_bytes on both sides."
            raise BusyError(self.target, f"messages of at most {limit} bytes", found, remedy)
        request = self._request(name, version)
        request.inputs[IMAGE_INPUT].CopyFrom(protocol.encode_tensor(windows))
        response = self._call(self._call_predict, request)
        described = self._described
        if described is not None and described[1] != response.model_spec.version.value:
            self._described = None
        probabilities = self._output(response, PROBABILITIES_OUTPUT)
        if probabilities.shape != shape or probabilities.dtype != np.float32:
            expected = f"float32 probabilities of shape {shape}"
            found = f"{probabilities.dtype} of shape {probabilities.shape}"
            raise ForeignServerError(self.target, expected, found)
        return probabilities

    def _call(self, method: Callable[..., Any], request: Message) -> Any:
        """Returns the answer to a request, which is sent again while the server is UNAVAILABLE.

        Pauses double from 0.2 s to 5 s. Each is multiplied by a random factor from 0.5 to 1, so that
        clients that failed together do not try again together.

        Raises:
          ServingError: no further attempt is allowed.
        """
        deadline = time.monotonic() + self._settings.timeout_s
        attempts, longest_pause_s = 0, FIRST_PAUSE_S
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            try:
                response = method(request, timeout=left_s, metadata=self._metadata)
            except grpc.RpcError as error:
                attempts += 1
                self._answered |= is_busy(error)
                allowed = self._settings.attempts
                if not self._answered:
                    allowed = min(allowed, FIRST_ATTEMPTS)
                pause_s = longest_pause_s * random.uniform(0.5, 1.0)
                is_final = error.code() != grpc.StatusCode.UNAVAILABLE or attempts >= allowed
                if is_final or time.monotonic() + pause_s >= deadline:
                    raise error_of(error, self.target) from None
                time.sleep(pause_s)
                longest_pause_s = min(2 * longest_pause_s, MAX_PAUSE_S)
            else:
                self._answered = True
                return response

    def _request(self, signature_name: str, version: int | None) -> PredictRequest:
        request = PredictRequest(model_spec=self._spec)
        request.model_spec.signature_name = signature_name
        if version is not None:
            request.model_spec.version.value = version
        return request

    def _output(self, response: PredictResponse, name: str) -> np.ndarray:
        if name not in response.outputs:
            found = ", ".join(sorted(response.outputs)) or "none"
            remedy = "Export the model again with python -m serving.export."
            raise ForeignServerError(self.target, f"an output {name!r}", found, remedy)
        return tf.make_ndarray(response.outputs[name])


def open_predictor(target: str) -> Predictor:
    """Returns the served model as a `Predictor` for the version that is served now.

    Token and certificates come from the environment, see `auth.access_from_environment`.

    Raises:
      ServingError: no server there, or no such model.
    """
    return AHNetClient(target, **access_from_environment()).predictor()
