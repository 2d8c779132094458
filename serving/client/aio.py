"""Asyncio client of TF Serving's gRPC protocol, with the methods of `AHNetClient`."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import Message
from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus

from ahnet_tf.inference.predictor import ExportSettings, Predictor
from ahnet_tf.inference.segment import PredictionSettings, Segmentation, segment_volume
from preprocessing.volumes.geometry import Volume
from serving import protocol
from serving.client.errors import NotServedError
from serving.client.requests import MAX_RESTARTS, ClientSettings, RequestBuilder


class AsyncAHNetClient:
    """Calls one model on TF Serving or `serving.server` from one event loop.

    Args and errors are those of `AHNetClient`.
    """

    def __init__(
        self, target: str, model: str = protocol.DEFAULT_MODEL_NAME, **settings: Any
    ) -> None:
        self._requests = RequestBuilder(target, model, ClientSettings(**settings))
        self._settings: ExportSettings | None = None
        self._channel, self._prediction, self._models = self._requests.connect(grpc.aio)

    async def __aenter__(self) -> AsyncAHNetClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def target(self) -> str:
        """HOST:PORT/MODEL."""
        return self._requests.target

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()

    async def describe(self) -> ExportSettings:
        """Returns the settings that the served model was exported with."""
        return (await self._describe())[0]

    async def predict_windows(self, windows: np.ndarray) -> np.ndarray:
        """Returns float32 probabilities [batch, z, y, x, class], as `AHNetClient` does."""
        return await self._predict(windows, self._settings or await self.describe(), None)

    async def segment(
        self,
        volume: Volume,
        settings: PredictionSettings | None = None,
        *,
        progress: Callable[[int, int], object] | None = None,
    ) -> Segmentation:
        """Segments a whole volume, as `AHNetClient.segment` does.

        Windows are cut and blended in a thread, which also calls `progress`; the calls themselves
        are awaited in the event loop, which stays free for other work.
        """
        restarts = 0
        # A thread can't be cancelled; this event keeps it from making further calls.
        ended = threading.Event()
        try:
            while True:
                try:
                    predictor = await self._predictor(ended)
                    return await asyncio.to_thread(
                        segment_volume, volume, predictor, settings, progress=progress
                    )
                except NotServedError:
                    restarts += 1
                    if restarts > MAX_RESTARTS or self._requests.has_fixed_version:
                        raise
        finally:
            ended.set()

    async def status(self) -> list[ModelVersionStatus]:
        """Returns number, state and error of each version that the server knows."""
        response = await self._call(self._models.GetModelStatus, self._requests.status_request())
        return list(response.model_version_status)

    async def _predictor(self, ended: threading.Event) -> Predictor:
        """Returns a `Predictor` for use in threads other than that of the event loop."""
        loop = asyncio.get_running_loop()
        settings, version = await self._describe()

        def predict(windows: np.ndarray) -> np.ndarray:
            if ended.is_set():
                raise CancelledError
            answer = self._predict(windows, settings, version)
            return asyncio.run_coroutine_threadsafe(answer, loop).result()

        return Predictor(settings, predict, in_flight=self._requests.settings.in_flight)

    async def _describe(self) -> tuple[ExportSettings, int]:
        response = await self._call(self._prediction.Predict, self._requests.describe_request())
        self._settings, version = self._requests.read_description(response)
        return self._settings, version

    async def _predict(
        self, windows: np.ndarray, settings: ExportSettings, version: int | None
    ) -> np.ndarray:
        request = self._requests.windows_request(windows, settings, version)
        response = await self._call(self._prediction.Predict, request)
        return self._requests.read_probabilities(response, windows, settings)

    async def _call(self, method: Callable[..., Awaitable[Any]], request: Message) -> Any:
        attempts = self._requests.attempts()
        while True:
            try:
                response = await method(
                    request, timeout=attempts.time_left_s(), metadata=self._requests.metadata
                )
            except grpc.RpcError as error:
                await asyncio.sleep(attempts.pause_s(error))
            else:
                self._requests.answered = True
                return response
