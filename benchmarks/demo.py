"""Time and memory of `make demo` for CT and tomosynthesis, and the scores on unseen synthetic cases.

python -m benchmarks.demo [--task ct_liver|dbt_lesion] [--unseen 6] [--runs 1]

The demonstrations run as a user would start them, in an empty folder. CT's pushed model then segments
more cases than the one that the demonstration shows, so that the score does not depend on a single one;
that of tomosynthesis scores 12 volumes itself. With --task the report keeps the other one's figures.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.commands import call, read_json
from benchmarks.report import goal, print_table, read_report, versions, write_report
from pipeline.configs import pushed_models
from pipeline.demo import MODEL_NAME
from pipeline.demonstrations import DEMONSTRATIONS, SENSITIVITIES, UNSEEN_CASE
from preprocessing.cli import make_parser, run_command

CT, DBT = "ct_liver", "dbt_lesion"
MEASURES = {"liver": "liver_dice_per_case", "tumour": "lesion_dice_per_case"}
# Columns of the printed table, by task.
COLUMNS = {
    CT: ("seed", "seconds", "peak_memory_mib", "dice_liver", "dice_liver_mean"),
    DBT: ("seed", "seconds", "peak_memory_mib", *SENSITIVITIES),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser("benchmarks.demo", __doc__.splitlines()[0], ["python -m benchmarks.demo"])
    parser.add_argument("--task", choices=list(DEMONSTRATIONS), help="one alone (default: both)")
    parser.add_argument("--runs", type=int, default=1, help="runs of each (default: 1)")
    parser.add_argument("--unseen", type=int, default=6, help="CT cases to score (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first run (default: 0)")
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    tasks = [arguments.task] if arguments.task else list(DEMONSTRATIONS)
    # Figures without a task are CT's.
    earlier = [{"task": CT} | each for each in read_report("demo")["figures"]]
    figures = [each for each in earlier if each["task"] not in tasks]
    for task in tasks:
        own = []
        for seed in range(arguments.seed, arguments.seed + arguments.runs):
            with tempfile.TemporaryDirectory() as folder:
                own.append(_measure(task, Path(folder), seed, arguments.unseen))
        print_table(COLUMNS[task], [[each[name] for name in COLUMNS[task]] for each in own])
        figures += own
    figures.sort(key=lambda each: list(DEMONSTRATIONS).index(each["task"]))
    settings = {"runs": arguments.runs, "unseen": arguments.unseen, "seed": arguments.seed}
    packages = versions("tensorflow", "tfx", "apache-beam")
    write_report("demo", figures, goals_of(figures), packages, settings)


def goals_of(figures: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the goals of the demonstrations among the figures; CT's have their first names."""
    goals = []
    for task, prefix in ((CT, ""), (DBT, "tomosynthesis: ")):
        seconds = [each["seconds"] for each in figures if each["task"] == task]
        if seconds:
            name = f"{prefix}seconds from an empty folder to the picture"
            goals.append(goal(name, "<=", 300, max(seconds)))
    ct = [each for each in figures if each["task"] == CT]
    if ct:
        unseen = f"mean of {ct[0].get('unseen', 6)} unseen cases"
        shown = "liver Dice of the demonstration's unseen case"
        goals += [
            goal(shown, ">=", 0.95, min(each["dice_liver"] for each in ct)),
            goal(f"liver Dice, {unseen}", ">=", 0.92, _mean(ct, "dice_liver_mean")),
            goal(f"tumour Dice, {unseen}", ">=", 0.45, _mean(ct, "dice_tumour_mean")),
        ]
    return goals


def _mean(figures: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.mean(each[name] for each in figures)


def _measure(task: str, folder: Path, seed: int, unseen: int) -> dict[str, Any]:
    """Runs a demonstration in a new folder; returns what it took and how well its model does."""
    output = folder / "demo"
    call("pipeline.demo", "--task", DEMONSTRATIONS[task].task, "--output", output, "--seed", seed)
    summary = read_json(output / "summary.json")
    kept = ("peak_memory_mib", "seconds_pipeline")
    if task == DBT:
        kept += ("volumes", "masses", *SENSITIVITIES)
    else:
        kept += ("dice_liver", "dice_tumour")
    figures = {
        "task": task,
        "seed": seed,
        "seconds": summary["seconds_total"],
        "seconds_by_stage": summary["seconds"],
        **{name: summary[name] for name in kept},
    }
    return figures if task == DBT else figures | _ct_means(output, folder, seed, unseen)


def _ct_means(output: Path, folder: Path, seed: int, unseen: int) -> dict[str, Any]:
    """Returns the mean Dice of the demonstration's model over several unseen cases."""
    cases, predicted, scores = (folder / name for name in ("cases", "predicted", "scores"))
    cases_like_the_demos = ("--cases", unseen, "--first", UNSEEN_CASE, "--seed", seed)
    pushed = pushed_models(output / "pipeline", MODEL_NAME)
    call("preprocessing.phantom", "--output", cases, *cases_like_the_demos)
    options = DEMONSTRATIONS[CT].predicting
    call("ahnet_tf.predict", "--model", pushed, *options, cases, predicted)
    call("ahnet_tf.evaluate", "--input", predicted, "--reference", cases, "--output", scores)
    found = read_json(scores / "scores.json")["summary"]
    means = {f"dice_{name}_mean": found[key]["value"] for name, key in MEASURES.items()}
    return {"unseen": unseen} | means


if __name__ == "__main__":
    sys.exit(main())
