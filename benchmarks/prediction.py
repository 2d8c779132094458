"""Speed and memory of predicting a volume, compared with MONAI's sliding window on this machine.

python -m benchmarks.prediction [--repeats 2] [--threads 2] [--slices 96]

Both predict the same volume of noise in turn, with an AH-Net of the same size, window, overlap and Gaussian
blending, in float32. MONAI uses `sliding_window_inference` and AHNet, with glibc's default allocator and with
one that keeps large blocks, each in the memory format that is faster for one window. Memory is the peak of the
whole prediction above the peak of predicting one window, which is that of the network itself.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.peers import TUNED_ALLOCATOR, Worker, peers_python
from benchmarks.report import goal, print_table, versions, write_report
from preprocessing.cli import make_parser, run_command

OVERLAP = 0.25
CLASSES = 3
FORMATS = {"channels-first": False, "channels-last": True}
ALLOCATORS = {"MONAI": {}, "MONAI, tuned allocator": TUNED_ALLOCATOR}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser(
        "benchmarks.prediction", __doc__.splitlines()[0], ["python -m benchmarks.prediction"]
    )
    parser.add_argument(
        "--repeats", type=int, default=2, help="timed predictions of each (default: 2)"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of each (default: 2)")
    parser.add_argument("--slices", type=int, default=96, help="slices of the volume (default: 96)")
    parser.add_argument("--rows", type=int, default=512, help="rows and columns (default: 512)")
    parser.add_argument(
        "--window",
        type=int,
        nargs=3,
        default=(32, 256, 256),
        metavar=("Z", "Y", "X"),
        help="MONAI takes multiples of 32 (default: 32 256 256)",
    )
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    python = peers_python()
    shape = (arguments.slices, arguments.rows, arguments.rows)
    request = {"window": tuple(arguments.window), "overlap": OVERLAP}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        volume = Path(folder) / "volume.npy"
        np.save(volume, np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16))
        request["volume"] = str(volume)
        workers = {"ours": _ours(stack, arguments.threads, request)}
        own = {"ours": workers["ours"].ask(do="once_window")}
        for name, allocator in ALLOCATORS.items():
            workers[name], own[name] = _monai(stack, python, arguments.threads, request, allocator)
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        peak = {}
        for _ in range(arguments.repeats):
            for name, worker in workers.items():
                taken, peak[name] = worker.ask(do="once")
                seconds[name].append(taken)
    figures = [
        {
            "network": name,
            "seconds_median": statistics.median(taken),
            "seconds_least": min(taken),
            "seconds_of_one_window": own[name][0],
            "peak_memory_mib": peak[name],
            "peak_memory_of_one_window_mib": own[name][1],
            "memory_above_the_networks_mib": peak[name] - own[name][1],
        }
        for name, taken in seconds.items()
    ]
    print_table(
        (
            *("network", "median s", "least s", "one window's s"),
            *("peak MiB", "one window's MiB", "above MiB"),
        ),
        [
            (figure["network"], *(f"{value:.1f}" for value in list(figure.values())[1:]))
            for figure in figures
        ],
    )
    settings = {
        "repeats": arguments.repeats,
        "threads": arguments.threads,
        "shape_zyx": shape,
        "window_zyx": arguments.window,
        "overlap": OVERLAP,
    }
    packages = versions("tensorflow", "keras", "numpy") | {"torch": "2.13.0", "monai": "1.6.1"}
    write_report("prediction", figures, goals_of(figures), packages, settings)


def _ours(stack: ExitStack, threads: int, request: dict) -> Worker:
    worker = stack.enter_context(
        Worker(sys.executable, "benchmarks.tensorflow_worker", {"TF_CPP_MIN_LOG_LEVEL": "3"})
    )
    worker.ask(do="prepare_prediction", threads=threads, classes=CLASSES, **request)
    return worker


def _monai(
    stack: ExitStack, python: Path, threads: int, request: dict, allocator: dict[str, str]
) -> tuple[Worker, tuple[float, float]]:
    """Returns the worker of the faster memory format, and seconds and peak memory of one window."""
    found = []
    for channels_last in FORMATS.values():
        worker = stack.enter_context(Worker(python, "benchmarks.monai_worker", allocator))
        worker.ask(
            do="load",
            threads=threads,
            blocks=(3, 4, 6, 3),
            channels=1,
            classes=CLASSES,
            pvp_levels=4,
            upsampling="trilinear",
        )
        worker.ask(do="prepare_prediction", channels_last=channels_last, **request)
        found.append((tuple(worker.ask(do="once_window")), worker))
    (one_window, fastest), (_, slower) = sorted(found, key=lambda each: each[0])
    slower.close()
    return fastest, one_window


def goals_of(figures: list[dict]) -> list[dict]:
    """Returns the goals of this project, which has the first figures, against each of MONAI's."""
    ours, *peers = figures
    goals = []
    for peer in peers:
        times = peer["seconds_median"] / ours["seconds_median"]
        goals.append(goal(f"times as fast as {peer['network']}", ">=", 2, times))
        share = ours["memory_above_the_networks_mib"] / peer["memory_above_the_networks_mib"]
        name = f"memory above the network's own, as a share of that of {peer['network']}"
        goals.append(goal(name, "<=", 0.5, share))
    return goals


if __name__ == "__main__":
    sys.exit(main())
