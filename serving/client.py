"""A client of TF Serving's gRPC protocol: windows in, probabilities out."""

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
    predict_pb2,
    prediction_service_pb2_grpc,
)

from ahnet_tf.predictors import (
    IMAGE_INPUT,
    PROBABILITIES_OUTPUT,
    ExportSettings,
    Predictor,
    check_channels,
    settings_from_json,
)
from preprocessing.errors import ServingError
from serving import protocol

Response = TypeVar("Response", bound=Message)

FIRST_PAUSE_S = 0.2

# What a person can do about each status of a failed call.
_REMEDIES = {
    grpc.StatusCode.UNAVAILABLE: (
        "a model server",
        "Check host and port, or start one: python -m serving.server --model-base-path DIR.",
    ),
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        "an answer in time",
        "Raise timeout_s, send fewer or smaller windows, or wait until the server is less busy.",
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (
        "room for the request",
        "Send fewer or smaller windows, or try again when the server is less busy.",
    ),
    grpc.StatusCode.NOT_FOUND: (
        "a model and version that the server has",
        "Name the model as HOST:PORT/MODEL; start again if a new version was published meanwhile.",
    ),
    grpc.StatusCode.INVALID_ARGUMENT: (
        "a request that fits the model",
        "Check that the model was exported by this version: python -m serving.export.",
    ),
    grpc.StatusCode.UNIMPLEMENTED: (
        "TF Serving's gRPC services",
        "Another program answers at this port; TF Serving's gRPC port is 8500 unless told otherwise.",
    ),
}


class AHNetClient:
    """Calls one model on a TF Serving or `serving.server`; safe to use from several threads.

    Args:
      target: HOST:PORT or HOST:PORT/MODEL.
      model: name of the model, unless `target` has it.
      version: version to ask for; None takes whichever is being served.
      timeout_s: time for a call, with all its attempts.
      attempts: how often a call is made while the server is UNAVAILABLE, with doubling pauses.
        No other failure is tried again.
      max_message_bytes: largest request and largest answer.

    Raises:
      ServingError: `target` is no address.
    """

    def __init__(
        self,
        target: str,
        model: str = protocol.DEFAULT_MODEL_NAME,
        *,
        version: int | None = None,
        timeout_s: float = 300.0,
        attempts: int = 5,
        max_message_bytes: int = protocol.MAX_MESSAGE_BYTES,
    ):
        self.address, self.model = split_target(target, model)
        self.version = version
        self._timeout_s = timeout_s
        self._attempts = attempts
        self._max_message_bytes = max_message_bytes
        self._settings: ExportSettings | None = None
        options = [
            *protocol.message_options(max_message_bytes),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        if self.address.rpartition(":")[0] in ("localhost", "127.0.0.1", "[::1]"):
            options.append(("grpc.enable_http_proxy", 0))
        self._channel = grpc.insecure_channel(self.address, options)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def __enter__(self) -> AHNetClient:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def target(self) -> str:
        """HOST:PORT/MODEL."""
        return f"{self.address}/{self.model}"

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def describe(self) -> ExportSettings:
        """Returns what the served model was trained for.

        Raises:
          ServingError: no answer, or a model that can't describe itself.
        """
        return self._describe()[0]

    def pin(self) -> ExportSettings:
        """Stays with the version that is served now: a volume must not mix two models.

        Once another version replaces it, calls fail with a `ServingError`.

        Returns:
          What the version was trained for.
        """
        settings, self.version = self._describe()
        return settings

    def predict_windows(self, windows: np.ndarray) -> np.ndarray:
        """Returns float32 probabilities [batch, z, y, x, class].

        Args:
          windows: raw intensities [batch, z, y, x, channel]. The task's stored dtype (int16 HU in
            CT) goes over the wire as it is; any other becomes float32.

        Raises:
          ModelError: another number of axes or channels than the model's.
          ServingError: the server doesn't answer, refuses, or answers with something else.
        """
        settings = self._settings or self.describe()
        check_channels(windows, settings, self.target)
        stored = settings.task.image_dtype
        if windows.dtype == np.dtype(stored):
            name = protocol.stored_signature(protocol.PREDICT_WINDOWS, stored)
        else:
            name = protocol.PREDICT_WINDOWS
            windows = windows.astype(np.float32, copy=False)
        shape = (*windows.shape[:-1], settings.model.classes)
        self._check_size(windows.nbytes, 4 * int(np.prod(shape, dtype=np.int64)))
        response = self._predict(name, {IMAGE_INPUT: windows})
        probabilities = self._output(response, PROBABILITIES_OUTPUT)
        if probabilities.shape != shape or probabilities.dtype != np.float32:
            raise ServingError(
                self.target,
                f"float32 probabilities of shape {shape}",
                f"{probabilities.dtype} of shape {probabilities.shape}",
            )
        return probabilities

    def status(self) -> list[get_model_status_pb2.ModelVersionStatus]:
        """Returns number, state and error of each version that the server has met.

        Raises:
          ServingError: the server doesn't answer, or has no such model.
        """
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self.model
        response = self._call(self._models.GetModelStatus, request)
        return list(response.model_version_status)

    def _describe(self) -> tuple[ExportSettings, int]:
        response = self._predict(protocol.DESCRIBE, {})
        text = self._output(response, "settings").item()
        self._settings = settings_from_json(text, self.target)
        return self._settings, response.model_spec.version.value

    def _predict(
        self, signature_name: str, inputs: dict[str, np.ndarray]
    ) -> predict_pb2.PredictResponse:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = self.model
        request.model_spec.signature_name = signature_name
        if self.version is not None:
            request.model_spec.version.value = self.version
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(protocol.encode_tensor(array))
        return self._call(self._prediction.Predict, request)

    def _call(self, method: Callable[..., Response], request: Message) -> Response:
        deadline = time.monotonic() + self._timeout_s
        pause_s = FIRST_PAUSE_S
        for attempt in range(1, self._attempts + 1):
            try:
                return method(request, timeout=max(0.0, deadline - time.monotonic()))
            except grpc.RpcError as error:
                unavailable = error.code() == grpc.StatusCode.UNAVAILABLE
                time_left = deadline - time.monotonic() > pause_s
                if not unavailable or attempt == self._attempts or not time_left:
                    raise self._error(error) from None
            time.sleep(pause_s)
            pause_s *= 2
        raise ServingError(self.target, "attempts of at least 1", self._attempts)

    def _error(self, error: grpc.RpcError) -> ServingError:
        code = error.code()
        expected, remedy = _REMEDIES.get(code, ("an answer", ""))
        return ServingError(self.target, expected, f"{code.name}: {error.details()}", remedy)

    def _check_size(self, request_bytes: int, answer_bytes: int) -> None:
        largest = max(request_bytes, answer_bytes)
        if largest > self._max_message_bytes:
            raise ServingError(
                self.target,
                f"messages of at most {self._max_message_bytes} bytes",
                f"{request_bytes} bytes to send and {answer_bytes} to receive",
                "Send fewer windows at once, or raise max_message_bytes on both sides.",
            )

    def _output(self, response: predict_pb2.PredictResponse, name: str) -> np.ndarray:
        if name not in response.outputs:
            raise ServingError(
                self.target,
                f"an output {name!r}",
                ", ".join(sorted(response.outputs)) or "none",
                "Export the model again with python -m serving.export.",
            )
        return protocol.as_array(response.outputs[name])


def open_predictor(target: str) -> Predictor:
    """Returns the served model as a `Predictor` that stays with one version.

    Args:
      target: HOST:PORT or HOST:PORT/MODEL.

    Raises:
      ServingError: no server there, or no such model.
    """
    client = AHNetClient(target)
    return Predictor(client.pin(), client.predict_windows)


def split_target(target: str, model: str) -> tuple[str, str]:
    """Returns the address and the model's name of HOST:PORT or HOST:PORT/MODEL."""
    address, _, name = target.partition("/")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536 or "/" in name:
        raise ServingError(
            target, "HOST:PORT or HOST:PORT/MODEL", "another form", "For example localhost:8500."
        )
    return address, name or model
