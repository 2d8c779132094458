"""Prints what a model server serves: versions, task, classes and window."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from preprocessing.cli import make_parser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m serving.status`; returns its exit code."""
    parser = make_parser(
        "serving.status",
        "Prints what a model server (TF Serving or python -m serving.server) serves: the state of each "
        "version, the task and its classes, the window and the network.",
        ["python -m serving.status --target localhost:8500/ahnet"],
    )
    parser.add_argument(
        "--target", required=True, metavar="HOST:PORT[/MODEL]", help="address of the server"
    )
    return run_command(_run, parser.parse_args(argv))


def _run(arguments: argparse.Namespace) -> None:
    from serving.auth import access_from_environment
    from serving.client.sync import AHNetClient

    with AHNetClient(arguments.target, timeout_s=30, **access_from_environment()) as client:
        for status in client.status():
            state = status.State.Name(status.state)
            print(f"version {status.version}: {state} {status.status.error_message}".rstrip())
        settings = client.describe()
    print(f"task {settings.task.name}: {', '.join(settings.task.class_names)}")
    print(f"window (z, y, x): {', '.join(map(str, settings.window_shape_zyx))}")
    print(f"network: {settings.model.architecture}, {settings.model.activation}")


if __name__ == "__main__":
    sys.exit(main())
