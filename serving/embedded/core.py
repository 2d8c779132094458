"""What gRPC and REST have in common: a question about a model in, its answer or a refusal out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import grpc
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2

from serving import protocol
from serving.auth import ServerAccess
from serving.embedded.batching import Batcher, Outputs
from serving.embedded.calls import Calls
from serving.embedded.loaded_model import Call, ServedModel
from serving.embedded.metrics import Metrics
from serving.embedded.models import Models
from serving.protocol import RefusedError

SIGNATURE_DEF = "signature_def"

# gRPC sends a status message as a header, which has to be small.
_LONGEST_REASON = 500


@dataclass(frozen=True)
class Limits:
    """What one request and one answer may hold.

    Attributes:
      request_bytes: largest request.
      answer_bytes: largest answer.
      request_voxels: most voxels in a request, summed over its windows.
      reads: messages that gRPC receives at the same time. It learns a message's size when all of it is
        there, so what is on its way is bounded by number.
      read_s: seconds until a message is there.
    """

    request_bytes: int = protocol.MAX_REQUEST_BYTES
    answer_bytes: int = protocol.MAX_ANSWER_BYTES
    request_voxels: int = protocol.MAX_REQUEST_VOXELS
    reads: int = 4
    read_s: float = 30.0


@dataclass(frozen=True)
class Core:
    """A server without its ports.

    Attributes:
      models: what is served.
      batcher: where predictions wait and run.
      calls: the calls in progress.
      metrics: what is counted.
      access: who may call.
      limits: of requests and answers.
    """

    models: Models
    batcher: Batcher
    calls: Calls
    metrics: Metrics
    access: ServerAccess
    limits: Limits

    def predict(
        self,
        spec: model_pb2.ModelSpec,
        make_call: Callable[[ServedModel], Call],
        *,
        timeout_s: float | None,
        is_wanted: Callable[[], bool],
    ) -> tuple[ServedModel, Call, Outputs]:
        """Answers a prediction; the caller holds a place of the batcher.

        Args:
          spec: names model, version or label.
          make_call: checks the request against the model.
          timeout_s: how long the client waits; None: for ever.
          is_wanted: says whether the client is still there.

        Returns:
          The model that answered, the checked call, and its outputs.

        Raises:
          RefusedError: with the status to answer.
        """
        with self.models.in_use(spec) as model:
            call = make_call(model)
            outputs = self.batcher.run(model, call, timeout_s=timeout_s, is_wanted=is_wanted)
        size = sum(output.nbytes for output in outputs.values())
        if size > self.limits.answer_bytes:
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"the answer of {size} bytes is above the limit of {self.limits.answer_bytes} bytes "
                "a message; send fewer or smaller windows",
            )
        return model, call, outputs

    def metadata(
        self, spec: model_pb2.ModelSpec
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Returns the signatures of a version.

        Raises:
          RefusedError: no such model, version or label.
        """
        with self.models.in_use(spec) as model:
            response = get_model_metadata_pb2.GetModelMetadataResponse()
            response.model_spec.name = spec.name
            response.model_spec.version.value = model.version
            response.metadata[SIGNATURE_DEF].Pack(model.signature_defs)
            return response

    def status(self, spec: model_pb2.ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
        """Returns the state of one version, or of all that were met.

        Raises:
          RefusedError: no such model, version or label.
        """
        versions = self.models.find(spec)
        only = versions.status_version(spec)
        response = get_model_status_pb2.GetModelStatusResponse()
        for version, status in versions.statuses().items():
            if only is not None and version != only:
                continue
            entry = response.model_version_status.add(version=version, state=status.state)
            entry.status.SetInParent()
            if status.error:
                entry.status.error_code = grpc.StatusCode.INVALID_ARGUMENT.value[0]
                entry.status.error_message = status.error
        return response

    def admit(self, authorization: str | None) -> None:
        """Lets a call with this header in.

        Raises:
          RefusedError: (UNAUTHENTICATED) no token or another one.
        """
        if not self.access.admits(authorization):
            raise RefusedError(
                grpc.StatusCode.UNAUTHENTICATED,
                "expected the header 'authorization: Bearer TOKEN' with the server's token",
            )


def shown_reason(error: RefusedError) -> str:
    """Returns why a request is refused, as one short line."""
    return " ".join(error.reason.split())[:_LONGEST_REASON]
