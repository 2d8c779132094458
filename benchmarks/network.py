"""AH-Net's speed and memory against MONAI's AHNet and its runtimes on the same machine, in turn.

python -m benchmarks.network [--repeats 9] [--threads 2] [--only forward-128] [--precision float32]

Each work is done by this project and by a group of rivals, one call after the other: MONAI in both memory
formats with glibc's default allocator; with one told to keep large blocks (MONAI gains much from it), in a
forward pass also by torch.compile; and MONAI's network in OpenVINO and ONNX Runtime. This project's forward
pass is TensorFlow's, and that of its OpenVINO back end where that is installed. Every process does one work
only, so that its peak memory is that work's. The memory of a training step is what that peak is above the
prepared process; this project's step is also measured with `recompute`. bfloat16 is measured where the
processor has it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.in_turn import (
    ALLOCATORS,
    OURS,
    Candidate,
    figures_of,
    in_turn,
    open_workers,
    print_figures,
)
from benchmarks.peers import memory_mib, peers_python
from benchmarks.report import goal, read_report, write_report
from benchmarks.rivals import (
    PRECISIONS,
    Networks,
    against_rivals,
    has_rival,
    package_versions,
    precisions,
)
from preprocessing.cli import make_parser, run_command

WORKS = {
    "forward-128": ("forward", (1, 32, 128, 128, 1)),
    "forward-512": ("forward", (1, 32, 512, 512, 1)),
    "training-128": ("training", (1, 32, 128, 128, 1)),
}
# How many times as fast as MONAI's best memory format, by allocator.
GOALS = {
    ("forward-128", "float32"): {"default": 2.5, "tuned": 1.8},
    ("forward-128", "bfloat16"): {"default": 2.7, "tuned": 2.0},
    ("forward-512", "float32"): {"default": 3.5, "tuned": 1.9},
    ("forward-512", "bfloat16"): {"default": 4.5, "tuned": 2.7},
    ("training-128", "float32"): {"default": 1.7},
    ("training-128", "bfloat16"): {"default": 1.5},
}
OURS_RECOMPUTE = f"{OURS}, recompute"
# Of a training step that computes its blocks again, as shares of the step without.
RECOMPUTE_GOALS = {"memory": 0.6, "time": 1.35}
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
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="a precision to measure again; the other keeps figures of this processor",
    )
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    peers_python()
    able = precisions(arguments.precision)
    measured = [(work, precision) for work in arguments.only or WORKS for precision in able]
    kept = read_report("network")
    figures = [
        each for each in kept["figures"] if (each["work"], each["precision"]) not in measured
    ]
    goals = [
        each for each in kept["goals"] if tuple(each["name"].split(":")[0].split()) not in measured
    ]
    for work in arguments.only or WORKS:
        with tempfile.TemporaryDirectory() as folder:
            networks = Networks(folder, WORKS[work][1][1:4], arguments.threads)
            for precision in able:
                found = _measure(networks, work, precision, arguments)
                figures += found
                goals += goals_of(found)
    settings = {"repeats": arguments.repeats, "threads": arguments.threads}
    write_report("network", figures, goals, package_versions(), settings)


def _measure(networks: Networks, work: str, precision: str, arguments) -> list[dict]:
    """Returns the figures of a work, measured in turn with one group of rivals after the other."""
    kind, shape = WORKS[work]
    batch, z, y, x, channels = shape
    own = {"do": "prepare", "work": kind, "shape": shape, "precision": precision}
    ours = [
        Candidate(OURS, "benchmarks.tensorflow_worker", (own | {"threads": arguments.threads},))
    ]
    monai = {"do": "prepare", "work": kind, "shape": (batch, channels, y, x, z)}
    groups = {name: networks.monai(precision, name, monai, compiled=False) for name in ALLOCATORS}
    if kind == "forward":
        ours += networks.ours_openvino(precision, {"do": "prepare", "shape": shape})
        groups["tuned"] += networks.monai(precision, "tuned", monai, compiled=True)
        groups["runtimes"] = networks.runtimes(
            precision, "benchmarks.onnx_worker", {"do": "prepare"}
        )
    else:
        request = own | {"threads": arguments.threads, "recompute": True}
        ours.append(Candidate(OURS_RECOMPUTE, "benchmarks.tensorflow_worker", (request,)))
    figures = []
    for group, rivals in groups.items():
        with ExitStack() as stack:
            workers = open_workers(stack, [*ours, *rivals])
            before = {each: memory_mib(worker.process.pid) for each, worker in workers.items()}
            times = in_turn(workers, arguments.repeats, WARM_UP)
        found = figures_of(times)
        if kind == "training":
            for candidate, figure in zip(times, found, strict=True):
                figure["step_memory_mib"] = figure["peak_memory_mib"] - before[candidate]
        labels = {"work": work, "precision": precision, "in_turn_with": group}
        print_figures([labels | each for each in found], tuple(labels))
        figures += [labels | each for each in found]
    return figures


def goals_of(figures: list[dict]) -> list[dict]:
    """Returns the goals of the figures of one work in one precision."""
    work, precision = figures[0]["work"], figures[0]["precision"]
    groups: dict[str, list[dict]] = {}
    for figure in figures:
        groups.setdefault(figure["in_turn_with"], []).append(figure)
    goals = []
    for allocator in ALLOCATORS:
        monai = [
            figure
            for figure in groups[allocator]
            if figure["network"].startswith("MONAI") and "compile" not in figure["network"]
        ]
        (ours,) = (figure for figure in groups[allocator] if figure["network"] == OURS)
        ratio = min(each["seconds_median"] for each in monai) / ours["seconds_median"]
        limit = GOALS[work, precision].get(allocator)
        if limit:
            name = f"{work} {precision}: times as fast as MONAI, {allocator} allocator"
            goals.append(goal(name, ">=", limit, ratio))
        if work == "forward-512" and allocator == "default":
            name = f"{work} {precision}: peak memory in MiB, not above MONAI's"
            least = min(figure["peak_memory_mib"] for figure in monai)
            goals.append(goal(name, "<=", least, ours["peak_memory_mib"]))
    if WORKS[work][0] == "training":
        goals += _memory_goals(f"{work} {precision}", groups["default"])
    else:
        ratios, memory, least = zip(
            *map(against_rivals, filter(has_rival, groups.values())), strict=True
        )
        name = f"{work} {precision}: times as fast as the fastest rival"
        goals.append(goal(name, ">=", 1, min(ratios)))
        name = f"{work} {precision}: peak memory in MiB, at most the least rival's"
        goals.append(goal(name, "<=", min(least), max(memory)))
    return goals


def _memory_goals(work: str, figures: list[dict]) -> list[dict]:
    named = {figure["network"]: figure for figure in figures}
    plain, recompute = named[OURS], named[OURS_RECOMPUTE]
    least = min(
        figure["step_memory_mib"] for name, figure in named.items() if name.startswith("MONAI")
    )
    share = recompute["step_memory_mib"] / plain["step_memory_mib"]
    slower = recompute["seconds_median"] / plain["seconds_median"]
    return [
        goal(
            f"{work}: memory of a step beyond the process in MiB, at most MONAI's",
            "<=",
            least,
            plain["step_memory_mib"],
        ),
        goal(
            f"{work}: memory of a step with recompute, share of that without",
            "<=",
            RECOMPUTE_GOALS["memory"],
            share,
        ),
        goal(
            f"{work}: time of a step with recompute, of that without",
            "<=",
            RECOMPUTE_GOALS["time"],
            slower,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
