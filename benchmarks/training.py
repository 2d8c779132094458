"""Training speed by batch size, replicas and optimizer, and the share of time waiting for data.

python -m benchmarks.training [--repeats 12]

Steps with a batch in memory are timed in turn; the share of time spent waiting is measured in the
training loop, with the preset's augmentation. Networks: the small AH-Net (preset ct_liver_small,
16 x 128 x 128) with 1, 2 and 4 patches a step, and with a batch of 2 on one replica with both cores and
on two that share them; the full AH-Net (preset ct_liver) with each optimizer.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs

from ahnet_tf.presets import run_config
from benchmarks.peers import Worker
from benchmarks.reading import write_records
from benchmarks.report import goal, print_table, versions, write_report
from preprocessing.cli import make_parser, run_command
from preprocessing.settings import to_dict
from preprocessing.tasks import PRESETS, Task

SHAPE = (16, 128, 128)
BATCHES = (1, 2, 4)
LOOP_STEPS = 24
OPTIMIZERS = {
    "Adam": (),
    "AdamW, averaged weights": ("weight_decay=0.01", "ema_momentum=0.999"),
}
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser(
        "benchmarks.training", __doc__.splitlines()[0], ["python -m benchmarks.training"]
    )
    parser.add_argument(
        "--repeats", type=int, default=12, help="timed steps of each kind (default: 12)"
    )
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    task = attrs.evolve(PRESETS["ct_liver_small"], patch_shape_zyx=SHAPE)
    batches = _batches(task, arguments.repeats)
    replicas = _replicas(task, arguments.repeats)
    optimizers = _optimizers(task, max(1, arguments.repeats // 3))
    waiting = max(row["waiting_share"] for row in batches)
    per_patch = [row["step_seconds"] / row["batch_size"] for row in batches]
    one, two = (row["step_seconds"] for row in replicas)
    goals = [
        goal("share of the training loop spent waiting for data", "<=", 0.05, waiting),
        goal(
            "seconds a patch in a batch of 4, to those alone", "<=", 1, per_patch[-1] / per_patch[0]
        ),
        goal("a step by two replicas on two cores, to one by one replica", "<=", 1.25, two / one),
    ]
    write_report(
        "training",
        {"batches": batches, "replicas": replicas, "optimizers": optimizers},
        goals,
        versions("tensorflow", "keras", "numpy"),
        {"repeats": arguments.repeats, "loop_steps": LOOP_STEPS, "patch_shape_zyx": SHAPE},
    )


def _stage(task: Task, preset: str, *settings: str) -> dict:
    """Returns the settings of a preset's 3D stage as plain JSON types."""
    stage = run_config(task, preset=preset, settings=settings).stages["3d"]
    return {"model": to_dict(stage.model), "training": to_dict(stage.training)}


def _timed(workers: dict[str, Worker], repeats: int) -> dict[str, float]:
    """Returns the median seconds of prepared steps, alternating between workers."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(repeats):
        for name, worker in workers.items():
            seconds[name].append(worker.ask(do="take", name=name))
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def _batches(task: Task, repeats: int) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder, Worker(*_worker()) as worker:
        write_records(Path(folder) / "train", task, [24, 24])
        write_records(Path(folder) / "eval", task, [1])
        worker.ask(do="use", replicas=1)
        for size in BATCHES:
            stage = _stage(task, "ct_liver_small", f"batch_size={size}")
            worker.ask(do="prepare", name=str(size), shape_zyx=SHAPE, **stage)
        alone = _timed({str(size): worker for size in BATCHES}, repeats)
        rows = []
        for size in BATCHES:
            every = [f"{name}={LOOP_STEPS}" for name in ("steps", "evaluate_every")]
            every += [f"checkpoint_every={LOOP_STEPS}", f"log_every={LOOP_STEPS // 4}"]
            found, memory_mib = worker.ask(
                do="loop",
                folder=f"{folder}/train",
                eval_folder=f"{folder}/eval",
                task=task.to_dict(),
                output=f"{folder}/{size}",
                **_stage(task, "ct_liver_small", f"batch_size={size}", *every),
            )
            speed = statistics.median(row["patches_per_second"] for row in found)
            rows.append(
                {
                    "batch_size": size,
                    "step_seconds": alone[str(size)],
                    "steps_per_second": 1 / alone[str(size)],
                    "loop_steps_per_second": speed / size,
                    "waiting_share": statistics.mean(row["waiting_share"] for row in found),
                    "peak_memory_mib": memory_mib,
                }
            )
    print_table(
        ("batch", "steps/s", "patches/s", "steps/s in the loop", "waiting"),
        [
            (
                row["batch_size"],
                f"{row['steps_per_second']:.2f}",
                f"{row['steps_per_second'] * row['batch_size']:.2f}",
                f"{row['loop_steps_per_second']:.2f}",
                f"{row['waiting_share']:.2%}",
            )
            for row in rows
        ],
    )
    return rows


def _replicas(task: Task, repeats: int) -> list[dict]:
    with Worker(*_worker()) as one, Worker(*_worker()) as two:
        workers = {"1": one, "2": two}
        for name, worker in workers.items():
            worker.ask(do="use", replicas=int(name))
            stage = _stage(task, "ct_liver_small", "batch_size=2", f"replicas={name}")
            worker.ask(do="prepare", name=name, shape_zyx=SHAPE, **stage)
        seconds = _timed(workers, repeats)
    rows = [{"replicas": int(name), "step_seconds": taken} for name, taken in seconds.items()]
    print()
    print_table(
        ("replicas", "steps/s with a batch of 2"),
        [(row["replicas"], f"{1 / row['step_seconds']:.2f}") for row in rows],
    )
    return rows


def _optimizers(task: Task, repeats: int) -> list[dict]:
    with Worker(*_worker()) as worker:
        worker.ask(do="use", replicas=1)
        for name, settings in OPTIMIZERS.items():
            stage = _stage(task, "ct_liver", "batch_size=1", *settings)
            worker.ask(do="prepare", name=name, shape_zyx=SHAPE, **stage)
        seconds = _timed(dict.fromkeys(OPTIMIZERS, worker), repeats)
    rows = [{"optimizer": name, "step_seconds": taken} for name, taken in seconds.items()]
    print()
    print_table(
        ("full AH-Net, a patch a step", "seconds a step"),
        [(row["optimizer"], f"{row['step_seconds']:.3f}") for row in rows],
    )
    return rows


def _worker() -> tuple[str, str, dict[str, str]]:
    return sys.executable, "benchmarks.training_worker", QUIET


if __name__ == "__main__":
    sys.exit(main())
