"""Checks a data set before any work: one look at every case, a table, and JSON if asked for."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessing.allowances import ALLOWANCES, parse_allowances
from preprocessing.cli import make_parser, run_command
from preprocessing.errors import AHNetError, SettingsError
from preprocessing.page.options import add_page_options, check_page_options
from preprocessing.tasks import Task, load_task

if TYPE_CHECKING:
    from preprocessing.datasets.case import Case
    from preprocessing.volumes.geometry import Volume

# Enough voxels along each axis of a slice for quantiles of the intensities.
_QUANTILE_STEP = 4


def verify(
    inputs: Sequence[str],
    task: Task,
    *,
    allow: Collection[str] = (),
    workers: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Checks all cases below some folders the way conversion does, and goes on after each bad one.

    Args:
      inputs: data-set folders, see `preprocessing.datasets.discovery`.
      task: classes and kind of intensities.
      allow: what is taken although it is irregular, see `preprocessing.allowances`.
      workers: processes that look at one case each.
      progress: show a bar.

    Returns:
      Plain data: `cases`, one entry a case with what was measured and its `findings`; `findings`
      about the data set as a whole; `errors` and `warnings`, their numbers; `task`.

    Raises:
      InputError: an input folder is missing or empty.
    """
    from tqdm import tqdm

    from preprocessing.datasets.discovery import find_cases

    if workers < 1:
        raise SettingsError("--workers", "a number of processes, at least 1", workers)
    cases = find_cases(inputs, need_labels=True)
    with _mapped(workers) as run:
        entries = run(verify_case, cases, itertools.repeat(task), itertools.repeat(allow))
        bar = tqdm(entries, "verify", len(cases), unit="case", leave=False, disable=not progress)
        entries = list(bar)
    _mark_twins(entries)
    findings = _absent_classes(entries, task)
    severities = [f["severity"] for e in entries for f in e["findings"]]
    severities += [f["severity"] for f in findings]
    return {
        "cases": entries,
        "findings": findings,
        "errors": severities.count("error"),
        "warnings": severities.count("warning"),
        "task": task.to_dict(),
    }


def verify_case(case: Case, task: Task, allow: Collection[str]) -> dict[str, Any]:
    """Returns what one look at a case gives, as plain data; never raises for what is on disk.

    `findings` is always there; shape and spacing (both in the order of the file), orientation, slice
    axis, intensities, and the voxels a label on the task's grid are there as far as they can be read.
    """
    from preprocessing.datasets.case import redact_case_path, redact_message
    from preprocessing.datasets.reading import read_case_image
    from preprocessing.records.targets import read_target
    from preprocessing.volumes.geometry import to_target_grid
    from preprocessing.volumes.quality_checks import ERROR, Finding, check_image, check_labels

    entry: dict[str, Any] = {"case_id": case.case_id, "source": case.source}
    findings = [Finding(ERROR, "incomplete", case.problem)] if case.problem else []
    stage = "image"
    try:
        if case.image_path is not None:
            entry["image"] = Path(redact_case_path(case, case.image_path)).name
            image = read_case_image(case, allow=allow)
            checked = check_image(image, task)
            entry |= _geometry(image, task) | {
                "intensity": {"min": checked.low, "max": checked.high} | _quantiles(image),
                "fingerprint": checked.fingerprint,
            }
            findings += checked.findings
            if not case.problem:
                stage = "annotation"
                image_zyx, space = to_target_grid(image, task)
                target = read_target(case, image, space, task, allow=allow)
                counts, further = check_labels(image_zyx, target.label_zyx, task)
                voxels = map(int, counts.sum(axis=0))
                entry |= target.facts
                entry["label_voxels"] = dict(zip(task.class_names, voxels, strict=True))
                findings += further
    except (AHNetError, OSError, MemoryError) as error:
        reason = str(error) or "expected a volume that fits into memory, found a larger one"
        findings.append(Finding(ERROR, stage, redact_message(case, reason)))
    return entry | {"findings": [dataclasses.asdict(finding) for finding in findings]}


def _geometry(image: Volume, task: Task) -> dict[str, Any]:
    from preprocessing.volumes.geometry import axis_codes, target_grid

    space = target_grid(image.voxels.shape, image.affine, task)
    codes = axis_codes(image.affine)
    return {
        "shape": list(space.input_shape),
        "spacing_mm": [round(mm, 6) for mm in space.input_spacing_mm],
        "orientation": codes,
        "slice_axis": codes[space.axes[2]],
    }


def _quantiles(image: Volume) -> dict[str, float]:
    import numpy as np

    steps = [1 if size <= 64 else _QUANTILE_STEP for size in image.voxels.shape]
    sample = image.voxels[tuple(slice(None, None, step) for step in steps)]
    names = {"p01": 0.01, "p50": 0.5, "p99": 0.99}
    values = np.quantile(sample, list(names.values()), method="lower")
    return dict(zip(names, map(float, values), strict=True))


@contextlib.contextmanager
def _mapped(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Yields `map`, in this process or spread over some."""
    if workers == 1:
        yield map
        return
    with ProcessPoolExecutor(workers) as pool:
        yield pool.map


def _mark_twins(entries: Sequence[dict[str, Any]]) -> None:
    """Adds an error to each case whose voxels an earlier one has."""
    from preprocessing.volumes.quality_checks import duplicate_reason, find_duplicates

    sound = [entry for entry in entries if not _errors_of(entry)]
    twins = find_duplicates((entry["case_id"], entry["fingerprint"]) for entry in sound)
    for entry in sound:
        if entry["case_id"] in twins:
            text = duplicate_reason(entry["image"], twins[entry["case_id"]])
            entry["findings"].append({"severity": "error", "code": "duplicate", "text": text})


def _absent_classes(entries: Sequence[dict[str, Any]], task: Task) -> list[dict[str, str]]:
    """Returns a warning for each class that no label map holds."""
    maps = [entry["label_voxels"] for entry in entries if "label_voxels" in entry]
    absent = [name for name in task.class_names if maps and not any(each[name] for each in maps)]
    text = "no voxel of class {} in any case"
    return [{"severity": "warning", "code": "class", "text": text.format(n)} for n in absent]


def _errors_of(entry: dict[str, Any]) -> list[dict[str, str]]:
    return [finding for finding in entry["findings"] if finding["severity"] == "error"]


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "preprocessing.verify",
        "Checks cases before any work, as conversion does: geometry, intensities, label values, "
        "images that come twice. Prints a table; errors are what conversion would refuse (exit "
        "code 1), warnings what a person should look at.",
        [
            "python -m preprocessing.verify lits",
            "python -m preprocessing.verify lits own_cases --task ct_liver --workers 2",
            "python -m preprocessing.verify lits --output verify.json",
            "python -m preprocessing.verify lits --report page.html",
        ],
    )
    add = parser.add_argument
    add("input", nargs="+", metavar="DIR", help="folders of cases")
    add("--task", default="ct_liver", help="preset or JSON file (default: %(default)s)")
    add(
        "--allow",
        default="",
        metavar="CHECK,...",
        help=f"as in preprocessing.convert: {', '.join(ALLOWANCES)}",
    )
    add("--output", metavar="FILE.json", help="write all that was found (default: only a table)")
    add_page_options(parser, "cases, those with findings first,")
    add("--workers", type=int, default=1, metavar="N", help="processes (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace an earlier output")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    return run_command(_run, _parser().parse_args(argv))


def _run(arguments: argparse.Namespace) -> int:
    from preprocessing.files import write_json
    from preprocessing.verify_table import lines

    check_page_options(arguments)
    output, page = (Path(p) if p else None for p in (arguments.output, arguments.report))
    for option, path in (("--output", output), ("--report", page)):
        if path and path.exists() and not (arguments.overwrite and path.is_file()):
            remedy = "Give --overwrite to replace a file."
            raise SettingsError(option, "a new file", f"{path} is there already", remedy)
    task = load_task(arguments.task)
    allow = parse_allowances(arguments.allow)
    report = verify(arguments.input, task, allow=allow, workers=arguments.workers)
    for line in lines(report, shutil.get_terminal_size().columns):
        print(line)
    if output:
        write_json(output, report)
    if page:
        from preprocessing.page.dataset_page import write_verify_page

        write_verify_page(
            page, arguments.input, report, task, allow=allow, volumes=arguments.report_cases
        )
    return 1 if report["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
