"""Time and memory of `make demo`, and the scores of its model on unseen synthetic cases.

python -m benchmarks.demo [--unseen 6] [--runs 1]

The demonstration runs as a user would start it, in an empty folder; then its pushed model segments
more cases than the one that the demonstration shows, so that the score does not depend on a single one.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.commands import call, read_json
from benchmarks.report import goal, print_table, versions, write_report
from pipeline.demo import UNSEEN_CASE
from preprocessing.cli import make_parser, run_command

MEASURES = {"liver": "liver_dice_per_case", "tumour": "lesion_dice_per_case"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser("benchmarks.demo", __doc__.splitlines()[0], ["python -m benchmarks.demo"])
    parser.add_argument("--runs", type=int, default=1, help="demonstrations (default: 1)")
    parser.add_argument("--unseen", type=int, default=6, help="cases to score (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first run (default: 0)")
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    figures = []
    for seed in range(arguments.seed, arguments.seed + arguments.runs):
        with tempfile.TemporaryDirectory() as folder:
            figures.append({"seed": seed} | _measure(Path(folder), seed, arguments.unseen))
    columns = ("seed", "seconds", "peak_memory_mib", "dice_liver", "dice_liver_mean")
    print_table(columns, [[figure[column] for column in columns] for figure in figures])
    slowest = max(figure["seconds"] for figure in figures)
    goals = [
        goal("seconds from an empty folder to the picture", "<=", 300, slowest),
        goal(
            "liver Dice of the demonstration's unseen case",
            ">=",
            0.95,
            min(figure["dice_liver"] for figure in figures),
        ),
        goal(
            f"liver Dice, mean of {arguments.unseen} unseen cases",
            ">=",
            0.92,
            statistics.mean(figure["dice_liver_mean"] for figure in figures),
        ),
        goal(
            f"tumour Dice, mean of {arguments.unseen} unseen cases",
            ">=",
            0.45,
            statistics.mean(figure["dice_tumour_mean"] for figure in figures),
        ),
    ]
    settings = {"runs": arguments.runs, "unseen": arguments.unseen, "seed": arguments.seed}
    write_report("demo", figures, goals, versions("tensorflow", "tfx", "apache-beam"), settings)


def _measure(folder: Path, seed: int, unseen: int) -> dict[str, Any]:
    output, cases = folder / "demo", folder / "cases"
    call("pipeline.demo", "--output", output, "--seed", seed)
    summary = read_json(output / "summary.json")
    cases_like_the_demos = ("--cases", unseen, "--first", UNSEEN_CASE, "--seed", seed)
    call("preprocessing.phantom", "--output", cases, *cases_like_the_demos)
    model, predicted = output / "pipeline" / "serving_model", folder / "predicted"
    call("ahnet_tf.predict", "--model", model, cases, predicted)
    scores = folder / "scores"
    call("ahnet_tf.evaluate", "--input", predicted, "--reference", cases, "--output", scores)
    found = read_json(scores / "scores.json")["summary"]
    means = {f"dice_{name}_mean": found[key]["value"] for name, key in MEASURES.items()}
    kept = ("dice_liver", "dice_tumour", "peak_memory_mib", "seconds_pipeline")
    return {
        "seconds": summary["seconds_total"],
        "seconds_by_stage": summary["seconds"],
        **{name: summary[name] for name in kept},
        **means,
    }


if __name__ == "__main__":
    sys.exit(main())
