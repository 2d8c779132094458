"""Starts and stops an embedded server: model, queue, gRPC, health checks and metrics."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from preprocessing.errors import ServingError
from serving import protocol
from serving.embedded.batching import Batcher, BatchSettings
from serving.embedded.grpc_service import GrpcService, InFlightRequests, Limits
from serving.embedded.versions import ModelVersions

# Threads beside those of the predictions: for status, metadata and health checks, of which
# `Limits.small_reads` are received at a time, and for refusing calls.
SPARE_THREADS = 16
# Calls that are begun at the same time; gRPC refuses more of them with RESOURCE_EXHAUSTED. Those
# without a place are refused as soon as a thread is free, which needs no more than their headers.
MAX_CALLS = 1000

# Metrics are not protected by TLS, so they are never offered to other machines.
METRICS_HOST = "127.0.0.1"
# From a status request to a large volume on a slow machine.
SECONDS_BUCKETS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class ModelServer:
    """A running server."""

    address: str  # HOST:PORT of gRPC
    target: str  # HOST:PORT/MODEL, which `ahnet_tf.inference.predictor.open_predictor` accepts
    metrics_address: str | None  # http://HOST:PORT/metrics; None without a metrics port
    versions: ModelVersions
    in_flight: InFlightRequests


@contextlib.contextmanager
def start_server(
    model_base_path: str | Path,
    *,
    model_name: str = protocol.DEFAULT_MODEL_NAME,
    host: str = "127.0.0.1",
    port: int = 0,
    metrics_port: int | None = None,
    credentials: grpc.ServerCredentials | None = None,
    batches: BatchSettings | None = None,
    limits: Limits | None = None,
    backend: str = "tensorflow",
    poll_s: float = 1.0,
    grace_s: float = 30.0,
    report: Callable[[str], object] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Iterator[ModelServer]:
    """Serves the newest version of one model in this process until the context ends.

    Args:
      model_base_path: folder of numbered SavedModel folders, which is watched for new versions.
      model_name: the model's name in requests.
      host: address to bind to; the default can't be reached from other machines.
      port: gRPC port; 0 takes any free one.
      metrics_port: port of Prometheus metrics on `METRICS_HOST`; 0 takes any free one, None serves
        no metrics.
      credentials: of TLS (`auth.server_credentials`); None serves without TLS.
      batches, limits: see their classes.
      backend: "tensorflow", or "openvino" for the signatures that take windows.
      poll_s: seconds between two checks for new versions.
      grace_s: seconds that requests in flight may take when the server stops.
      report: called with one line when a version is replaced or can't be loaded.

    Raises ModelError without a version that can be loaded, ServingError if a port can't be bound.
    """
    batches, limits = batches or BatchSettings(), limits or Limits()
    shown_host = f"[{host}]" if ":" in host else host
    threads = batches.running + batches.waiting + SPARE_THREADS
    with contextlib.ExitStack() as stack:
        pool = ThreadPoolExecutor(threads, thread_name_prefix="rpc")
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        server = _grpc_server(pool, limits)
        address = f"{shown_host}:{_bind(server, shown_host, port, credentials)}"
        versions = ModelVersions(
            model_name, Path(model_base_path), poll_s=poll_s, report=report, backend=backend
        )
        stack.callback(versions.stop)
        metrics = Metrics()
        batcher = Batcher(batches, metrics.batches.observe)
        metrics.waiting.set_function(lambda: batcher.depth)
        stack.callback(batcher.close)
        in_flight = InFlightRequests()
        service = GrpcService(versions, batcher, in_flight, limits, metrics.count_call)
        server.add_generic_rpc_handlers(service.handlers())
        server.start()
        stack.callback(lambda: server.stop(None).wait())
        metrics_address = None
        if metrics_port is not None:
            metrics_address = stack.enter_context(_serve_metrics(metrics, metrics_port))
        # Callbacks run in reverse order: first new calls are refused and those in flight answered.
        stack.callback(in_flight.close, grace_s)
        yield ModelServer(address, f"{address}/{model_name}", metrics_address, versions, in_flight)


class Metrics:
    """Prometheus metrics of one server."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ahnet_serving_requests",
            "Calls answered, by method and status.",
            ("method", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "ahnet_serving_request_seconds",
            "Time from a call's arrival to its answer.",
            ("method",),
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.batches = Histogram(
            "ahnet_serving_batch_requests",
            "Requests merged into one prediction.",
            buckets=BATCH_BUCKETS,
            registry=self.registry,
        )
        self.waiting = Gauge(
            "ahnet_serving_waiting", "Predictions that wait in the queue.", registry=self.registry
        )

    def count_call(self, method: str, status: str, seconds: float) -> None:
        """Counts an answered call."""
        self.requests.labels(method, status).inc()
        self.seconds.labels(method).observe(seconds)


@contextlib.contextmanager
def _serve_metrics(metrics: Metrics, port: int) -> Iterator[str]:
    """Serves metrics over HTTP until the context ends; yields their address."""
    try:
        server, thread = start_http_server(port, METRICS_HOST, metrics.registry)
    except OSError:
        raise _port_error(f"{METRICS_HOST}:{port}", "--metrics-port") from None
    try:
        yield f"http://{METRICS_HOST}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _grpc_server(pool: ThreadPoolExecutor, limits: Limits) -> grpc.Server:
    return grpc.server(
        pool,
        maximum_concurrent_rpcs=MAX_CALLS,
        options=[
            ("grpc.max_receive_message_length", limits.request_bytes),
            ("grpc.max_send_message_length", limits.answer_bytes),
            # Refuse compressed requests: a few bytes can unpack to gigabytes.
            ("grpc.compression_enabled_algorithms_bitset", 1 << grpc.Compression.NoCompression),
            # Two servers must not share a port.
            ("grpc.so_reuseport", 0),
        ],
    )


def _bind(
    server: grpc.Server, host: str, port: int, credentials: grpc.ServerCredentials | None
) -> int:
    """Binds a server to a port, and returns it."""
    address = f"{host}:{port}"
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError:
        raise _port_error(address, "--port") from None


def _port_error(address: str, option: str) -> ServingError:
    found = "an address that can't be bound"
    remedy = f"Another server may use it: choose another {option}, or 0 for any free one."
    return ServingError(address, "a free port of this machine", found, remedy)
