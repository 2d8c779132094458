"""Blocking client of TF Serving's gRPC protocol, for windows and whole volumes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import Message
from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus

from ahnet_tf.inference.predictor import ExportSettings, Predictor
from ahnet_tf.inference.segment import PredictionSettings, Segmentation
from preprocessing.volumes.geometry import Volume
from serving import protocol
from serving.auth import access_from_environment
from serving.client.requests import ClientSettings, RequestBuilder


class AHNetClient:
    """Calls one model on TF Serving or `serving.server`; safe to use from several threads.

    Args:
      target: HOST:PORT or HOST:PORT/MODEL, optionally with /versions/N or /labels/LABEL.
      model: name of the model if `target` has none.
      **settings: the fields of `requests.ClientSettings`: version, label, timeout_s, attempts,
        in_flight, max_message_bytes, tls, tls_roots, token.

    Raises:
      ServingError: `target` is invalid, or the token would be sent without TLS.
      SettingsError: a setting is invalid.
    """

    def __init__(self, target: str, model: str = protocol.DEFAULT_MODEL_NAME, **settings: Any):
        self._requests = RequestBuilder(grpc, target, model, ClientSettings(**settings))

    def __enter__(self) -> AHNetClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def target(self) -> str:
        """HOST:PORT/MODEL."""
        return self._requests.target

    def close(self) -> None:
        """Closes the connection."""
        self._requests.channel.close()

    def describe(self) -> ExportSettings:
        """Returns the settings that the served model was exported with.

        Raises:
          ServingError: no answer, or a model that can't describe itself.
        """
        return self._describe()[0]

    def predict_windows(self, windows: np.ndarray) -> np.ndarray:
        """Returns float32 probabilities [batch, z, y, x, class].

        Windows are raw intensities [batch, z, y, x, channel]. The task's stored dtype (int16 HU in
        CT) is sent as it is; any other is converted to float32.

        Raises:
          ModelError: the number of axes or channels is not the model's.
          ServingError: the server does not answer, refuses, or answers with something else.
        """
        return self._predict(windows, self._requests.described or self.describe(), None)

    def predictor(self) -> Predictor:
        """Returns a `Predictor` for the version that is served now.

        Once another version has replaced it, its calls raise `NotServedError`.
        """
        settings, version = self._describe()
        return Predictor(
            settings,
            lambda windows: self._predict(windows, settings, version),
            in_flight=self._requests.settings.in_flight,
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
        return self._requests.segment(self.predictor, volume, settings, progress)

    def status(self) -> list[ModelVersionStatus]:
        """Returns number, state and error of each version that the server knows.

        Raises:
          ServingError: the server does not answer, or has no such model.
        """
        response = self._call(self._requests.get_status, self._requests.status_request())
        return list(response.model_version_status)

    def _describe(self) -> tuple[ExportSettings, int]:
        response = self._call(self._requests.predict, self._requests.describe_request())
        return self._requests.read_description(response)

    def _predict(
        self, windows: np.ndarray, settings: ExportSettings, version: int | None
    ) -> np.ndarray:
        request = self._requests.windows_request(windows, settings, version)
        response = self._call(self._requests.predict, request)
        return self._requests.read_probabilities(response, windows, settings)

    def _call(self, method: Callable[..., Any], request: Message) -> Any:
        attempts = self._requests.attempts()
        while True:
            try:
                response = method(
                    request, timeout=attempts.time_left_s(), metadata=self._requests.metadata
                )
            except grpc.RpcError as error:
                time.sleep(attempts.pause_s(error))
            else:
                self._requests.answered = True
                return response


def open_predictor(target: str) -> Predictor:
    """Returns the served model as a `Predictor` for the version that is served now.

    Token and certificates come from the environment, see `auth.access_from_environment`.

    Raises:
      ServingError: no server there, or no such model.
    """
    return AHNetClient(target, **access_from_environment()).predictor()
