"""An embedded model server with TF Serving's own protocols, for laptops, tests and CI.

Production is TF Serving: it loads the same folder and answers the same requests.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from preprocessing.cli import make_parser, run_command
from preprocessing.errors import SettingsError

if TYPE_CHECKING:
    from serving.embedded.policy import ModelConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m serving.server`."""
    parser = make_parser(
        "serving.server",
        "Serves exported models by TF Serving's gRPC and REST protocols, for laptops, tests and CI; "
        "production is TF Serving on the same folder. New versions in the folder are noticed and "
        "replace the present one without a gap. Ctrl-C ends it after the requests in progress.",
        [
            "python -m serving.server --model-base-path models/ahnet",
            "python -m serving.server --model-base-path models/ahnet --model-name liver --port 9000",
            "python -m serving.server --model-config-file models.config --rest-port 8501",
            "python -m serving.server --model-base-path models/ahnet --host 0.0.0.0 "
            "--tls-certificate server.pem --tls-key server.key --token-file token",
        ],
    )
    _add_model_options(parser)
    _add_access_options(parser)
    _add_load_options(parser)
    return run_command(_run, parser.parse_args(argv))


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--model-base-path",
        metavar="DIR",
        help="folder of numbered SavedModel folders (python -m serving.export makes them)",
    )
    source.add_argument(
        "--model-config-file",
        metavar="FILE",
        help="several models, version policies and labels in TF Serving's own format",
    )
    parser.add_argument("--model-name", default="ahnet", help="name in requests (%(default)s)")
    parser.add_argument(
        "--reload-root",
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders below which HandleReloadConfigRequest may name models, besides those given",
    )


def _add_access_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to bind to (%(default)s: this machine only)"
    )
    parser.add_argument(
        "--port", type=int, default=8500, help="gRPC's port, 0 for any free one (%(default)s)"
    )
    parser.add_argument(
        "--rest-port",
        type=int,
        metavar="PORT",
        help="port of REST and /monitoring/prometheus/metrics, 0 for any free one (default: none)",
    )
    parser.add_argument("--tls-certificate", metavar="PEM", help="speak TLS with this certificate")
    parser.add_argument("--tls-key", metavar="PEM", help="the certificate's private key")
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help="ask every call for the token in this file, as 'authorization: Bearer TOKEN'",
    )


def _add_load_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--running", type=int, default=1, help="predictions at the same time (%(default)s)"
    )
    parser.add_argument(
        "--waiting",
        type=int,
        default=16,
        help="predictions that may wait, more are refused (%(default)s)",
    )
    parser.add_argument(
        "--batch-windows",
        type=int,
        default=4,
        metavar="N",
        help="windows that waiting requests are merged to; 1 merges none (%(default)s)",
    )
    parser.add_argument(
        "--batch-wait-ms",
        type=float,
        default=0.0,
        metavar="MS",
        help="time that a request waits for others to join it (%(default)s)",
    )
    parser.add_argument(
        "--grace-s",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="time that requests in progress have when the server stops (%(default)s)",
    )


def _run(arguments: argparse.Namespace) -> None:
    _check(arguments)
    # TensorFlow is imported from here on: --help and wrong options answer at once.
    from serving.auth import ServerAccess, read_token
    from serving.embedded.batching import BatchSettings
    from serving.embedded.running import start_models

    token = None if arguments.token_file is None else read_token(arguments.token_file)
    certificate, key = arguments.tls_certificate, arguments.tls_key
    access = ServerAccess(
        token,
        None if certificate is None else Path(certificate),
        None if key is None else Path(key),
    )
    batches = BatchSettings(
        running=arguments.running,
        waiting=arguments.waiting,
        most_windows=arguments.batch_windows,
        wait_s=arguments.batch_wait_ms / 1000,
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with start_models(
        _configs(arguments),
        reload_roots=[Path(root) for root in arguments.reload_root],
        host=arguments.host,
        port=arguments.port,
        rest_port=arguments.rest_port,
        access=access,
        batches=batches,
        grace_s=arguments.grace_s,
    ) as server:
        for name in server.models.names:
            version = server.versions_of(name).current_version
            print(f"{name} version {version} is served on {server.address}", flush=True)
        if server.rest_address is not None:
            print(f"REST and metrics on {server.rest_address}", flush=True)
        stop.wait()


def _configs(arguments: argparse.Namespace) -> list[ModelConfig]:
    from serving.embedded.policy import ModelConfig, read_config_file

    if arguments.model_config_file is not None:
        return read_config_file(arguments.model_config_file)
    return [ModelConfig(arguments.model_name, Path(arguments.model_base_path))]


def _check(arguments: argparse.Namespace) -> None:
    for name, value, least in (
        ("--running", arguments.running, 1),
        ("--waiting", arguments.waiting, 0),
        ("--batch-windows", arguments.batch_windows, 1),
        ("--batch-wait-ms", arguments.batch_wait_ms, 0),
        ("--grace-s", arguments.grace_s, 0),
    ):
        if not least <= value < float("inf"):
            raise SettingsError(name, f"at least {least}", value)
    for name, port in (("--port", arguments.port), ("--rest-port", arguments.rest_port)):
        if port is not None and not 0 <= port <= 65535:
            raise SettingsError(name, "a number from 0 to 65535", port)


if __name__ == "__main__":
    sys.exit(main())
