"""Asyncio client of TF Serving's gRPC protocol."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.protobuf.message import Message
from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus

from ahnet_tf.inference.predictor import ExportSettings, Predictor
from ahnet_tf.inference.segment import PredictionSettings, Segmentation
from preprocessing.volumes.geometry import Volume
from serving import protocol
from serving.client.requests import ClientSettings, RequestBuilder


class AsyncAHNetClient:
    """Calls one model on TF Serving or `serving.server` from one event loop.

    Args, methods and errors are those of `AHNetClient`.
    """

    def __init__(self, target: str, model: str = protocol.DEFAULT_MODEL_NAME, **settings: Any):
        self._requests = RequestBuilder(grpc.aio, target, model, ClientSettings(**settings))

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
        await self._requests.channel.close()

    async def describe(self) -> ExportSettings:
        """Returns the settings that the served model was exported with."""
        return (await self._describe())[0]

    async def predict_windows(self, windows: np.ndarray) -> np.ndarray:
        """Returns float32 probabilities [batch, z, y, x, class], as `AHNetClient` does."""
        settings = self._requests.described or await self.describe()
        return await self._predict(windows, settings, None)

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
        # A thread can't be cancelled; this event keeps it from making further calls.
        ended = threading.Event()
        loop = asyncio.get_running_loop()

        def wait(answer: Coroutine[Any, Any, Any]) -> Any:
            if ended.is_set():
                answer.close()
                raise CancelledError
            return asyncio.run_coroutine_threadsafe(answer, loop).result()

        def open_predictor() -> Predictor:
            served, version = wait(self._describe())
            in_flight = self._requests.settings.in_flight
            predict = functools.partial(self._predict, settings=served, version=version)
            return Predictor(served, lambda windows: wait(predict(windows)), in_flight=in_flight)

        try:
            segment = self._requests.segment
            return await asyncio.to_thread(segment, open_predictor, volume, settings, progress)
        finally:
            ended.set()

    async def status(self) -> list[ModelVersionStatus]:
        """Returns number, state and error of each version that the server knows."""
        response = await self._call(self._requests.get_status, self._requests.status_request())
        return list(response.model_version_status)

    async def _describe(self) -> tuple[ExportSettings, int]:
        response = await self._call(self._requests.predict, self._requests.describe_request())
        return self._requests.read_description(response)

    async def _predict(
        self, windows: np.ndarray, settings: ExportSettings, version: int | None
    ) -> np.ndarray:
        request = self._requests.windows_request(windows, settings, version)
        response = await self._call(self._requests.predict, request)
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
