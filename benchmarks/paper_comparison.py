"""AH-Net against the paper's baselines on phantoms; writes docs/comparison.md.

python -m benchmarks.paper_comparison --output comparison [--quick]

OUTPUT/plan.json       the plan of the comparison
OUTPUT/records/        cases and records of each task
OUTPUT/runs/           a folder per training
OUTPUT/results/        a JSON file per finished run; the same command resumes after them
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison_plan import QUICK, Plan, everything
from benchmarks.report import goal, machine, versions, write_report
from pipeline.demo import only_run_in
from preprocessing.cli import make_parser, run_command
from preprocessing.errors import SettingsError
from preprocessing.files import atomic_write, write_json

DOCS = Path(__file__).resolve().parents[1] / "docs"
COMMAND = "python -m benchmarks.paper_comparison --output comparison"
MOST_MINUTES = 90


def compare(output: Path, plan: Plan) -> list[dict[str, Any]]:
    """Runs what is not finished of a plan in `output`; returns all results.

    Raises:
      PipelineError: another comparison is running in `output`.
      SettingsError: `output` holds a comparison with another plan.
    """
    from tqdm import tqdm

    from benchmarks.comparison_runs import make_records, make_run, result_path, run_names

    output.mkdir(parents=True, exist_ok=True)
    runs = run_names(plan)
    with only_run_in(output):
        claim(output, plan)
        for task in plan.tasks:
            make_records(plan, task, output / "records" / task)
        with tqdm(runs, "comparison", unit="run") as bar:
            for run in bar:
                bar.set_postfix_str(" ".join(map(str, run)))
                if not result_path(output, *run).is_file():
                    make_run(output, plan, *run)
    return [json.loads(result_path(output, *run).read_text(encoding="utf-8")) for run in runs]


def claim(output: Path, plan: Plan) -> None:
    """Writes the full plan to `output`, or checks that it equals the plan stored there."""
    path, settings = output / "plan.json", everything(plan)
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != settings:
        raise SettingsError(
            path, "the plan of this comparison", "another one", "Choose another --output."
        )
    write_json(path, settings)


def write_page(
    results: Sequence[dict[str, Any]], plan: Plan, folder: Path, command: str = COMMAND
) -> Path:
    """Writes `folder/comparison.md` and its plot in `folder/images`; returns the page."""
    from benchmarks.comparison_page import page, plot_png, summarise

    plot_png(folder / "images" / "comparison.png", summarise(results, plan))
    text = page(results, plan, machine(), "images/comparison.png", command)
    with atomic_write(folder / "comparison.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / "comparison.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser(
        "benchmarks.paper_comparison",
        "Trains 2D and 3D U-Net, MC-GCN and AH-Net (from scratch, transferred, without PVP, with "
        "cross-entropy) on synthetic CT and tomosynthesis with equal budgets of voxels, three seeds each, "
        f"and writes {DOCS.name}/comparison.md. An interrupted comparison resumes with the same command.",
        [COMMAND, f"{COMMAND.replace('comparison --', 'comparison --quick --')}_quick"],
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for all runs")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a small version of every step, in minutes; writes its page to OUTPUT",
    )
    return run_command(_run, parser.parse_args(argv))


def _run(arguments: argparse.Namespace) -> None:
    output, plan = Path(arguments.output), QUICK if arguments.quick else Plan()
    results = compare(output, plan)
    if arguments.quick:
        print(f"written: {write_page(results, plan, output, f'{COMMAND}_quick --quick')}")
        return
    minutes = sum(r["cpu_seconds"] for r in results) / 60 / (os.cpu_count() or 1)
    write_report(
        "paper_comparison",
        results,
        [goal("minutes of CPU time a core", "<=", MOST_MINUTES, minutes)],
        versions("tensorflow", "keras", "numpy"),
        dataclasses.asdict(plan),
    )
    print(f"written: {write_page(results, plan, DOCS)}")


if __name__ == "__main__":
    sys.exit(main())
