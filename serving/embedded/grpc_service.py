"""TF Serving's gRPC services: Predict, GetModelMetadata, GetModelStatus, HandleReloadConfigRequest."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    predict_pb2,
)

from serving import protocol
from serving.auth import header_of
from serving.embedded.core import SIGNATURE_DEF, Core, shown_reason
from serving.embedded.loaded_model import check_request
from serving.embedded.policy import configs_of
from serving.protocol import RefusedError, malformed

Request = TypeVar("Request", bound=Message)
Method = Callable[[Callable[[], bytes], grpc.ServicerContext], bytes]

# Said once more, it fills logs: what it means is seen below by the length.
warnings.filterwarnings("ignore", message="Unexpected end-group tag")


class Reader:
    """Receives the messages of calls: few at a time, each within its time.

    Handlers are of gRPC's streaming kind, which is the same on the wire: so token and queue are asked
    before anything is received. Plain ones would receive everybody's message first.
    """

    def __init__(self, at_a_time: int, seconds: float):
        self._turns = threading.BoundedSemaphore(at_a_time)
        self._seconds = seconds

    def read(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """Returns a call's message.

        Raises:
          RefusedError: (INVALID_ARGUMENT) there is none; (CANCELLED) it didn't come in time, the client is
            gone, or gRPC refuses its size.
        """
        with self._turns:
            timer = threading.Timer(self._seconds, context.cancel)
            timer.daemon = True
            timer.start()
            try:
                return next(messages)
            except StopIteration:
                raise malformed("expected a message, found none") from None
            except grpc.RpcError:
                raise RefusedError(grpc.StatusCode.CANCELLED, "the message did not come") from None
            finally:
                timer.cancel()


def make_handlers(core: Core) -> list[grpc.GenericRpcHandler]:
    """Returns the gRPC handlers of PredictionService and ModelService.

    Requests come as bytes and are parsed here, so that bytes which are no request get
    INVALID_ARGUMENT; gRPC's own parsing would answer INTERNAL.
    """

    def predict(read: Callable[[], bytes], context: grpc.ServicerContext) -> bytes:
        with core.batcher.place():
            request = _parse(predict_pb2.PredictRequest, read())
            model, call, outputs = core.predict(
                request.model_spec,
                lambda model: check_request(model, request, core.limits.request_voxels),
                timeout_s=context.time_remaining(),
                is_wanted=context.is_active,
            )
            response = predict_pb2.PredictResponse()
            response.model_spec.name = request.model_spec.name
            response.model_spec.version.value = model.version
            response.model_spec.signature_name = call.signature_name
            for key, output in outputs.items():
                response.outputs[key].CopyFrom(protocol.encode_tensor(output))
            return response.SerializeToString()

    def get_model_metadata(read: Callable[[], bytes], context: grpc.ServicerContext) -> bytes:
        request = _parse(get_model_metadata_pb2.GetModelMetadataRequest, read())
        if list(request.metadata_field) != [SIGNATURE_DEF]:
            raise malformed(f"metadata_field: expected [{SIGNATURE_DEF!r}]")
        return core.metadata(request.model_spec).SerializeToString()

    def get_model_status(read: Callable[[], bytes], context: grpc.ServicerContext) -> bytes:
        request = _parse(get_model_status_pb2.GetModelStatusRequest, read())
        return core.status(request.model_spec).SerializeToString()

    def handle_reload_config(read: Callable[[], bytes], context: grpc.ServicerContext) -> bytes:
        request = _parse(model_management_pb2.ReloadConfigRequest, read())
        core.models.reload(configs_of(request.config))
        return model_management_pb2.ReloadConfigResponse().SerializeToString()

    reader = Reader(core.limits.reads, core.limits.read_s)
    services: dict[str, dict[str, Method]] = {
        protocol.PREDICTION_SERVICE: {
            "Predict": predict,
            "GetModelMetadata": get_model_metadata,
        },
        protocol.MODEL_SERVICE: {
            "GetModelStatus": get_model_status,
            "HandleReloadConfigRequest": handle_reload_config,
        },
    }
    return [
        grpc.method_handlers_generic_handler(
            service,
            {
                name: grpc.stream_unary_rpc_method_handler(_answering(core, reader, name, method))
                for name, method in methods.items()
            },
        )
        for service, methods in services.items()
    ]


def _answering(
    core: Core, reader: Reader, name: str, method: Method
) -> Callable[[Iterator[bytes], grpc.ServicerContext], bytes]:
    """Turns a `RefusedError` of a method into the call's status, and counts the call."""

    def answer(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        begin, status = time.monotonic(), grpc.StatusCode.INTERNAL
        try:
            core.admit(header_of(context.invocation_metadata()))
            end = core.calls.begin()
            if not context.add_callback(end):
                end()
            response = method(lambda: reader.read(messages, context), context)
            status = grpc.StatusCode.OK
            return response
        except RefusedError as error:
            status = error.code
            context.set_code(error.code)
            context.set_details(shown_reason(error))
            return b""
        finally:
            core.metrics.count(name, "grpc", status.name, begin)

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
