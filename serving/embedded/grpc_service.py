"""TF Serving's methods Predict, GetModelMetadata and GetModelStatus for one model, and health checks."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from serving import protocol
from serving.embedded.batching import Batcher
from serving.embedded.loaded_model import check_request
from serving.embedded.versions import ModelVersions
from serving.protocol import RefusedError, busy, malformed

SIGNATURE_DEF = "signature_def"
# The names that a health check may ask for; the empty one is the whole server.
HEALTH_NAMES = ("", protocol.PREDICTION_SERVICE, protocol.MODEL_SERVICE)

# gRPC sends a status message as a header, which must be short.
MAX_REASON_LENGTH = 500
# Time for a client to read the end of an answer from the connection's buffers.
READING_S = 0.5

Request = TypeVar("Request", bound=Message)
Method = Callable[[Callable[[], bytes], grpc.ServicerContext], bytes]

# Protobuf would log this for each malformed request; `_parse` detects it by the length.
warnings.filterwarnings("ignore", message="Unexpected end-group tag")


@dataclass(frozen=True)
class Limits:
    """Limits of one request and one answer."""

    request_bytes: int = protocol.MAX_REQUEST_BYTES
    answer_bytes: int = protocol.MAX_ANSWER_BYTES
    request_voxels: int = protocol.MAX_REQUEST_VOXELS  # summed over a request's windows
    # Messages of Predict that are received at the same time. gRPC checks the size of a message only
    # when it is complete, so this bounds the memory for incomplete ones.
    reads: int = 4
    read_s: float = 30.0  # seconds in which a message of Predict must arrive
    # The same for status, metadata and health checks, whose messages have a few bytes. They have turns
    # of their own, so that slow predictions can't hold them up, and more of them are refused.
    small_reads: int = 8
    small_read_s: float = 2.0


class InFlightRequests:
    """Counts the requests whose answers are not sent yet, so that a server can stop without losing one.

    gRPC's own stop closes connections as soon as the last answer is written, which can cut off a
    large answer that the client is still reading (connection reset).
    """

    def __init__(self):
        self._changed = threading.Condition()
        self._count = 0
        self._last_end = -READING_S
        self._closed = False

    @property
    def count(self) -> int:
        """Number of requests in flight."""
        with self._changed:
            return self._count

    @property
    def closed(self) -> bool:
        """Whether new requests are refused."""
        with self._changed:
            return self._closed

    def begin(self) -> None:
        """Counts a request, or raises RefusedError (UNAVAILABLE) if the server is stopping."""
        with self._changed:
            if self._closed:
                raise RefusedError(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
            self._count += 1

    def end(self) -> None:
        """Marks a request as answered."""
        with self._changed:
            self._count -= 1
            self._last_end = time.monotonic()
            self._changed.notify_all()

    def close(self, grace_s: float) -> None:
        """Refuses new requests and waits until those in flight are answered, at most `grace_s`."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._count == 0, timeout=grace_s)
            reading_s = self._last_end + READING_S - time.monotonic()
        time.sleep(max(0.0, reading_s))


@dataclass
class GrpcService:
    """Answers PredictionService, ModelService and gRPC's health checks.

    The methods are registered as streaming ones, which is the same on the wire: gRPC then hands over
    a call before it receives the message, so the queue is checked first. Messages are parsed here,
    because gRPC would answer INTERNAL to bytes that are not a request.

    `count_call` is called after each call with its method, status and duration in seconds.
    """

    versions: ModelVersions
    batcher: Batcher
    in_flight: InFlightRequests
    limits: Limits
    count_call: Callable[[str, str, float], object]

    def __post_init__(self) -> None:
        self._reads = threading.BoundedSemaphore(self.limits.reads)
        self._small_reads = threading.BoundedSemaphore(self.limits.small_reads)

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """Returns the handlers to register with a gRPC server."""
        services = {
            protocol.PREDICTION_SERVICE: {
                "Predict": self._handler("Predict", self._predict),
                "GetModelMetadata": self._handler("GetModelMetadata", self._get_model_metadata),
            },
            protocol.MODEL_SERVICE: {
                "GetModelStatus": self._handler("GetModelStatus", self._get_model_status)
            },
            protocol.HEALTH_SERVICE: {"Check": self._handler("Check", self._check_health)},
        }
        return [grpc.method_handlers_generic_handler(*service) for service in services.items()]

    def _handler(self, name: str, method: Method) -> grpc.RpcMethodHandler:
        """Returns a method with counting, and RefusedError turned into a status."""
        read_message = self._read if name == "Predict" else self._read_small

        def answer(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            begin, status = time.monotonic(), grpc.StatusCode.INTERNAL
            try:
                # A server that stops still says so to health checks.
                if name != "Check":
                    self.in_flight.begin()
                    if not context.add_callback(self.in_flight.end):
                        self.in_flight.end()
                response = method(lambda: read_message(messages, context), context)
                status = grpc.StatusCode.OK
                return response
            except RefusedError as error:
                status = error.code
                context.set_code(error.code)
                context.set_details(" ".join(error.reason.split())[:MAX_REASON_LENGTH])
                return b""
            finally:
                self.count_call(name, status.name, time.monotonic() - begin)

        return grpc.stream_unary_rpc_method_handler(answer)

    def _read(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """Receives the message of a prediction, after those that are being received already."""
        with self._reads:
            return _next_message(messages, context, self.limits.read_s)

    def _read_small(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """Receives a message of a few bytes, or raises RefusedError (UNAVAILABLE) if too many come."""
        if not self._small_reads.acquire(blocking=False):
            raise busy(f"{self.limits.small_reads} messages are being received already")
        try:
            return _next_message(messages, context, self.limits.small_read_s)
        finally:
            self._small_reads.release()

    def _predict(self, read: Callable[[], bytes], context: grpc.ServicerContext) -> bytes:
        with self.batcher.place():
            request = _parse(predict_pb2.PredictRequest, read())
            with self.versions.in_use(request.model_spec) as model:
                checked = check_request(model, request, self.limits.request_voxels)
                # Without a deadline gRPC says centuries, which is more than a lock can wait.
                left_s = min(context.time_remaining(), threading.TIMEOUT_MAX)
                outputs = self.batcher.run(model, checked, left_s, context.is_active)
            size, limit = sum(each.nbytes for each in outputs.values()), self.limits.answer_bytes
            if size > limit:
                raise RefusedError(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"the answer of {size} bytes is above the limit of {limit} bytes per message; "
                    "send fewer or smaller windows",
                )
            response = predict_pb2.PredictResponse()
            response.model_spec.name = request.model_spec.name
            response.model_spec.version.value = model.version
            response.model_spec.signature_name = checked.signature_name
            for key, output in outputs.items():
                response.outputs[key].CopyFrom(protocol.encode_tensor(output))
            # Still inside the reserved place, which bounds the memory for answers.
            return response.SerializeToString()

    def _get_model_metadata(
        self, read: Callable[[], bytes], context: grpc.ServicerContext
    ) -> bytes:
        request = _parse(get_model_metadata_pb2.GetModelMetadataRequest, read())
        if list(request.metadata_field) != [SIGNATURE_DEF]:
            raise malformed(f"metadata_field: expected [{SIGNATURE_DEF!r}]")
        with self.versions.in_use(request.model_spec) as model:
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.model_spec.name = request.model_spec.name
            response.model_spec.version.value = model.version
            response.metadata[SIGNATURE_DEF].Pack(model.signature_defs)
            return response.SerializeToString()

    def _get_model_status(self, read: Callable[[], bytes], context: grpc.ServicerContext) -> bytes:
        request = _parse(get_model_status_pb2.GetModelStatusRequest, read())
        statuses = self.versions.status(request.model_spec)
        response = get_model_status_pb2.GetModelStatusResponse(model_version_status=statuses)
        return response.SerializeToString()

    def _check_health(self, read: Callable[[], bytes], context: grpc.ServicerContext) -> bytes:
        request = _parse(health_pb2.HealthCheckRequest, read())
        if request.service not in HEALTH_NAMES:
            reason = f"service {request.service[:60]!r} is not known here"
            raise RefusedError(grpc.StatusCode.NOT_FOUND, reason)
        states = health_pb2.HealthCheckResponse
        status = states.NOT_SERVING if self.in_flight.closed else states.SERVING
        return health_pb2.HealthCheckResponse(status=status).SerializeToString()


def _next_message(
    messages: Iterator[bytes], context: grpc.ServicerContext, limit_s: float
) -> bytes:
    """Receives the message of a call within a time limit.

    Raises RefusedError with INVALID_ARGUMENT if the call has no message, CANCELLED if the message
    did not arrive in time, the client has disconnected, or gRPC refuses the size.
    """
    timer = threading.Timer(limit_s, context.cancel)
    timer.daemon = True
    timer.start()
    try:
        return next(messages)
    except StopIteration:
        raise malformed("expected a message, found none") from None
    except grpc.RpcError:
        raise RefusedError(grpc.StatusCode.CANCELLED, "no message arrived") from None
    finally:
        timer.cancel()


def _parse(kind: type[Request], content: bytes) -> Request:
    request = kind()
    try:
        # Protobuf stops at a stray end-group tag without an error, and returns how far it came.
        is_complete = request.MergeFromString(content) == len(content)
    except DecodeError:
        is_complete = False
    if not is_complete:
        raise malformed(f"expected a serialized {kind.DESCRIPTOR.full_name}")
    return request
