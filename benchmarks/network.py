"""AH-Net's speed and memory against MONAI's AHNet on the same machine, in turn.

python -m benchmarks.network [--repeats 9] [--threads 2] [--only forward-128]

Each work is done by this project and by MONAI in both memory formats, one call after the other, first
with glibc's default allocator, then with one told to keep large blocks (MONAI gains much from it).
Every process does one work only, so that its peak memory is that work's.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.peers import TUNED_ALLOCATOR, Worker, peers_python
from benchmarks.report import goal, print_table, read_report, versions, write_report
from preprocessing.cli import make_parser, run_command

WORKS = {
    "forward-128": ("forward", (1, 32, 128, 128, 1)),
    "forward-512": ("forward", (1, 32, 512, 512, 1)),
    "training-128": ("training", (1, 32, 128, 128, 1)),
}
PRECISIONS = ("float32", "bfloat16")
ALLOCATORS = {"default": {}, "tuned": TUNED_ALLOCATOR}
FORMATS = {"channels-first": False, "channels-last": True}
# How many times as fast as MONAI's best memory format, by allocator.
GOALS = {
    ("forward-128", "float32"): {"default": 2.5, "tuned": 1.8},
    ("forward-128", "bfloat16"): {"default": 2.7, "tuned": 2.0},
    ("forward-512", "float32"): {"default": 3.5, "tuned": 1.9},
    ("forward-512", "bfloat16"): {"default": 4.5, "tuned": 2.7},
    ("training-128", "float32"): {"default": 1.7},
    ("training-128", "bfloat16"): {"default": 1.5},
}
WARM_UP = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser(
        "benchmarks.network", __doc__.splitlines()[0], ["python -m benchmarks.network"]
    )
    parser.add_argument("--repeats", type=int, default=9, help="timed calls of each (default: 9)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each (default: 2)")
    parser.add_argument(
        "--only",
        choices=WORKS,
        action="append",
        help="a work to measure again, the others keep figures of this processor; may be repeated",
    )
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    python = peers_python()
    figures, goals = [], []
    if arguments.only:
        kept = read_report("network")
        figures = [figure for figure in kept["figures"] if figure["work"] not in arguments.only]
        goals = [one for one in kept["goals"] if one["name"].split()[0] not in arguments.only]
    for work in arguments.only or WORKS:
        for precision in PRECISIONS:
            for allocator in ALLOCATORS:
                found = _measure(python, work, precision, allocator, arguments)
                figures += found
                goals += _goals(work, precision, allocator, found)
    packages = versions("tensorflow", "keras", "numpy") | {"torch": "2.13.0", "monai": "1.6.1"}
    settings = {"repeats": arguments.repeats, "threads": arguments.threads}
    write_report("network", figures, goals, packages, settings)


def _measure(python, work: str, precision: str, allocator: str, arguments) -> list[dict]:
    kind, shape = WORKS[work]
    batch, z, y, x, channels = shape
    with ExitStack() as stack:
        ours = stack.enter_context(
            Worker(sys.executable, "benchmarks.tensorflow_worker", {"TF_CPP_MIN_LOG_LEVEL": "3"})
        )
        ours.ask(
            do="prepare", work=kind, shape=shape, precision=precision, threads=arguments.threads
        )
        workers = {"ours": ours}
        for name, channels_last in FORMATS.items():
            worker = Worker(python, "benchmarks.monai_worker", ALLOCATORS[allocator])
            workers[f"MONAI {name}"] = stack.enter_context(worker)
            worker.ask(
                do="load",
                threads=arguments.threads,
                blocks=(3, 4, 6, 3),
                channels=channels,
                classes=3,
                pvp_levels=4,
                upsampling="trilinear",
            )
            worker.ask(
                do="prepare",
                work=kind,
                shape=(batch, channels, y, x, z),
                precision=precision,
                channels_last=channels_last,
            )
        seconds = {name: [] for name in workers}
        memory = {}
        for turn in range(WARM_UP + arguments.repeats):
            for name, worker in workers.items():
                taken, memory[name] = worker.ask(do="once")
                if turn >= WARM_UP:
                    seconds[name].append(taken)
    figures = [
        {
            "work": work,
            "precision": precision,
            "allocator": allocator if name != "ours" else "default",
            "in_turn_with_allocator": allocator,
            "network": name,
            "seconds_median": statistics.median(taken),
            "seconds_least": min(taken),
            "peak_memory_mib": memory[name],
        }
        for name, taken in seconds.items()
    ]
    print_table(
        ("work", "precision", "allocator", "network", "median s", "least s", "peak MiB"),
        [
            (
                work,
                precision,
                allocator,
                figure["network"],
                f"{figure['seconds_median']:.3f}",
                f"{figure['seconds_least']:.3f}",
                f"{figure['peak_memory_mib']:.0f}",
            )
            for figure in figures
        ],
    )
    sys.stdout.flush()
    return figures


def _goals(work: str, precision: str, allocator: str, figures: list[dict]) -> list[dict]:
    ours, *peers = figures
    best = min(peers, key=lambda figure: figure["seconds_median"])
    ratio = best["seconds_median"] / ours["seconds_median"]
    goals = []
    limit = GOALS[work, precision].get(allocator)
    if limit:
        name = f"{work} {precision}: times as fast as MONAI, {allocator} allocator"
        goals.append(goal(name, ">=", limit, ratio))
    if work == "forward-512" and allocator == "default":
        name = f"{work} {precision}: peak memory in MiB, not above MONAI's"
        least = min(figure["peak_memory_mib"] for figure in peers)
        goals.append(goal(name, "<=", least, ours["peak_memory_mib"]))
    return goals


if __name__ == "__main__":
    sys.exit(main())
