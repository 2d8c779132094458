"""TF Serving's REST interface over the same models: predict, status, metadata, and Prometheus' metrics."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from aiohttp import web
from google.protobuf import json_format
from google.protobuf.message import Message
from tensorflow_serving.apis import model_pb2

from preprocessing.errors import ServingError
from serving.embedded.core import Core, shown_reason
from serving.embedded.http_guard import ConnectionGuard, ConnectionLimits
from serving.embedded.rest_json import answer_json, call_from_json, parse_body
from serving.protocol import RefusedError, malformed

METRICS_PATH = "/monitoring/prometheus/metrics"
# JSON takes several times the memory of the numbers in it: large windows go over gRPC.
MAX_BODY_BYTES = 16 * 2**20
JSON = "application/json"
_LOGGER = logging.getLogger(__name__)

_HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 503,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.contextmanager
def start_rest(
    core: Core, host: str, port: int, *, threads: int, limits: ConnectionLimits | None = None
) -> Iterator[int]:
    """Serves REST from a thread of its own until the context ends; yields the port.

    Args:
      core: what answers.
      host: address to bind to.
      port: 0 takes any free one.
      threads: requests worked on at the same time.
      limits: of connections.

    Raises:
      ServingError: the port can't be bound.
      SettingsError: a certificate that can't be used.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="rest", daemon=True)
    thread.start()

    def run(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="rest")
    stopping = None
    try:
        bound, stopping = run(_bind(core, pool, host, port, limits or ConnectionLimits()))
        yield bound
    finally:
        if stopping is not None:
            run(stopping())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        pool.shutdown(wait=False, cancel_futures=True)


async def _bind(
    core: Core, pool: ThreadPoolExecutor, host: str, port: int, limits: ConnectionLimits
) -> tuple[int, Callable[[], Awaitable[None]]]:
    """Returns the bound port and what ends the serving."""
    guard = ConnectionGuard(limits)
    runner = web.AppRunner(
        _application(core, pool, guard, limits),
        access_log=None,
        # A traceback for each bad request would fill disks, and stop the server at a full pipe.
        logger=_silent_logger(),
        # A few bytes can unpack to gigabytes.
        auto_decompress=False,
        keepalive_timeout=limits.header_s,
        lingering_time=0.5,
    )
    await runner.setup()
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(
            guard.watch(runner.server), host, port, ssl=core.access.ssl_context()
        )
    except OSError:
        await runner.cleanup()
        raise ServingError(
            f"{host}:{port}",
            "a free port of this machine",
            "an address that can't be bound",
            "Another server may use it: choose another --rest-port, or 0 for any free one.",
        ) from None

    async def stop() -> None:
        server.close()
        await runner.shutdown()
        await runner.cleanup()
        # Before Python 3.12, this returns at once.
        await server.wait_closed()

    return server.sockets[0].getsockname()[1], stop


def _application(
    core: Core, pool: ThreadPoolExecutor, guard: ConnectionGuard, limits: ConnectionLimits
) -> web.Application:
    async def in_thread(work: Callable[[], bytes]) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    async def predict(request: web.Request) -> web.Response:
        try:
            content = await asyncio.wait_for(request.read(), limits.body_s)
        except asyncio.TimeoutError:
            raise RefusedError(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"the body took more than {limits.body_s} s"
            ) from None
        transport = request.transport

        def answer() -> bytes:
            with core.batcher.place():
                body = parse_body(content)
                _, call, outputs = core.predict(
                    _spec_of(request),
                    lambda model: call_from_json(model, body, core.limits.request_voxels),
                    timeout_s=limits.request_s,
                    is_wanted=lambda: transport is not None and not transport.is_closing(),
                )
                return answer_json(call, outputs, rows="instances" in body)

        return web.Response(body=await in_thread(answer), content_type=JSON)

    async def status(request: web.Request) -> web.Response:
        return _json_response(core.status(_spec_of(request)))

    async def metadata(request: web.Request) -> web.Response:
        return _json_response(core.metadata(_spec_of(request)))

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=core.metrics.text(), content_type="text/plain", charset="utf-8")

    application = web.Application(
        client_max_size=MAX_BODY_BYTES, middlewares=[_answering(core, guard)]
    )
    model = "/v1/models/{model:[^/:]+}"
    for path in (model, model + "/versions/{version:[0-9]+}", model + "/labels/{label:[^/:]+}"):
        application.router.add_post(path + ":predict", predict)
        application.router.add_get(path, status)
        application.router.add_get(path + "/metadata", metadata)
    application.router.add_get(METRICS_PATH, metrics)
    return application


def _answering(core: Core, guard: ConnectionGuard) -> Callable:
    """Returns the middleware that admits, counts, and turns refusals into TF Serving's errors."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        begin, code = time.monotonic(), grpc.StatusCode.INTERNAL
        transport = request.transport
        if transport is not None:
            guard.begin_request(transport)
        end = None
        try:
            try:
                core.admit(request.headers.get("Authorization"))
                end = core.calls.begin()
                response = await handler(request)
                code = grpc.StatusCode.OK
            except RefusedError as error:
                code = error.code
                response = _error_response(_HTTP_STATUS.get(code, 500), shown_reason(error))
            except web.HTTPRequestEntityTooLarge:
                code = grpc.StatusCode.RESOURCE_EXHAUSTED
                reason = f"expected a body of at most {MAX_BODY_BYTES} bytes"
                response = _error_response(413, reason)
            except web.HTTPException as error:
                code = grpc.StatusCode.NOT_FOUND
                response = _error_response(error.status, error.reason)
            except Exception as error:
                _LOGGER.exception("REST: %s", type(error).__name__)
                response = _error_response(500, "an error of the server; its log says more")
            # Written here, so that a call ends when its answer has left.
            await response.prepare(request)
            await response.write_eof()
        finally:
            if end is not None:
                end()
            if transport is not None:
                guard.end_request(transport)
            if request.path != METRICS_PATH:
                core.metrics.count(_method(request), "rest", code.name, begin)
        return response

    return answer


def _silent_logger() -> logging.Logger:
    logger = logging.getLogger("serving.embedded.rest.connections")
    logger.setLevel(logging.CRITICAL + 1)
    return logger


def _method(request: web.Request) -> str:
    """Returns gRPC's name of what a request asks for: a few words, whatever clients send."""
    if request.path.endswith(":predict"):
        return "Predict"
    return "GetModelMetadata" if request.path.endswith("/metadata") else "GetModelStatus"


def _spec_of(request: web.Request) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=request.match_info["model"])
    if "version" in request.match_info:
        version = int(request.match_info["version"][:20])
        if version >= 2**63:
            raise malformed("version: expected a number below 2**63")
        spec.version.value = version
    if "label" in request.match_info:
        spec.version_label = request.match_info["label"]
    return spec


def _json_response(message: Message) -> web.Response:
    text = json_format.MessageToJson(
        message, including_default_value_fields=True, preserving_proto_field_name=True
    )
    return web.Response(text=text, content_type=JSON)


def _error_response(status: int, reason: str) -> web.Response:
    return web.json_response({"error": reason}, status=status)
