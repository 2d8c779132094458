"""An embedded model server with TF Serving's gRPC protocol, for laptops, tests and CI.

In production, TF Serving serves the same folder to the same clients.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence

from preprocessing.cli import make_parser, run_command
from preprocessing.errors import SettingsError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m serving.server`; returns its exit code."""
    parser = make_parser(
        "serving.server",
        "Serves the newest version of an exported model with TF Serving's gRPC protocol, for laptops, "
        "tests and CI; use TF Serving on the same folder in production. A new version in the folder "
        "replaces the current one without losing a request. Ctrl-C stops the server once the requests "
        "in progress are answered.",
        [
            "python -m serving.server --model-base-path models/ahnet",
            "python -m serving.server --model-base-path models/ahnet --model-name liver --port 9000",
            "python -m serving.server --model-base-path models/ahnet --host 0.0.0.0 "
            "--tls-certificate server.pem --tls-key server.key",
        ],
    )
    add = parser.add_argument
    models = "folder of numbered SavedModel folders, written by python -m serving.export"
    add("--model-base-path", required=True, metavar="DIR", help=models)
    add("--model-name", default="ahnet", help="name in requests (default: ahnet)")
    backend = "what computes windows, on CPUs (default: tensorflow)"
    add("--backend", choices=("tensorflow", "openvino"), default="tensorflow", help=backend)
    host = "address to bind to (default: %(default)s, which other machines can't reach)"
    add("--host", default="127.0.0.1", help=host)
    add("--port", type=int, default=8500, help="gRPC port, 0 for any (default: 8500)")
    metrics = "port of Prometheus metrics on 127.0.0.1, 0 for any (default: no metrics)"
    add("--metrics-port", type=int, metavar="PORT", help=metrics)
    add("--tls-certificate", metavar="PEM", help="enable TLS with this certificate")
    add("--tls-key", metavar="PEM", help="private key of the certificate")
    add("--running", type=int, default=1, help="concurrent predictions (default: 1)")
    waiting = "predictions that may wait; more are refused (default: 16)"
    add("--waiting", type=int, default=16, help=waiting)
    windows = "merge waiting requests up to N windows; 1 merges none (default: 4)"
    add("--batch-windows", type=int, default=4, metavar="N", help=windows)
    grace = "time for the requests in progress when the server stops (default: 30)"
    add("--grace-s", type=float, default=30.0, metavar="SECONDS", help=grace)
    return run_command(_run, parser.parse_args(argv))


def _run(arguments: argparse.Namespace) -> None:
    _check(arguments)
    # TensorFlow takes seconds to import; --help and invalid options are answered without it.
    from serving.auth import server_credentials
    from serving.embedded.batching import BatchSettings
    from serving.embedded.core import start_server

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with start_server(
        arguments.model_base_path,
        model_name=arguments.model_name,
        host=arguments.host,
        port=arguments.port,
        metrics_port=arguments.metrics_port,
        credentials=server_credentials(arguments.tls_certificate, arguments.tls_key),
        batches=BatchSettings(arguments.running, arguments.waiting, arguments.batch_windows),
        backend=arguments.backend,
        grace_s=arguments.grace_s,
    ) as server:
        version = server.versions.current_version
        print(f"{arguments.model_name} version {version} is served on {server.address}", flush=True)
        if server.metrics_address is not None:
            print(f"metrics on {server.metrics_address}", flush=True)
        # A signal that another thread receives, or that comes just before, does not end a wait without
        # a limit.
        while not stop.wait(1.0):
            pass


def _check(arguments: argparse.Namespace) -> None:
    for name, value, least in (
        ("--running", arguments.running, 1),
        ("--waiting", arguments.waiting, 0),
        ("--batch-windows", arguments.batch_windows, 1),
        ("--grace-s", arguments.grace_s, 0),
    ):
        if not least <= value < float("inf"):
            raise SettingsError(name, f"at least {least}", value)
    for name, port in (("--port", arguments.port), ("--metrics-port", arguments.metrics_port)):
        if port is not None and not 0 <= port <= 65535:
            raise SettingsError(name, "a number from 0 to 65535", port)


if __name__ == "__main__":
    sys.exit(main())
