"""TF Serving's gRPC services over one model: Predict, GetModelMetadata, GetModelStatus."""

from __future__ import annotations

import contextlib
import threading
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


def make_handlers(
    versions: ModelVersions, queue: Queue, *, max_message_bytes: int, max_request_voxels: int
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
                name: grpc.unary_unary_rpc_method_handler(_answering(method))
                for name, method in methods.items()
            },
        )
        for service, methods in services.items()
    ]


def _answering(
    method: Callable[[bytes, grpc.ServicerContext], bytes],
) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    """Turns a `RefusedError` of a method into the call's status."""

    def answer(content: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return method(content, context)
        except RefusedError as error:
            context.set_code(error.code)
            context.set_details(" ".join(error.reason.split())[:_LONGEST_REASON])
            return b""

    return answer


def _parse(kind: type[Request], content: bytes) -> Request:
    try:
        return kind.FromString(content)
    except DecodeError:
        raise malformed(f"expected a serialized {kind.DESCRIPTOR.full_name}") from None


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
