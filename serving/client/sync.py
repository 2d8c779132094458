"""A client of TF Serving's gRPC protocol: windows in, probabilities out; or whole volumes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import grpc
import numpy as np
from google.protobuf.message import Message
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from ahnet_tf.inference.predictor import ExportSettings, Predictor
from ahnet_tf.inference.segment import PredictionSettings, Segmentation, segment_volume
from preprocessing.volumes.geometry import Volume
from serving import protocol
from serving.auth import access_from_environment
from serving.client.errors import NotServedError
from serving.client.requests import ClientSettings, Exchange

Response = TypeVar("Response", bound=Message)

# How often a volume is begun again because its version was replaced meanwhile.
RESTARTS = 3


class AHNetClient:
    """Calls one model on a TF Serving or `serving.server`; safe to use from several threads.

    Args:
      target: HOST:PORT or HOST:PORT/MODEL, with /versions/N or /labels/LABEL if need be.
      model: name of the model, unless `target` has it.
      **settings: the fields of `exchange.ClientSettings`: version, label, timeout_s, attempts,
        in_flight, max_message_bytes, tls, tls_roots, token.

    Raises:
      ServingError: `target` is no address.
      SettingsError: settings that are not possible.
    """

    def __init__(self, target: str, model: str = protocol.DEFAULT_MODEL_NAME, **settings):
        self._exchange = Exchange(target, model, ClientSettings(**settings))
        self._settings: ExportSettings | None = None
        options, credentials = self._exchange.channel_options(), self._exchange.credentials()
        if credentials is None:
            self._channel = grpc.insecure_channel(self._exchange.address, options)
        else:
            self._channel = grpc.secure_channel(self._exchange.address, credentials, options)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def __enter__(self) -> AHNetClient:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def target(self) -> str:
        """HOST:PORT/MODEL."""
        return self._exchange.target

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def describe(self) -> ExportSettings:
        """Returns what the served model was trained for.

        Raises:
          ServingError: no answer, or a model that can't describe itself.
        """
        return self._describe()[0]

    def predict_windows(self, windows: np.ndarray) -> np.ndarray:
        """Returns float32 probabilities [batch, z, y, x, class].

        Args:
          windows: raw intensities [batch, z, y, x, channel]. The task's stored dtype (int16 HU in
            CT) goes over the wire as it is; any other becomes float32.

        Raises:
          ModelError: another number of axes or channels than the model's.
          ServingError: the server doesn't answer, refuses, or answers with something else.
        """
        return self._predict(windows, self._settings or self.describe(), None)

    def predictor(self) -> Predictor:
        """Returns the model as a `Predictor` that stays with the version that is served now.

        Once another version replaces it, its calls fail with a `NotServedError`.
        """
        settings, version = self._describe()
        return Predictor(
            settings,
            lambda windows: self._predict(windows, settings, version),
            in_flight=self._exchange.settings.in_flight,
        )

    def segment(
        self,
        volume: Volume,
        settings: PredictionSettings | None = None,
        *,
        progress: Callable[[int, int], object] | None = None,
    ) -> Segmentation:
        """Segments a whole volume by overlapping windows, several of them on their way at a time.

        All windows are answered by one version of the model: when a new one replaces it, the volume
        is begun again with the new one.

        Args:
          volume: raw intensities [x, y, z] as on disk, and affine.
          settings: overlap, blending and so on, as for `segment_volume`.
          progress: called after each batch with (windows just done, windows in all).

        Returns:
          What `segment_volume` returns for the same model on this machine.

        Raises:
          ServingError: the server doesn't answer, refuses, or answers with something else.
          SettingsError: a setting that is not possible with the task.
        """
        restarts = 0
        while True:
            try:
                return segment_volume(volume, self.predictor(), settings, progress=progress)
            except NotServedError:
                restarts += 1
                if restarts > RESTARTS or self._exchange.version is not None:
                    raise

    def status(self) -> list[get_model_status_pb2.ModelVersionStatus]:
        """Returns number, state and error of each version that the server has met.

        Raises:
          ServingError: the server doesn't answer, or has no such model.
        """
        response = self._call(self._models.GetModelStatus, self._exchange.status_request())
        return list(response.model_version_status)

    def _describe(self) -> tuple[ExportSettings, int]:
        response = self._call(self._prediction.Predict, self._exchange.describe_request())
        self._settings, version = self._exchange.read_description(response)
        return self._settings, version

    def _predict(
        self, windows: np.ndarray, settings: ExportSettings, version: int | None
    ) -> np.ndarray:
        call = self._exchange.windows_call(windows, settings, version)
        response = self._call(self._prediction.Predict, call.request)
        return self._exchange.read_probabilities(response, call)

    def _call(self, method: Callable[..., Response], request: Message) -> Response:
        attempts, options = self._exchange.attempts(), self._exchange.call_options()
        while True:
            try:
                response = method(request, timeout=attempts.time_left_s(), **options)
            except grpc.RpcError as error:
                pause_s = attempts.pause_s(error.code())
                if pause_s is None:
                    raise self._exchange.error(error) from None
                time.sleep(pause_s)
            else:
                self._exchange.answered = True
                return response


def open_predictor(target: str) -> Predictor:
    """Returns the served model as a `Predictor` that stays with one version.

    Args:
      target: HOST:PORT or HOST:PORT/MODEL, with /versions/N or /labels/LABEL if need be. Token and
        certificates come from the environment, see `access.access_from_environment`.

    Raises:
      ServingError: no server there, or no such model.
    """
    return AHNetClient(target, **access_from_environment()).predictor()
