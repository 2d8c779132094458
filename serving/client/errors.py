"""Error types of the client, one for each gRPC status that needs a different remedy."""

from __future__ import annotations

import grpc

from preprocessing.errors import ServingError


class UnreachableError(ServingError):
    """No model server answers at the address."""


class TooSlowError(ServingError):
    """The answer did not arrive before the deadline."""


class BusyError(ServingError):
    """The server has no room for the request, now or at all."""


class UnfitError(ServingError):
    """The request is sound, but this server can't run it as things are."""


class NotServedError(ServingError):
    """The server has no such model, version or label."""


class BadRequestError(ServingError):
    """The request does not match the model."""


class AccessError(ServingError):
    """The server requires a token, or another one."""


class ForeignServerError(ServingError):
    """The answer comes from another program, or from a model that this project did not export."""


# Words of TF Serving, and of the embedded server, in the status UNAVAILABLE when too many requests wait.
# Without them no server has answered.
_FULL = ("queue", "is full")

# Type of the error, what was expected and the remedy, by status code.
_MEANINGS = {
    grpc.StatusCode.UNAVAILABLE: (
        UnreachableError,
        "a model server",
        "Check host, port and whether it requires TLS, or start one: python -m serving.server "
        "--model-base-path DIR.",
    ),
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        TooSlowError,
        "an answer in time",
        "Raise timeout_s, send fewer or smaller windows, or wait until the server is less busy.",
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (
        BusyError,
        "room for the request",
        "Send fewer or smaller windows, lower in_flight, or try again when the server is less busy.",
    ),
    grpc.StatusCode.FAILED_PRECONDITION: (
        UnfitError,
        "a request that the server can run as it is",
        "Export the model again if it lacks the signature. TF Serving's batching merges only windows of "
        "one size: have all clients send the model's window size, as segment does.",
    ),
    grpc.StatusCode.NOT_FOUND: (
        NotServedError,
        "a model and version that the server has",
        "Name the model as HOST:PORT/MODEL; try again if a new version has replaced this one.",
    ),
    grpc.StatusCode.INVALID_ARGUMENT: (
        BadRequestError,
        "a request that fits the model",
        "Check the version label if there is one, and that the model was exported by this version: "
        "python -m serving.export.",
    ),
    grpc.StatusCode.UNAUTHENTICATED: (
        AccessError,
        "a token that the server accepts",
        "Give its token: token=..., or AHNET_SERVING_TOKEN_FILE=FILE for commands.",
    ),
    grpc.StatusCode.PERMISSION_DENIED: (
        AccessError,
        "permission for this call",
        "Ask the operator of the server.",
    ),
    grpc.StatusCode.UNIMPLEMENTED: (
        ForeignServerError,
        "TF Serving's gRPC services",
        "Another program answers at this port; TF Serving's default gRPC port is 8500.",
    ),
}


def is_busy(error: grpc.RpcError) -> bool:
    """Returns whether a server has answered that too many requests wait; they may be sent again."""
    details = error.details() or ""
    return error.code() == grpc.StatusCode.UNAVAILABLE and all(word in details for word in _FULL)


def error_of(error: grpc.RpcError, target: str) -> ServingError:
    """Returns the error for a failed call to `target`."""
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if is_busy(error) else error.code()
    kind, expected, remedy = _MEANINGS.get(code, (ServingError, "an answer", ""))
    return kind(target, expected, f"{error.code().name}: {error.details()}", remedy)
