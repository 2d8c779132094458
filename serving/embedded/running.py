"""A server put together in this process: models, queue, gRPC, health, and REST if asked for."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tensorflow_serving.apis import model_pb2

from preprocessing.errors import ServingError
from serving import protocol
from serving.auth import ServerAccess
from serving.embedded.batching import Batcher, BatchSettings
from serving.embedded.calls import Calls
from serving.embedded.core import Core, Limits
from serving.embedded.grpc_service import make_handlers
from serving.embedded.http_guard import ConnectionLimits
from serving.embedded.metrics import Metrics
from serving.embedded.models import Models
from serving.embedded.policy import ModelConfig
from serving.embedded.rest import start_rest
from serving.embedded.versions import ModelVersions

# Calls that need no prediction (status, metadata) must not wait for those that do, nor be refused
# while a burst of predictions is being turned away, each of which holds a thread for a moment.
_SPARE_THREADS = 16


@dataclass(frozen=True)
class ModelServer:
    """A server that answers.

    Attributes:
      address: HOST:PORT of gRPC.
      target: HOST:PORT/MODEL of the first model, which `ahnet_tf.inference.predictor.open_predictor` takes.
      rest_address: http(s)://HOST:PORT of REST; None without it.
      models: what is served.
      core: the server behind its ports.
    """

    address: str
    target: str
    rest_address: str | None
    models: Models
    core: Core

    def versions_of(self, name: str) -> ModelVersions:
        """Returns the versions of a model."""
        return self.models.find(model_pb2.ModelSpec(name=name))


def start_server(
    model_base_path: str | Path, *, model_name: str = protocol.DEFAULT_MODEL_NAME, **options
) -> contextlib.AbstractContextManager[ModelServer]:
    """Serves one model, its newest version, until the context ends; options as in `start_models`."""
    return start_models([ModelConfig(model_name, Path(model_base_path))], **options)


@contextlib.contextmanager
def start_models(
    configs: Sequence[ModelConfig],
    *,
    reload_roots: Sequence[Path] = (),
    host: str = "127.0.0.1",
    port: int = 0,
    rest_port: int | None = None,
    access: ServerAccess | None = None,
    batches: BatchSettings | None = None,
    limits: Limits | None = None,
    rest_limits: ConnectionLimits | None = None,
    poll_s: float = 1.0,
    grace_s: float = 30.0,
    report: Callable[[str], object] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Iterator[ModelServer]:
    """Serves models in this process until the context ends.

    Args:
      configs: the models; their folders are watched for new versions.
      reload_roots: folders below which a reloaded configuration may name others.
      host: address to bind to; the default can't be reached from other machines.
      port: gRPC's; 0 takes any free one.
      rest_port: REST's and the metrics'; 0 takes any free one, None has none.
      access: TLS and token; by default plain and open.
      batches: how predictions wait and run.
      limits: what one request may hold.
      rest_limits: what REST's connections may do.
      poll_s: seconds between two looks for new versions.
      grace_s: seconds that requests in progress may take when the server stops.
      report: called with one line when a version is replaced or can't be loaded.

    Raises:
      ModelError: no version in a folder, or none that can be loaded.
      ServingError: a port can't be bound.
      SettingsError: a certificate that can't be used.
    """
    access, limits = access or ServerAccess(), limits or Limits()
    batches = batches or BatchSettings()
    threads = batches.running + batches.waiting + _SPARE_THREADS
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(threads, thread_name_prefix="rpc")
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        server = _grpc_server(pool, threads, limits)
        bound = _bind(server, _shown(host), port, access)
        models = Models(configs, roots=reload_roots, poll_s=poll_s, report=report)
        stack.callback(models.stop)
        metrics = Metrics(lambda: batcher.depth)
        batcher = Batcher(batches, metrics.count_batch)
        stack.callback(batcher.close)
        core = Core(models, batcher, Calls(), metrics, access, limits)
        server.add_generic_rpc_handlers(make_handlers(core))
        healthy = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        server.start()
        stack.callback(lambda: server.stop(None).wait())
        rest_address = None
        if rest_port is not None:
            rest = start_rest(core, host, rest_port, threads=threads, limits=rest_limits)
            scheme = "http" if access.certificate is None else "https"
            rest_address = f"{scheme}://{_shown(host)}:{stack.enter_context(rest)}"
        # Last in, first out: no new calls, and those in progress end, before anything is torn down.
        stack.callback(core.calls.close, grace_s)
        stack.callback(healthy.enter_graceful_shutdown)
        for service in ("", protocol.PREDICTION_SERVICE, protocol.MODEL_SERVICE):
            healthy.set(service, health_pb2.HealthCheckResponse.SERVING)
        address = f"{_shown(host)}:{bound}"
        yield ModelServer(address, f"{address}/{configs[0].name}", rest_address, models, core)


def _grpc_server(pool: ThreadPoolExecutor, threads: int, limits: Limits) -> grpc.Server:
    return grpc.server(
        pool,
        # A call that finds no thread is refused rather than kept.
        maximum_concurrent_rpcs=threads,
        options=[
            ("grpc.max_receive_message_length", limits.request_bytes),
            ("grpc.max_send_message_length", limits.answer_bytes),
            # No compressed requests: a few bytes can unpack to gigabytes.
            ("grpc.compression_enabled_algorithms_bitset", 1 << grpc.Compression.NoCompression),
            # Otherwise two servers could share a port.
            ("grpc.so_reuseport", 0),
        ],
    )


def _bind(server: grpc.Server, shown_host: str, port: int, access: ServerAccess) -> int:
    credentials = access.grpc_credentials()
    try:
        if credentials is None:
            return server.add_insecure_port(f"{shown_host}:{port}")
        return server.add_secure_port(f"{shown_host}:{port}", credentials)
    except RuntimeError:
        raise ServingError(
            f"{shown_host}:{port}",
            "a free port of this machine",
            "an address that can't be bound",
            "Another server may use it: choose another --port, or 0 for any free one.",
        ) from None


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
