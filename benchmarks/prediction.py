"""Whole volumes predicted by this project and by MONAI's sliding windows, on the same machine, in turn.

python -m benchmarks.prediction [--repeats 3] [--threads 2] [--slices 96]

Both predict the same volume of noise with an AH-Net of the same size, window, overlap and Gaussian blending, in
float32: MONAI with `sliding_window_inference` and AHNet in its faster memory format. Memory is the peak of
the whole prediction above the peak of predicting one window, which is the network's own.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.peers import Worker, peers_python
from benchmarks.report import goal, print_table, versions, write_report
from preprocessing.command import make_parser, run_command

OVERLAP = 0.25
CLASSES = 3
FORMATS = {"MONAI channels-first": False, "MONAI channels-last": True}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser(
        "benchmarks.prediction", __doc__.splitlines()[0], ["python -m benchmarks.prediction"]
    )
    parser.add_argument("--repeats", type=int, default=3, help="timed volumes of each (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each (default: 2)")
    parser.add_argument(
        "--slices", type=int, default=96, help="of the volume, 256 x 256 each (default: 96)"
    )
    parser.add_argument("--rows", type=int, default=256, help="rows and columns (default: 256)")
    parser.add_argument(
        "--window",
        type=int,
        nargs=3,
        default=(32, 128, 128),
        metavar=("Z", "Y", "X"),
        help="MONAI takes multiples of 32 (default: 32 128 128)",
    )
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    python = peers_python()
    shape = (arguments.slices, arguments.rows, arguments.rows)
    window = tuple(arguments.window)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        volume = Path(folder) / "volume.npy"
        np.save(volume, np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16))
        workers = _workers(stack, python, arguments.threads, volume, window)
        own = {name: worker.ask(do="once_window")[1] for name, worker in workers.items()}
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
            "peak_memory_mib": peak[name],
            "peak_memory_of_one_window_mib": own[name],
            "memory_above_the_networks_mib": peak[name] - own[name],
        }
        for name, taken in seconds.items()
    ]
    print_table(
        ("network", "median s", "least s", "peak MiB", "one window's MiB", "above MiB"),
        [
            (figure["network"], *(f"{value:.1f}" for value in list(figure.values())[1:]))
            for figure in figures
        ],
    )
    settings = {
        "repeats": arguments.repeats,
        "threads": arguments.threads,
        "shape_zyx": shape,
        "window_zyx": window,
        "overlap": OVERLAP,
    }
    packages = versions("tensorflow", "keras", "numpy") | {"torch": "2.13.0", "monai": "1.6.1"}
    write_report("prediction", figures, _goals(figures), packages, settings)


def _workers(
    stack: ExitStack, python: Path, threads: int, volume: Path, window: tuple[int, int, int]
) -> dict[str, Worker]:
    """Returns waiting workers that have predicted one window, so that nothing is set up while timed."""
    ours = stack.enter_context(
        Worker(sys.executable, "benchmarks.tensorflow_worker", {"TF_CPP_MIN_LOG_LEVEL": "3"})
    )
    request = {"volume": str(volume), "window": window, "overlap": OVERLAP}
    ours.ask(do="prepare_prediction", threads=threads, classes=CLASSES, **request)
    workers = {"ours": ours}
    for name, channels_last in FORMATS.items():
        worker = stack.enter_context(Worker(python, "benchmarks.monai_worker"))
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
        workers[name] = worker
    return workers


def _goals(figures: list[dict]) -> list[dict]:
    ours, *peers = figures
    best = min(peers, key=lambda figure: figure["seconds_median"])
    least = min(figure["memory_above_the_networks_mib"] for figure in peers)
    return [
        goal("times as fast as MONAI", ">=", 2, best["seconds_median"] / ours["seconds_median"]),
        goal(
            "memory above the network's own, as a share of MONAI's",
            "<=",
            0.5,
            ours["memory_above_the_networks_mib"] / max(least, 1.0),
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
