"""TF Serving's gRPC services over one model: Predict, GetModelMetadata, GetModelStatus."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc
import numpy as np
from google.protobuf.message import DecodeError, Message
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from serving import protocol
from serving.model import ServedModel, check_request, run_call
from serving.protocol import RefusedError, malformed
from serving.versions import ModelVersions

Request = TypeVar("Request", bound=Message)

SIGNATURE_DEF = "signature_def"

# gRPC sends a status message as a header, which has to be small.
_LONGEST_REASON = 500

# Time for a client to read the end of an answer out of the connection's buffers.
_READING_S = 0.5


class Queue:
    """Lets few predictions run at once, some more wait, and refuses the rest at the door.

    Args:
      running: predictions that run at the same time.
      waiting: predictions that wait for their turn.
    """

    def __init__(self, running: int, waiting: int):
        self._limit = running + waiting
        self._places = threading.BoundedSemaphore(running + waiting)
        self._turns = threading.BoundedSemaphore(running)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Holds one of the places, before any memory is taken for the request.

        Raises:
          RefusedError: (RESOURCE_EXHAUSTED) all places are taken.
        """
        if not self._places.acquire(blocking=False):
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._limit} predictions are running or waiting already; try again later",
            )
        try:
            yield
        finally:
            self._places.release()

    @contextlib.contextmanager
    def turn(self, context: grpc.ServicerContext) -> Iterator[None]:
        """Waits for a turn as long as the client does.

        Raises:
          RefusedError: (DEADLINE_EXCEEDED) the client's deadline passed meanwhile; (CANCELLED) the
            client is gone.
        """
        if not self._turns.acquire(timeout=context.time_remaining()):
            raise RefusedError(
                grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed while waiting for a turn"
            )
        try:
            if not context.is_active():
                raise RefusedError(grpc.StatusCode.CANCELLED, "the client is gone")
            yield
        finally:
            self._turns.release()


class Calls:
    """Counts calls until their answers have left, so that a server can stop without losing one.

    gRPC's own stop closes the connections as soon as the last answer is written; on a busy machine
    that has cut off answers of some megabytes (connection reset) that the client was still reading.
    """

    def __init__(self):
        self._changed = threading.Condition()
        self._in_progress = 0
        self._last_end = -_READING_S
        self._closed = False

    @property
    def in_progress(self) -> int:
        """Number of calls that are not yet answered completely."""
        with self._changed:
            return self._in_progress

    def begin(self, context: grpc.ServicerContext) -> None:
        """Counts a call until gRPC has written its answer.

        Raises:
          RefusedError: (UNAVAILABLE) the server is stopping; another one may take over.
        """
        with self._changed:
            if self._closed:
                raise RefusedError(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
            self._in_progress += 1
        if not context.add_callback(self._end):
            self._end()

    def close(self, grace_s: float) -> None:
        """Refuses new calls and waits until those in progress have their answers, or `grace_s`."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._in_progress == 0, timeout=grace_s)
            reading_s = self._last_end + _READING_S - time.monotonic()
        time.sleep(max(0.0, reading_s))

    def _end(self) -> None:
        with self._changed:
            self._in_progress -= 1
            self._last_end = time.monotonic()
            self._changed.notify_all()


def make_handlers(
    versions: ModelVersions,
    queue: Queue,
    calls: Calls,
    *,
    max_message_bytes: int,
    max_request_voxels: int,
) -> list[grpc.GenericRpcHandler]:
    """Returns the gRPC handlers of PredictionService and ModelService.

    Requests come as bytes and are parsed here, so that bytes which are no request get
    INVALID_ARGUMENT; gRPC's own parsing would answer INTERNAL.
    """

    def predict(content: bytes, context: grpc.ServicerContext) -> bytes:
        with queue.place():
            request = _parse(predict_pb2.PredictRequest, content)
            with versions.in_use(request.model_spec) as model:
                call = check_request(model, request, max_request_voxels)
                with queue.turn(context):
                    outputs = run_call(model, call)
                return _predict_response(
                    versions.name, model, call.signature_name, outputs, max_message_bytes
                )

    def get_model_metadata(content: bytes, context: grpc.ServicerContext) -> bytes:
        request = _parse(get_model_metadata_pb2.GetModelMetadataRequest, content)
        if list(request.metadata_field) != [SIGNATURE_DEF]:
            raise malformed(f"metadata_field: expected [{SIGNATURE_DEF!r}]")
        with versions.in_use(request.model_spec) as model:
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.model_spec.name = versions.name
            response.model_spec.version.value = model.version
            response.metadata[SIGNATURE_DEF].Pack(model.signature_defs)
            return response.SerializeToString()

    def get_model_status(content: bytes, context: grpc.ServicerContext) -> bytes:
        request = _parse(get_model_status_pb2.GetModelStatusRequest, content)
        return _status_response(versions, request).SerializeToString()

    services = {
        protocol.PREDICTION_SERVICE: {
            "Predict": predict,
            "GetModelMetadata": get_model_metadata,
        },
        protocol.MODEL_SERVICE: {"GetModelStatus": get_model_status},
    }
    return [
        grpc.method_handlers_generic_handler(
            service,
            {
                name: grpc.unary_unary_rpc_method_handler(_answering(method, calls))
                for name, method in methods.items()
            },
        )
        for service, methods in services.items()
    ]


def _answering(
    method: Callable[[bytes, grpc.ServicerContext], bytes], calls: Calls
) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    """Turns a `RefusedError` of a method into the call's status."""

    def answer(content: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            calls.begin(context)
            return method(content, context)
        except RefusedError as error:
            context.set_code(error.code)
            context.set_details(" ".join(error.reason.split())[:_LONGEST_REASON])
            return b""

    return answer


def _parse(kind: type[Request], content: bytes) -> Request:
    request = kind()
    try:
        # Protobuf stops at a stray end-group tag without an error, but says how far it came.
        whole = request.MergeFromString(content) == len(content)
    except DecodeError:
        whole = False
    if not whole:
        raise malformed(f"expected a serialized {kind.DESCRIPTOR.full_name}")
    return request


def _predict_response(
    name: str,
    model: ServedModel,
    signature_name: str,
    outputs: dict[str, np.ndarray],
    max_message_bytes: int,
) -> bytes:
    size = sum(output.nbytes for output in outputs.values())
    if size > max_message_bytes:
        raise RefusedError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"the answer of {size} bytes is above the limit of {max_message_bytes} bytes a message; "
            "send fewer or smaller windows",
        )
    response = predict_pb2.PredictResponse()
    response.model_spec.name = name
    response.model_spec.version.value = model.version
    response.model_spec.signature_name = signature_name
    for key, output in outputs.items():
        response.outputs[key].CopyFrom(protocol.encode_tensor(output))
    return response.SerializeToString()


def _status_response(
    versions: ModelVersions, request: get_model_status_pb2.GetModelStatusRequest
) -> get_model_status_pb2.GetModelStatusResponse:
    spec = request.model_spec
    versions.check_name(spec)
    statuses = versions.statuses()
    if spec.version_label or (spec.HasField("version") and spec.version.value not in statuses):
        asked = spec.version_label[:60] or spec.version.value
        raise RefusedError(
            grpc.StatusCode.NOT_FOUND, f"model {versions.name!r} has no version {asked!r}"
        )
    response = get_model_status_pb2.GetModelStatusResponse()
    for version, status in statuses.items():
        if spec.HasField("version") and spec.version.value != version:
            continue
        entry = response.model_version_status.add(version=version, state=status.state)
        if status.error:
            entry.status.error_code = grpc.StatusCode.INVALID_ARGUMENT.value[0]
            entry.status.error_message = status.error
    return response
