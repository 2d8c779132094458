"""Serves an ML Metadata store in SQLite by the gRPC protocol of a cluster's metadata service."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
from ml_metadata.metadata_store.pywrap.metadata_store_extension import metadata_store
from ml_metadata.proto import metadata_store_pb2

_SERVICE = "/ml_metadata.MetadataStoreService/"
_STATUS = {code.value[0]: code for code in grpc.StatusCode}


@contextlib.contextmanager
def serve_metadata(file: str | Path) -> Iterator[int]:
    """Serves the store in an SQLite file on the loopback interface; yields the port.

    Requests are passed unchanged to the library behind ML Metadata's own server.
    """
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    server.add_generic_rpc_handlers([_Store(file)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(grace=None).wait()


class _Store(grpc.GenericRpcHandler):
    """Handles every method of the service with one store, one request at a time."""

    def __init__(self, file: str | Path):
        connection = metadata_store_pb2.ConnectionConfig()
        connection.sqlite.filename_uri = str(file)
        options = metadata_store_pb2.MigrationOptions()
        self._store = metadata_store.CreateMetadataStore(
            connection.SerializeToString(), options.SerializeToString()
        )
        self._lock = threading.Lock()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Returns the handler of a method, or None if the service has no such method."""
        name = details.method.removeprefix(_SERVICE)
        method = getattr(metadata_store, name, None)
        if method is None or not details.method.startswith(_SERVICE):
            return None
        return grpc.unary_unary_rpc_method_handler(self._answer(method))

    def _answer(self, method: Callable) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            with self._lock:
                response, message, status = method(self._store, request)
            if status:
                context.abort(_STATUS[status], message.decode())
            return response

        return answer
