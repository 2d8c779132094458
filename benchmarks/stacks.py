"""The two stacks against each other: losses of one training, speed and memory of the network.

python -m benchmarks.stacks [--repeats 9] [--threads 2]

Each work is done by TensorFlow 2.15 and by the current TensorFlow in processes of their own, one call
after the other. Needs both environments: `make env STACK=2.15` and `make env STACK=current`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.peers import ROOT, Worker
from benchmarks.report import goal, print_table, write_report
from preprocessing.cli import make_parser, run_command
from preprocessing.errors import SettingsError

STACKS = {"2.15": (2, 15), "current": (2, 21)}
WORKS = ("forward", "training")
PRECISIONS = ("float32", "bfloat16")
SHAPE = (1, 32, 128, 128, 1)
WARM_UP = 2
LOSSES = {"steps": 50, "shape": (2, 16, 64, 64, 1), "learning_rate": 1e-4}
NETWORKS = {
    "small": {"width": 0.25, "blocks": (1, 1, 1, 1), "pvp_levels": 2},
    # Its sums depend on the order of threads, so two trainings on one stack differ as well.
    "whole": {},
}
# Rounding grows from step to step.
FIRST_STEPS = 10
PROBE = (
    "import json, platform\n"
    "from importlib.metadata import version\n"
    "names = ('tensorflow', 'keras', 'numpy')\n"
    "print(json.dumps({'python': platform.python_version()} | {name: version(name) for name in names}))"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser(
        "benchmarks.stacks", __doc__.splitlines()[0], ["python -m benchmarks.stacks"]
    )
    parser.add_argument("--repeats", type=int, default=9, help="timed calls of each (default: 9)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each (default: 2)")
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    found = {stack: _environment(stack) for stack in STACKS}
    pythons = {stack: python for stack, (python, _) in found.items()}
    figures, goals = [], []
    for network, settings in NETWORKS.items():
        figures.append({"network": network} | _losses(pythons, settings))
    for figure in figures:
        name = f"{figure['network']} network: losses of the first {FIRST_STEPS} steps, relative difference"
        goals.append(goal(name, "<=", 1e-5, figure["between_stacks"]))
    speeds = []
    for work in WORKS:
        for precision in PRECISIONS:
            found_speeds = _measure(pythons, work, precision, arguments)
            speeds += found_speeds
            old, current = (figure["seconds_median"] for figure in found_speeds)
            name = f"{work} {precision}: time of the current stack, of that of 2.15"
            goals.append(goal(name, "<=", 1.05, current / old))
    print_table(
        ("work", "precision", "stack", "median s", "least s", "peak MiB"),
        [
            (
                *(figure[key] for key in ("work", "precision", "stack")),
                f"{figure['seconds_median']:.3f}",
                f"{figure['seconds_least']:.3f}",
                f"{figure['peak_memory_mib']:.0f}",
            )
            for figure in speeds
        ],
    )
    packages = {
        f"{package} ({stack})": version
        for stack, (_, versions) in found.items()
        for package, version in versions.items()
    }
    settings = {"repeats": arguments.repeats, "threads": arguments.threads, "losses": LOSSES}
    write_report("stacks", figures + speeds, goals, packages, settings)


def _environment(stack: str) -> tuple[Path, dict[str, str]]:
    """Returns the Python of a stack's environment, and its versions."""
    for folder in (f".venv-{stack}", ".venv"):
        python = ROOT / folder / "bin" / "python"
        if python.exists():
            probe = subprocess.run(
                [python, "-c", PROBE], capture_output=True, text=True, check=True
            )
            versions = json.loads(probe.stdout)
            if versions["tensorflow"].startswith("{}.{}.".format(*STACKS[stack])):
                return python, versions
    raise SettingsError(
        "benchmark", f"an environment of TensorFlow {stack}", "none", f"make env STACK={stack}"
    )


def _losses(pythons: dict[str, Path], settings: dict) -> dict:
    """Returns the losses of one training on both stacks and again on the first, and how they differ."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "initial.npz")
        for name, stack in (("2.15", "2.15"), ("2.15 again", "2.15"), ("current", "current")):
            with _worker(pythons[stack]) as worker:
                found[name] = worker.ask(do="losses", settings=settings, weights=weights, **LOSSES)
    first, again, current = (np.array(losses) for losses in found.values())
    return {
        "losses": found,
        "between_trainings": float(np.abs(again / first - 1)[:FIRST_STEPS].max()),
        "between_stacks": float(np.abs(current / first - 1)[:FIRST_STEPS].max()),
    }


def _worker(python: Path) -> Worker:
    return Worker(python, "benchmarks.tensorflow_worker", {"TF_CPP_MIN_LOG_LEVEL": "3"})


def _measure(pythons: dict[str, Path], work: str, precision: str, arguments) -> list[dict]:
    workers = {stack: _worker(python) for stack, python in pythons.items()}
    try:
        for worker in workers.values():
            worker.ask(
                do="prepare",
                work=work,
                shape=SHAPE,
                precision=precision,
                threads=arguments.threads,
            )
        seconds: dict[str, list[float]] = {stack: [] for stack in workers}
        memory = {}
        for turn in range(WARM_UP + arguments.repeats):
            for stack, worker in workers.items():
                taken, memory[stack] = worker.ask(do="once")
                if turn >= WARM_UP:
                    seconds[stack].append(taken)
    finally:
        for worker in workers.values():
            worker.close()
    return [
        {
            "work": work,
            "precision": precision,
            "stack": stack,
            "seconds_median": statistics.median(taken),
            "seconds_least": min(taken),
            "peak_memory_mib": memory[stack],
        }
        for stack, taken in seconds.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
