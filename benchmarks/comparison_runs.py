"""One run of the paper's comparison: a training on one core, its curve and its scores.

python -m benchmarks.comparison_runs --output comparison --task ct --variant mcgcn --seed 0

OUTPUT holds the plan and the records that `benchmarks.paper_comparison` writes, which starts its runs
by this command.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison_plan import (
    TASKS,
    VARIANTS,
    Plan,
    Run,
    model_config,
    read_plan,
    records_task,
    rows,
    source_of,
    training_config,
)
from benchmarks.comparison_records import records_folder
from preprocessing.cli import make_parser, run_command
from preprocessing.errors import SettingsError
from preprocessing.files import write_json

PLAN = "plan.json"
# The column of history.csv that a task's curve shows.
CURVE_COLUMNS = {"ct": "dice_tumour", "dbt": "froc_mean_sensitivity"}


def result_path(output: Path, run: Run) -> Path:
    """Returns the result file of a run."""
    return output / "results" / f"{run.name}.json"


def run_folder(output: Path, run: Run) -> Path:
    """Returns the folder of a run's training."""
    return output / "runs" / run.name


def make_run(output: Path, plan: Plan, run: Run) -> dict[str, Any]:
    """Trains and scores one network; an interrupted run starts over.

    Returns:
      Its result, which lies at `result_path` from then on. CPU seconds are those of this process since
      its start, wall seconds those of this function.
    """
    began = time.perf_counter()
    from ahnet_tf.data.records import find_records
    from ahnet_tf.training.logs import read_history
    from ahnet_tf.training.trainer import train_network
    from benchmarks.comparison_scores import score_network

    flat, source = VARIANTS[run.variant].flat, source_of(run)
    folder, records = run_folder(output, run), records_folder(output, run.task, flat)
    shutil.rmtree(folder, ignore_errors=True)
    trained = train_network(
        model_config(run.variant, run.task),
        training_config(run.variant, run.task, plan, run.seed),
        records_task(run.task, plan, flat),
        find_records(records / "train"),
        find_records(records / "eval"),
        folder,
        initial=run_folder(output, source) / "last" if source else None,
        progress=False,
    )
    shutil.rmtree(folder / "checkpoints")
    scores = score_network(folder / "last", plan, run.task)
    result = {
        "task": run.task,
        "variant": run.variant,
        "seed": run.seed,
        "parameters": trained.parameters,
        "steps": trained.steps,
        "loss": trained.loss,
        "curve": curve_of(read_history(folder / "history.csv"), CURVE_COLUMNS[run.task]),
        "scores": scores,
        "wall_seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time(), 1),
    }
    write_json(result_path(output, run), result)
    return result


def curve_of(history: Sequence[Mapping[str, float]], column: str) -> list[list[float]]:
    """Returns [step, score] of each evaluation in a history."""
    rows = ((int(row["step"]), row[column]) for row in history)
    return [[step, score] for step, score in rows if not math.isnan(score)]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser(
        "benchmarks.comparison_runs",
        "Trains and scores one network of the paper's comparison on one core.",
        [
            "python -m benchmarks.comparison_runs --output comparison --task ct --variant mcgcn --seed 0"
        ],
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="the comparison's folder")
    parser.add_argument("--task", required=True, choices=TASKS, help="what is learned")
    parser.add_argument("--variant", required=True, choices=VARIANTS, help="the network")
    parser.add_argument("--seed", required=True, type=int, help="of weights, patches, augmentation")
    parser.add_argument("--attached", action="store_true", help="end as soon as stdin is closed")
    return run_command(_run, parser.parse_args(argv))


def _run(arguments: argparse.Namespace) -> None:
    if arguments.attached:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    output = Path(arguments.output)
    plan, run = read_plan(output / PLAN), Run(arguments.task, arguments.variant, arguments.seed)
    if run.variant not in rows(plan, run.task):
        expected = f"one of {', '.join(rows(plan, run.task))} for the task {run.task}"
        raise SettingsError("--variant", expected, run.variant)
    import tensorflow as tf

    # One core's share of the machine, also where it has a GPU, so that costs are those of the plan.
    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    make_run(output, plan, run)


def _end_with_stdin() -> None:
    """Ends this process at once when the one at the other end of stdin is gone, killed or not."""
    while os.read(0, 1024):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
