"""Serves an ML Metadata store in SQLite by the gRPC protocol of a cluster's metadata service."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
from ml_metadata.metadata_store.pywrap.metadata_store_extension import metadata_store
from ml_metadata.proto import metadata_store_pb2

_SERVICE = "ml_metadata.MetadataStoreService"
_STATUS = {code.value[0]: code for code in grpc.StatusCode}


@contextlib.contextmanager
def serve_metadata(file: str | Path) -> Iterator[int]:
    """Serves the store in an SQLite file on the loopback interface; yields the port.

    Requests are passed unchanged, one at a time, to the library behind ML Metadata's own server.
    """
    connection = metadata_store_pb2.ConnectionConfig()
    connection.sqlite.filename_uri = str(file)
    options = metadata_store_pb2.MigrationOptions()
    store = metadata_store.CreateMetadataStore(
        connection.SerializeToString(), options.SerializeToString()
    )

    def handler(method: Callable) -> grpc.RpcMethodHandler:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            response, message, status = method(store, request)
            if status:
                context.abort(_STATUS[status], message.decode())
            return response

        return grpc.unary_unary_rpc_method_handler(answer)

    methods = {name: handler(each) for name, each in vars(metadata_store).items() if callable(each)}
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(_SERVICE, methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(grace=None).wait()
