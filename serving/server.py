"""An embedded model server with TF Serving's own gRPC protocol, for laptops, tests and CI.

Production is TF Serving: it loads the same folder and answers the same requests.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.command import make_parser, run_command
from preprocessing.errors import ServingError, SettingsError

if TYPE_CHECKING:
    from serving.service import Calls
    from serving.versions import ModelVersions

# Calls that need no prediction (status, metadata) must not wait for those that do, nor be refused
# while a burst of predictions is being turned away, each of which holds a thread for a moment.
_SPARE_THREADS = 16


@dataclass(frozen=True)
class ModelServer:
    """A server that answers.

    Attributes:
      address: HOST:PORT.
      target: HOST:PORT/MODEL, which `ahnet_tf.predictors.open_predictor` takes.
      versions: the model's versions.
      calls: the calls in progress.
    """

    address: str
    target: str
    versions: ModelVersions
    calls: Calls


@contextlib.contextmanager
def start_server(
    model_base_path: str | Path,
    *,
    model_name: str = "ahnet",
    host: str = "127.0.0.1",
    port: int = 0,
    running: int = 1,
    waiting: int = 8,
    poll_s: float = 1.0,
    grace_s: float = 30.0,
    max_message_bytes: int | None = None,
    max_request_voxels: int | None = None,
    report: Callable[[str], object] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Iterator[ModelServer]:
    """Serves a folder of numbered SavedModels in this process until the context ends.

    Args:
      model_base_path: folder of numbered SavedModel folders; watched for new ones.
      model_name: name that requests must give.
      host: address to bind to; the default can't be reached from other machines. There is no
        encryption and no login.
      port: 0 takes any free one.
      running: predictions at the same time; each uses all cores.
      waiting: predictions that wait; more are refused with RESOURCE_EXHAUSTED.
      poll_s: seconds between two looks for new versions.
      grace_s: seconds that requests in progress may take when the server stops.
      max_message_bytes: largest request and largest answer (default 256 MiB).
      max_request_voxels: most voxels in a request (default 512 * 512 * 64).
      report: called with one line when a version is replaced or can't be loaded.

    Raises:
      ModelError: no version in the folder, or none that can be loaded.
      ServingError: the port can't be bound.
    """
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    from serving import protocol
    from serving.service import Calls, Queue, make_handlers
    from serving.versions import ModelVersions

    max_message_bytes = max_message_bytes or protocol.MAX_MESSAGE_BYTES
    threads = running + waiting + _SPARE_THREADS
    pool = ThreadPoolExecutor(threads, thread_name_prefix="rpc")
    server = grpc.server(
        pool,
        # A call that finds no thread is refused rather than kept.
        maximum_concurrent_rpcs=threads,
        # Without the last one, two servers could share a port.
        options=[*protocol.message_options(max_message_bytes), ("grpc.so_reuseport", 0)],
    )
    shown_host = f"[{host}]" if ":" in host else host
    try:
        bound = server.add_insecure_port(f"{shown_host}:{port}")
    except RuntimeError:
        raise ServingError(
            f"{shown_host}:{port}",
            "a free port of this machine",
            "an address that can't be bound",
            "Another server may use it: choose another --port, or 0 for any free one.",
        ) from None
    versions = ModelVersions(model_base_path, model_name, poll_s=poll_s, report=report)
    try:
        calls = Calls()
        handlers = make_handlers(
            versions,
            Queue(running, waiting),
            calls,
            max_message_bytes=max_message_bytes,
            max_request_voxels=max_request_voxels or protocol.MAX_REQUEST_VOXELS,
        )
        server.add_generic_rpc_handlers(handlers)
        server.start()
        address = f"{shown_host}:{bound}"
        try:
            yield ModelServer(address, f"{address}/{model_name}", versions, calls)
        finally:
            calls.close(grace_s)
            server.stop(None).wait()
    finally:
        versions.stop()
        pool.shutdown(wait=False, cancel_futures=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m serving.server`."""
    parser = make_parser(
        "serving.server",
        "Serves exported models by TF Serving's gRPC protocol, for laptops, tests and CI; production "
        "is TF Serving on the same folder. New versions in the folder are noticed and replace the "
        "present one without a gap. Ctrl-C ends it after the requests in progress.",
        [
            "python -m serving.server --model-base-path models/ahnet",
            "python -m serving.server --model-base-path models/ahnet --model-name liver --port 9000",
        ],
    )
    parser.add_argument(
        "--model-base-path",
        required=True,
        metavar="DIR",
        help="folder of numbered SavedModel folders (python -m serving.export makes them)",
    )
    parser.add_argument("--model-name", default="ahnet", help="name in requests (%(default)s)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to bind to (%(default)s: this machine only); there is no encryption or login",
    )
    parser.add_argument(
        "--port", type=int, default=8500, help="port, 0 for any free one (%(default)s)"
    )
    parser.add_argument(
        "--running", type=int, default=1, help="predictions at the same time (%(default)s)"
    )
    parser.add_argument(
        "--waiting",
        type=int,
        default=8,
        help="predictions that may wait, more are refused (%(default)s)",
    )
    parser.add_argument(
        "--grace-s",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="time that requests in progress have when the server stops (%(default)s)",
    )
    return run_command(_run, parser.parse_args(argv))


def _run(arguments: argparse.Namespace) -> None:
    for name, value, least in (
        ("--running", arguments.running, 1),
        ("--waiting", arguments.waiting, 0),
        ("--grace-s", arguments.grace_s, 0),
    ):
        if value < least:
            raise SettingsError(name, f"at least {least}", value)
    if not 0 <= arguments.port <= 65535:
        raise SettingsError("--port", "a number from 0 to 65535", arguments.port)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with start_server(
        arguments.model_base_path,
        model_name=arguments.model_name,
        host=arguments.host,
        port=arguments.port,
        running=arguments.running,
        waiting=arguments.waiting,
        grace_s=arguments.grace_s,
    ) as server:
        version = server.versions.current_version
        print(f"{arguments.model_name} version {version} is served on {server.address}", flush=True)
        stop.wait()


if __name__ == "__main__":
    sys.exit(main())
