"""Random data sets of every layout with random names, headers and damage: no file is lost without a reason.

python -m benchmarks.fuzz_inputs [--examples 5000] [--seed 0] [--workers 2]

Every image or label map on disk is afterwards exactly one of: used, passed over with a reason, or refused
with a reason; for conversion (with labels) and for prediction (without). Anything else is a failure, a
traceback included, and hypothesis prints the smallest data set that shows it.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings

from benchmarks.random_data_sets import DATA_SETS, LAYOUTS, DataSet, write
from benchmarks.report import goal, versions, write_report
from preprocessing.cli import make_parser, run_command
from preprocessing.datasets.case import Case, printable
from preprocessing.datasets.discovery import discover
from preprocessing.datasets.pairing import DICOM_SUFFIXES
from preprocessing.datasets.reading import check_case_image, read_case_image
from preprocessing.dicom.header import is_dicom
from preprocessing.errors import AHNetError, InputError
from preprocessing.tasks import Task
from preprocessing.verify import verify_case
from preprocessing.volumes.nifti import has_nifti_suffix

CT = Task("fuzz", ("background", "liver", "tumour"), (-200.0, 250.0), patch_shape_zyx=(4, 8, 8))
DBT = Task(
    "fuzz",
    ("background", "lesion"),
    (0.0, 1023.0),
    image_dtype="uint16",
    outside_value=0,
    patch_shape_zyx=(4, 8, 8),
    target="heat_map",
)
TASKS = {"bcs_dbt": DBT}


class FileLostError(Exception):
    """A file is neither used, passed over nor refused, or more than one of these."""


def outcomes(root: Path, task: Task) -> Counter[str]:
    """Returns how many files were "used", "passed over" and "refused"; each must be one of them.

    Raises FileLostError otherwise. Cases are read as `preprocessing.verify` does, and without labels as prediction does.
    """
    counts: Counter[str] = Counter()
    for need_labels in (True, False):
        try:
            found = discover([root], need_labels=need_labels)
        except InputError:
            # No case at all.
            counts["refused"] += len(_files(root))
            continue
        ids = [case.case_id.lower() for case in found.cases]
        if len(set(ids)) < len(ids):
            raise FileLostError(f"two cases with one id among {ids}")
        refused = {case.case_id: _problem(case, task, need_labels) for case in found.cases}
        for path in _files(root):
            cases = [case for case in found.cases if _belongs(path, case, need_labels)]
            lines = [line for line in found.passed_over if _names(line, path, root)]
            if len(cases) > 1 and need_labels:
                raise FileLostError(f"{path.relative_to(root)} is in {len(cases)} cases")
            if bool(cases) == bool(lines):
                said = "used and passed over" if cases else "in no case, and no line names it"
                raise FileLostError(f"{path.relative_to(root)} is {said}")
            outcome = "passed over"
            if cases:
                outcome = "refused" if any(refused[case.case_id] for case in cases) else "used"
            counts[outcome] += 1
    return counts


def _problem(case: Case, task: Task, need_labels: bool) -> str:
    if need_labels:
        findings = verify_case(case, task, ())["findings"]
        return "; ".join(each["text"] for each in findings if each["severity"] == "error")
    try:
        misfit = check_case_image(case, read_case_image(case), task).misfit
    except (AHNetError, OSError, MemoryError) as error:
        return str(error) or "memory"
    return str(misfit) if misfit else ""


def _belongs(path: Path, case: Case, need_labels: bool) -> bool:
    places = [case.image_path, case.label_path if need_labels else None]
    return any(place is not None and place in (path, *path.parents) for place in places)


def _names(line: str, path: Path, root: Path) -> bool:
    """Returns whether a line is about a file or a folder that it is in, redacted or not."""
    places = [path, *(folder for folder in path.parents if root in (folder, *folder.parents))]
    return any(re.match(f"{_pattern(place)}: ", line) for place in places)


def _pattern(place: Path) -> str:
    """Returns an expression for a path, each part of which may be its number among its neighbours."""
    parts = []
    for each in (place, *place.parents):
        neighbours = sorted(os.listdir(each.parent))
        number = neighbours.index(each.name) + 1 if each.name else 0
        parts.append(f"(?:{re.escape(printable(each.name))}|#{number}|#)")
    return "/".join(reversed(parts[:-1])).join(("/", ""))


def _files(root: Path) -> list[Path]:
    """Returns the files that may be an image or a label map."""
    found = []
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if path.is_file() and not hidden and path.name != "DICOMDIR":
            named = has_nifti_suffix(path) or path.name.lower().endswith(DICOM_SUFFIXES)
            if named or is_dicom(path):
                found.append(path)
    return found


def check(data: DataSet) -> Counter[str]:
    """Writes a data set and returns its `outcomes`."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), data)
        return outcomes(Path(folder), TASKS.get(data.layout, CT))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser(
        "benchmarks.fuzz_inputs", __doc__.splitlines()[0], ["python -m benchmarks.fuzz_inputs"]
    )
    parser.add_argument("--examples", type=int, default=5000, help="data sets (default: 5000)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default: 0)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    return run_command(_run, parser.parse_args(argv))


def explore(number: int, examples: int) -> dict[str, Counter[str]]:
    """Checks random data sets from a seed; returns the outcomes of each layout."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    by_layout: dict[str, Counter[str]] = {name: Counter() for name in sorted(LAYOUTS)}

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(DATA_SETS)
    def run(data: DataSet) -> None:
        by_layout[data.layout].update(check(data) + Counter({"data sets": 1}))

    run()
    return by_layout


def _run(arguments) -> None:
    workers = arguments.workers
    seeds = [arguments.seed + worker for worker in range(workers)]
    shares = [len(range(worker, arguments.examples, workers)) for worker in range(workers)]
    with ProcessPoolExecutor(workers) as pool:
        found = list(pool.map(explore, seeds, shares))
    by_layout = {name: sum((own[name] for own in found), Counter()) for name in sorted(LAYOUTS)}
    figures = [{"layout": name, **counts} for name, counts in by_layout.items()]
    total = sum(by_layout.values(), Counter())
    print(", ".join(f"{name} {count}" for name, count in total.items()))
    goals = [goal("data sets without a failure", ">=", arguments.examples, total["data sets"])]
    packages = versions("hypothesis", "nibabel", "pydicom", "numpy")
    write_report(
        "fuzz_inputs", figures, goals, packages, {"seed": arguments.seed, "workers": workers}
    )


if __name__ == "__main__":
    sys.exit(main())
