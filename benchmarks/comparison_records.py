"""Cases and records of the paper's comparison."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.comparison_plan import PHANTOMS, Plan, records_task
from preprocessing.convert import convert
from preprocessing.files import write_json
from preprocessing.phantom.dataset import write_cases

DATA_SEED = 11
# First case number of each group.
FIRST = {"volumes": 0, "further": 1000, "validation": 3000, "unseen": 5000}
# What the 3D and the 2D networks train on.
TRAIN_GROUPS = {"3d": ("volumes",), "2d": ("volumes", "further")}


def case_numbers(group: str, plan: Plan) -> range:
    """Returns the numbers of a group's cases; the group is a field of the plan."""
    return range(FIRST[group], FIRST[group] + getattr(plan, group))


def records_folder(output: Path, task_name: str, flat: bool) -> Path:
    """Returns the folder of a task's records in the folder of a comparison."""
    return output / "records" / task_name / ("2d" if flat else "3d")


def make_records(output: Path, plan: Plan, task_name: str) -> None:
    """Makes a task's cases and converts them into records for 3D and 2D networks, unless they exist.

    The eval split of both holds the validation cases as exact tilings.
    """
    if (records_folder(output, task_name, flat=True) / "task.json").is_file():
        return
    folder = output / "records" / task_name
    shutil.rmtree(folder, ignore_errors=True)
    ids = {}
    for group in (*TRAIN_GROUPS["2d"], "validation"):
        numbers = case_numbers(group, plan)
        entries = write_cases(
            folder / "cases" / group,
            len(numbers),
            DATA_SEED,
            first=numbers.start,
            settings=PHANTOMS[task_name],
            progress=False,
        )
        ids[group] = [entry["case_id"] for entry in entries]
    for name, groups in TRAIN_GROUPS.items():
        splits = folder / f"splits_{name}.json"
        train = [case_id for group in groups for case_id in ids[group]]
        write_json(splits, {"train": train, "eval": ids["validation"]})
        convert(
            [str(folder / "cases" / group) for group in (*groups, "validation")],
            str(folder / name),
            records_task(task_name, plan, flat=name == "2d"),
            splits_file=str(splits),
            progress=False,
        )
