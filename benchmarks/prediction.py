"""Speed and memory of predicting a volume, compared with MONAI's sliding window on this machine.

python -m benchmarks.prediction [--repeats 7] [--threads 2] [--slices 64] [--precision float32]

All predict the same volume of noise in turn, with an AH-Net of the same size, window, overlap and Gaussian
blending: this project in TensorFlow, and by its OpenVINO back end where that is installed; MONAI's
`sliding_window_inference` with its AHNet in torch (with glibc's default allocator, with one that keeps large
blocks, and with torch.compile besides, each in the memory format that is faster for one window), in OpenVINO
and in ONNX Runtime. Memory is the peak of the whole prediction, and what of it is above the peak of
predicting one window, which is that of the network itself. bfloat16 is measured where the processor has it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.in_turn import (
    OURS,
    Candidate,
    figures_of,
    in_turn,
    leave_out,
    open_workers,
    print_figures,
)
from benchmarks.peers import Worker, WorkerError, peers_python
from benchmarks.report import goal, read_report, write_report
from benchmarks.rivals import PRECISIONS, Networks, against_rivals, package_versions, precisions
from preprocessing.cli import make_parser, run_command

OVERLAP = 0.25
CLASSES = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser(
        "benchmarks.prediction", __doc__.splitlines()[0], ["python -m benchmarks.prediction"]
    )
    parser.add_argument(
        "--repeats", type=int, default=7, help="timed predictions of each (default: 7)"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of each (default: 2)")
    parser.add_argument("--slices", type=int, default=64, help="slices of the volume (default: 64)")
    parser.add_argument("--rows", type=int, default=512, help="rows and columns (default: 512)")
    parser.add_argument(
        "--window",
        type=int,
        nargs=3,
        default=(32, 256, 256),
        metavar=("Z", "Y", "X"),
        help="MONAI takes multiples of 32 (default: 32 256 256)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="a precision to measure again, the other keeps figures of this processor",
    )
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    peers_python()
    shape = (arguments.slices, arguments.rows, arguments.rows)
    able = precisions(arguments.precision)
    kept = read_report("prediction")
    figures = [each for each in kept["figures"] if each["precision"] not in able]
    others = tuple(set(PRECISIONS) - set(able))
    goals = [each for each in kept["goals"] if each["name"].startswith(others)]
    with tempfile.TemporaryDirectory() as folder:
        volume = Path(folder) / "volume.npy"
        np.save(volume, np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16))
        networks = Networks(folder, arguments.window, arguments.threads)
        for precision in able:
            found = _measure(networks, str(volume), precision, arguments)
            figures += found
            goals += goals_of(found)
    settings = {
        "repeats": arguments.repeats,
        "threads": arguments.threads,
        "shape_zyx": shape,
        "window_zyx": arguments.window,
        "overlap": OVERLAP,
    }
    write_report("prediction", figures, goals, package_versions(), settings)


def _measure(networks: Networks, volume: str, precision: str, arguments) -> list[dict]:
    """Returns the figures of this project and of all rivals in one precision."""
    common = {"volume": volume, "window": tuple(arguments.window), "overlap": OVERLAP}
    request = {"do": "prepare_prediction", **common}
    ours = request | {"classes": CLASSES}
    tensorflow = ours | {"threads": arguments.threads, "precision": precision}
    runtime = {"do": "prepare_runtime_prediction", **common}
    choices = [
        [Candidate(OURS, "benchmarks.tensorflow_worker", (tensorflow,))],
        networks.ours_openvino(precision, ours),
        networks.monai(precision, "default", request, compiled=False),
        networks.monai(precision, "tuned", request, compiled=False),
        networks.monai(precision, "tuned", request, compiled=True),
        *([each] for each in networks.runtimes(precision, "benchmarks.monai_worker", runtime)),
    ]
    with ExitStack() as stack:
        workers: dict[Candidate, Worker] = {}
        one_window = {}
        for candidates in choices:
            found = _fastest(open_workers(stack, candidates))
            if found:
                candidate, worker, one_window[candidate.name, candidate.allocator] = found
                workers[candidate] = worker
        figures = figures_of(in_turn(workers, arguments.repeats, 0))
    for figure in figures:
        seconds, memory = one_window[figure["network"], figure["allocator"]]
        figure |= {
            "precision": precision,
            "seconds_of_one_window": seconds,
            "peak_memory_of_one_window_mib": memory,
            "memory_above_the_networks_mib": figure["peak_memory_mib"] - memory,
        }
    print_figures(figures, ("precision",))
    return figures


def _fastest(
    workers: dict[Candidate, Worker],
) -> tuple[Candidate, Worker, tuple[float, float]] | None:
    """Returns what predicts a window fastest, with its seconds and memory; closes the others."""
    found = []
    for candidate, worker in workers.items():
        try:
            found.append((candidate, worker, tuple(worker.ask(do="once_window"))))
        except WorkerError as error:
            leave_out(candidate.name, error)
    found.sort(key=lambda each: each[2])
    for _, slower, _ in found[1:]:
        slower.close()
    return found[0] if found else None


def goals_of(figures: list[dict]) -> list[dict]:
    """Returns the goals of the figures in one precision: against each of MONAI's, and the best rival."""
    precision = figures[0]["precision"]
    (ours,) = (figure for figure in figures if figure["network"] == OURS)
    goals = []
    for peer in figures:
        if not peer["network"].startswith("MONAI channels") or "compile" in peer["network"]:
            continue
        name = f"{precision}, MONAI, {peer['allocator']} allocator"
        times = peer["seconds_median"] / ours["seconds_median"]
        goals.append(goal(f"{name}: times as fast", ">=", 2, times))
        share = ours["memory_above_the_networks_mib"] / peer["memory_above_the_networks_mib"]
        goals.append(goal(f"{name}: share of its memory above the network's", "<=", 0.5, share))
    ratio, memory, least = against_rivals(figures)
    goals.append(goal(f"{precision}: times as fast as the fastest rival", ">=", 1.5, ratio))
    name = f"{precision}: peak memory in MiB, at most the least rival's"
    goals.append(goal(name, "<=", least, memory))
    return goals


if __name__ == "__main__":
    sys.exit(main())
