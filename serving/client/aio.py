"""The client for asyncio: the same calls as `serving.client`, awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from typing import TypeVar

import grpc
import grpc.aio
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
from serving.client.errors import NotServedError
from serving.client.requests import ClientSettings, Exchange
from serving.client.sync import RESTARTS

Response = TypeVar("Response", bound=Message)


class AsyncAHNetClient:
    """Calls one model on a TF Serving or `serving.server` from asyncio.

    Args and errors are those of `client.AHNetClient`; to be made and used in one event loop.
    """

    def __init__(self, target: str, model: str = protocol.DEFAULT_MODEL_NAME, **settings):
        self._exchange = Exchange(target, model, ClientSettings(**settings))
        self._settings: ExportSettings | None = None
        options, credentials = self._exchange.channel_options(), self._exchange.credentials()
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(self._exchange.address, options)
        else:
            self._channel = grpc.aio.secure_channel(self._exchange.address, credentials, options)
        self._prediction = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    async def __aenter__(self) -> AsyncAHNetClient:
        return self

    async def __aexit__(self, *_) -> None:
        await self.close()

    @property
    def target(self) -> str:
        """HOST:PORT/MODEL."""
        return self._exchange.target

    async def close(self) -> None:
        """Ends the connection."""
        await self._channel.close()

    async def describe(self) -> ExportSettings:
        """Returns what the served model was trained for."""
        return (await self._describe())[0]

    async def predict_windows(self, windows: np.ndarray) -> np.ndarray:
        """Returns float32 probabilities [batch, z, y, x, class], see `AHNetClient`."""
        return await self._predict(windows, self._settings or await self.describe(), None)

    async def segment(
        self,
        volume: Volume,
        settings: PredictionSettings | None = None,
        *,
        progress: Callable[[int, int], object] | None = None,
    ) -> Segmentation:
        """Segments a whole volume, see `AHNetClient.segment`.

        Windows are cut and blended in a thread, which also calls `progress`; the calls themselves are
        awaited in this event loop, which goes on with other work meanwhile.
        """
        restarts = 0
        # Set however this ends: a thread can't be cancelled, but it must not go on calling.
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
                    if restarts > RESTARTS or self._exchange.version is not None:
                        raise
        finally:
            ended.set()

    async def status(self) -> list[get_model_status_pb2.ModelVersionStatus]:
        """Returns number, state and error of each version that the server has met."""
        response = await self._call(self._models.GetModelStatus, self._exchange.status_request())
        return list(response.model_version_status)

    async def _predictor(self, ended: threading.Event) -> Predictor:
        """Returns the model as a `Predictor` for threads other than the event loop's."""
        loop = asyncio.get_running_loop()
        settings, version = await self._describe()

        def predict(windows: np.ndarray) -> np.ndarray:
            if ended.is_set():
                raise CancelledError
            answer = self._predict(windows, settings, version)
            return asyncio.run_coroutine_threadsafe(answer, loop).result()

        return Predictor(settings, predict, in_flight=self._exchange.settings.in_flight)

    async def _describe(self) -> tuple[ExportSettings, int]:
        response = await self._call(self._prediction.Predict, self._exchange.describe_request())
        self._settings, version = self._exchange.read_description(response)
        return self._settings, version

    async def _predict(
        self, windows: np.ndarray, settings: ExportSettings, version: int | None
    ) -> np.ndarray:
        call = self._exchange.windows_call(windows, settings, version)
        response = await self._call(self._prediction.Predict, call.request)
        return self._exchange.read_probabilities(response, call)

    async def _call(self, method: Callable[..., Awaitable[Response]], request: Message) -> Response:
        attempts, options = self._exchange.attempts(), self._exchange.call_options()
        while True:
            try:
                response = await method(request, timeout=attempts.time_left_s(), **options)
            except grpc.RpcError as error:
                pause_s = attempts.pause_s(error.code())
                if pause_s is None:
                    raise self._exchange.error(error) from None
                await asyncio.sleep(pause_s)
            else:
                self._exchange.answered = True
                return response
