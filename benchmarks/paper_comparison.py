"""AH-Net against the paper's baselines on phantoms; writes docs/comparison.md.

python -m benchmarks.paper_comparison --output comparison [--task ct|dbt] [--quick] [--workers N]

With one task the page and the report keep the other one's results, if they are of the same plan.


OUTPUT/plan.json       the plan of the comparison
OUTPUT/records/        cases and records of each task
OUTPUT/runs/           a folder per training
OUTPUT/logs/           a log file per run
OUTPUT/results/        a JSON file per finished run; the same command resumes after them
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.comparison_jobs import Job, run_jobs
from benchmarks.comparison_page import CORES, minutes_on_cores, page
from benchmarks.comparison_plan import QUICK, TASKS, Plan, Run, everything, runs_of, source_of
from benchmarks.comparison_plots import plot_curves, plot_scores
from benchmarks.comparison_records import make_records
from benchmarks.comparison_runs import PLAN, result_path
from benchmarks.comparison_statistics import summarise, summarise_curves
from benchmarks.report import RESULTS, goal, machine, versions, write_report
from pipeline.demo import only_run_in
from preprocessing.cli import make_parser, run_command
from preprocessing.errors import SettingsError, Stopped
from preprocessing.files import atomic_write, write_json

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
COMMAND = "python -m benchmarks.paper_comparison --output comparison"
MOST_MINUTES = 120


def compare(output: Path, plan: Plan, workers: int) -> list[dict[str, Any]]:
    """Runs what is not finished of a plan in `output`; returns all results.

    Args:
      workers: number of runs at a time, each in a process of its own on about one core.

    Raises:
      PipelineError: another comparison is running in `output`, or a run failed.
      SettingsError: `output` holds a comparison with another plan.
    """
    from tqdm import tqdm

    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    runs = runs_of(plan)
    with only_run_in(output):
        claim(output, plan)
        for task in plan.tasks:
            make_records(output, plan, task)
        jobs = [_job(output, run) for run in runs if not result_path(output, run).is_file()]
        finished = len(runs) - len(jobs)
        with tqdm(desc="comparison", total=len(runs), initial=finished, unit="run") as bar:
            run_jobs(
                jobs,
                workers,
                folder=ROOT,
                environment={"OMP_NUM_THREADS": "1"},
                on_end=lambda job: bar.update(),
            )
    return [json.loads(result_path(output, run).read_text(encoding="utf-8")) for run in runs]


def claim(output: Path, plan: Plan) -> None:
    """Writes the full plan to `output`, or checks that it equals the plan stored there."""
    path, settings = output / PLAN, everything(plan)
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise SettingsError(
            path, "the plan of this comparison", "another one", "Choose another --output."
        )
    write_json(path, settings)


def _job(output: Path, run: Run) -> Job:
    source = source_of(run)
    command = [sys.executable, "-m", "benchmarks.comparison_runs", "--attached"]
    command += ["--output", str(output), "--task", run.task]
    command += ["--variant", run.variant, "--seed", str(run.seed)]
    return Job(
        run.name,
        tuple(command),
        output / "logs" / f"{run.name}.log",
        needs=(source.name,) if source else (),
    )


def write_page(
    results: Sequence[dict[str, Any]], plan: Plan, folder: Path, command: str = COMMAND
) -> Path:
    """Writes `folder/comparison.md` and its plots in `folder/images`; returns the page."""
    plot_scores(folder / "images" / "comparison.png", summarise(results, plan))
    plot_curves(folder / "images" / "comparison_curves.png", summarise_curves(results, plan))
    text = page(results, plan, machine(), "images", command)
    with atomic_write(folder / "comparison.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / "comparison.md"


@contextlib.contextmanager
def stopped_by_signals(output: Path) -> Iterator[None]:
    """Raises Stopped on SIGTERM and SIGINT, so that a comparison ends its runs first."""

    def stop(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        raise Stopped(
            number,
            f"{output}: stopped by {name}; the same command resumes after the finished runs",
        )

    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser(
        "benchmarks.paper_comparison",
        "Trains 2D and 3D U-Net, MC-GCN and AH-Net (from scratch, transferred, without PVP, with other\n"
        "losses) on synthetic CT and tomosynthesis until their curves flatten, five seeds each, and\n"
        f"writes {DOCS.name}/comparison.md. An interrupted comparison resumes with the same command.",
        [COMMAND, f"{COMMAND}_quick --quick"],
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for all runs")
    parser.add_argument(
        "--task", choices=list(TASKS), help="one half of the comparison (default: both)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a small version of every step, in minutes; writes its page to OUTPUT",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="runs at a time, each on about one core (default: the number of cores, %(default)s)",
    )
    return run_command(_run, parser.parse_args(argv))


def _run(arguments: argparse.Namespace) -> None:
    output, plan = Path(arguments.output), QUICK if arguments.quick else Plan()
    if arguments.task:
        plan = replace(plan, tasks=(arguments.task,))
    if arguments.workers < 1:
        raise SettingsError("--workers", "at least 1", arguments.workers)
    with stopped_by_signals(output):
        results = compare(output, plan, arguments.workers)
    if arguments.quick:
        print(f"written: {write_page(results, plan, output, f'{COMMAND}_quick --quick')}")
        return
    results, plan = with_other_tasks(results, plan, RESULTS / "paper_comparison.json")
    write_report(
        "paper_comparison",
        results,
        [goal(f"minutes on {CORES} cores", "<=", MOST_MINUTES, minutes_on_cores(results))],
        versions("tensorflow", "keras", "numpy", "scipy"),
        everything(plan),
    )
    print(f"written: {write_page(results, plan, DOCS)}")


def with_other_tasks(
    results: Sequence[dict[str, Any]], plan: Plan, report: Path
) -> tuple[list[dict[str, Any]], Plan]:
    """Returns results, and those of the tasks of an earlier report that a plan leaves out.

    A task is kept if everything that decides its results is as it was: phantom, definition, networks,
    and the rest of the plan. The returned plan has the tasks of all results.
    """
    earlier = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    settings = earlier.get("settings", {})
    kept = [
        task
        for task in TASKS
        if task not in plan.tasks
        and task in settings.get("plan", {}).get("tasks", ())
        and _of_task(settings, task)
        == _of_task(json.loads(json.dumps(everything(replace(plan, tasks=(task,))))), task)
    ]
    tasks = tuple(task for task in TASKS if task in (*plan.tasks, *kept))
    others = [each for each in earlier.get("figures", ()) if each["task"] in kept]
    everyone = sorted([*results, *others], key=lambda each: tasks.index(each["task"]))
    return everyone, replace(plan, tasks=tasks)


def _of_task(settings: dict[str, Any], task: str) -> tuple[Any, ...]:
    own_plan = {name: value for name, value in settings["plan"].items() if name != "tasks"}
    own = (settings.get(name, {}).get(task) for name in ("phantoms", "definitions", "norms"))
    return (own_plan, *own, settings.get("networks"))


if __name__ == "__main__":
    sys.exit(main())
