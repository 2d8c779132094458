"""What can go wrong between a client and a model server, one type for each thing to do about it."""

from __future__ import annotations

import grpc

from preprocessing.errors import ServingError


class UnreachableError(ServingError):
    """No model server answers at the address, or not any more."""


class TooSlowError(ServingError):
    """The answer didn't come before the deadline."""


class BusyError(ServingError):
    """The server has no room for the request, now or at all."""


class NotServedError(ServingError):
    """The server has no such model, version or label."""


class BadRequestError(ServingError):
    """The request doesn't fit the model."""


class AccessError(ServingError):
    """The server wants a token, or another one."""


class ForeignServerError(ServingError):
    """Another program answers, or another model than this project exports."""


# Status code: type of the error, what was expected, what a person can do.
_MEANINGS = {
    grpc.StatusCode.UNAVAILABLE: (
        UnreachableError,
        "a model server",
        "Check host, port and whether it wants TLS, or start one: python -m serving.server "
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
    grpc.StatusCode.NOT_FOUND: (
        NotServedError,
        "a model and version that the server has",
        "Name the model as HOST:PORT/MODEL; start again if a new version was published meanwhile.",
    ),
    grpc.StatusCode.INVALID_ARGUMENT: (
        BadRequestError,
        "a request that fits the model",
        "Check that the model was exported by this version: python -m serving.export.",
    ),
    grpc.StatusCode.UNAUTHENTICATED: (
        AccessError,
        "a token that the server takes",
        "Give the server's token: token=..., or AHNET_SERVING_TOKEN_FILE=FILE for commands.",
    ),
    grpc.StatusCode.PERMISSION_DENIED: (
        AccessError,
        "the right to ask this",
        "Ask whoever runs the server.",
    ),
    grpc.StatusCode.UNIMPLEMENTED: (
        ForeignServerError,
        "TF Serving's gRPC services",
        "Another program answers at this port; TF Serving's gRPC port is 8500 unless told otherwise.",
    ),
}


def error_of(code: grpc.StatusCode, details: str | None, target: str) -> ServingError:
    """Returns the error for the status of a failed call."""
    kind, expected, remedy = _MEANINGS.get(code, (ServingError, "an answer", ""))
    return kind(target, expected, f"{code.name}: {details}", remedy)
