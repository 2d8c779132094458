"""Checks a data set before any conversion: prints a summary, and writes JSON and a page if asked."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import shutil
import sys
import textwrap
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from preprocessing.cli import add_allow_option, make_parser, parse_allowances, run_command
from preprocessing.errors import PipelineError, SettingsError
from preprocessing.page.writer import add_page_options, check_page_options
from preprocessing.tasks import Task, load_task

if TYPE_CHECKING:
    from preprocessing.datasets.case import Case
    from preprocessing.volumes.geometry import Volume


def verify(
    inputs: Sequence[str],
    task: Task,
    *,
    allow: Collection[str] = (),
    workers: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Checks all cases below some folders as conversion does; bad cases do not stop it.

    Args:
      inputs: data-set folders, see `preprocessing.datasets.discovery`.
      allow: irregularities to accept, names of `preprocessing.errors.ALLOWANCES`.
      workers: processes, each of which checks one case at a time.

    Returns plain data: `cases`, one entry per case with measurements and `findings`; `findings`
    about the whole data set; the numbers of `errors` and `warnings`; `task`; lines about what is
    `passed_over` or `renamed`. Raises InputError if an input is missing or there is no case.
    """
    from tqdm import tqdm

    from preprocessing.datasets.discovery import discover

    if workers < 1:
        raise SettingsError("--workers", "a number of processes, at least 1", workers)
    found = discover(inputs, need_labels=True)
    cases = found.cases
    with contextlib.ExitStack() as stack:
        run: Callable[..., Iterator[dict[str, Any]]] = map
        if workers > 1:
            run = stack.enter_context(ProcessPoolExecutor(workers)).map
        results = run(verify_case, cases, itertools.repeat(task), itertools.repeat(allow))
        bar = tqdm(results, "verify", len(cases), unit="case", leave=False, disable=not progress)
        try:
            entries = list(bar)
        except BrokenProcessPool:
            expected = "worker processes that finish"
            remedy = "The system may have ended it for memory: give fewer --workers."
            raise PipelineError("--workers", expected, "one that was killed", remedy) from None
    _mark_duplicates(entries)
    maps = [entry["label_voxels"] for entry in entries if "label_voxels" in entry]
    absent = [name for name in task.class_names if maps and not any(each[name] for each in maps)]
    findings = [
        {"severity": "warning", "code": "class", "text": f"no voxel of class {name} in any case"}
        for name in absent
    ]
    all_findings = [*findings, *(f for entry in entries for f in entry["findings"])]
    severities = [finding["severity"] for finding in all_findings]
    return {
        "cases": entries,
        "findings": findings,
        "errors": severities.count("error"),
        "warnings": severities.count("warning"),
        "task": task.to_dict(),
        **found.record(),
    }


def verify_case(case: Case, task: Task, allow: Collection[str]) -> dict[str, Any]:
    """Checks one case; never raises for what is in its files.

    Returns plain data: always `findings`; as far as the files can be read shape and spacing (in the
    file's order), orientation, slice axis, intensities, and voxels per class on the task's grid.
    """
    from preprocessing.datasets.case import redact_case_path, rejection_reason
    from preprocessing.datasets.reading import check_case_image, read_case_image
    from preprocessing.records.case_volume import read_case_volume
    from preprocessing.volumes.geometry import axis_codes, target_grid
    from preprocessing.volumes.quality_checks import ERROR, Finding

    entry: dict[str, Any] = {"case_id": case.case_id, "source": case.source}
    findings = [Finding(ERROR, "incomplete", case.problem)] if case.problem else []
    stage = "image"
    try:
        if case.image_path is not None:
            entry["image"] = Path(redact_case_path(case, case.image_path)).name
            image = read_case_image(case, allow=allow)
            checked = check_case_image(case, image, task, allow=allow)
            grid = target_grid(image.voxels.shape, image.affine, task)
            axes = axis_codes(image.affine)
            entry |= {
                "shape": list(grid.input_shape),
                "spacing_mm": [round(mm, 6) for mm in grid.input_spacing_mm],
                "orientation": axes,
                "slice_axis": axes[grid.axes[2]],
                "intensity": {"min": checked.low, "max": checked.high} | _quantiles(image),
                "fingerprint": checked.fingerprint,
            }
            findings += checked.findings
            if checked.misfit is not None:
                stage = "unfit"
                raise checked.misfit
            if not case.problem:
                stage = "annotation"
                _, facts, further = read_case_volume(case, image, task, allow=allow)
                entry |= facts
                findings += further
    except Exception as error:  # As in the conversion, see `case_conversion.convert_case`.
        findings.append(Finding(ERROR, stage, rejection_reason(case, error)))
    return entry | {"findings": [dataclasses.asdict(finding) for finding in findings]}


def _quantiles(image: Volume) -> dict[str, float]:
    import numpy as np

    # Every fourth voxel of a long axis is enough.
    sample = image.voxels[tuple(slice(None, None, 1 if n <= 64 else 4) for n in image.voxels.shape)]
    values = np.quantile(sample, [0.01, 0.5, 0.99], method="lower")
    return dict(zip(("p01", "p50", "p99"), map(float, values), strict=True))


def _mark_duplicates(entries: Sequence[dict[str, Any]]) -> None:
    """Adds an error to each valid case with the same voxels as an earlier one."""
    from preprocessing.volumes.quality_checks import duplicate_reasons

    valid = {
        entry["case_id"]: entry
        for entry in entries
        if not any(finding["severity"] == "error" for finding in entry["findings"])
    }
    reasons = duplicate_reasons((n, e["image"], e["fingerprint"]) for n, e in valid.items())
    for name, text in reasons.items():
        finding = {"severity": "error", "code": "duplicate", "text": text}
        valid[name]["findings"].append(finding)


def report_lines(report: dict[str, Any], width: int) -> Iterator[str]:
    """Yields lines of `width` columns: each case, the findings with errors first, their numbers."""
    wrapper = textwrap.TextWrapper(max(20, width), subsequent_indent="  ")
    wrapper.break_long_words = wrapper.break_on_hyphens = False
    for entry in report["cases"]:
        yield from wrapper.wrap(f"{entry['case_id']}: {_summary(entry)}")
    yield ""
    for kind in ("passed over", "renamed"):
        for line in report[kind.replace(" ", "_")]:
            yield from wrapper.wrap(f"{kind}: {line}")
    found = [(entry["case_id"], each) for entry in report["cases"] for each in entry["findings"]]
    found += [("all cases", finding) for finding in report["findings"]]
    for where, finding in sorted(found, key=lambda each: each[1]["severity"]):
        line = f"{finding['severity']} {where}, {finding['code']}: {finding['text']}"
        # File names may contain bytes that are not UTF-8.
        yield from wrapper.wrap(line.encode("utf-8", "backslashreplace").decode())
    counts = (_count(report[f"{severity}s"], severity) for severity in ("error", "warning"))
    yield ", ".join((_count(len(report["cases"]), "case"), *counts))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _summary(entry: dict[str, Any]) -> str:
    parts = []
    if "shape" in entry:
        low, high = entry["intensity"]["p01"], entry["intensity"]["p99"]
        parts += [
            f"shape {'x'.join(map(str, entry['shape']))}",
            f"spacing mm {' '.join(f'{mm:.3g}' for mm in entry['spacing_mm'])}",
            f"axes {entry['orientation']}, slices {entry['slice_axis']}",
            f"intensity 1 % - 99 % {low:g} - {high:g}",
        ]
    voxels = list(entry.get("label_voxels", {}).items())[1:]
    if voxels:
        parts.append(f"label voxels {', '.join(f'{name} {n}' for name, n in voxels)}")
    severities = [finding["severity"] for finding in entry["findings"]]
    counts = [(severities.count(name), name) for name in ("error", "warning")]
    found = ", ".join(_count(number, name) for number, name in counts if number)
    return "; ".join([*parts, f"found {found or 'nothing'}"])


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "preprocessing.verify",
        "Checks cases as conversion does: geometry, intensities, label values, duplicate images. "
        "Prints a summary. Errors are what conversion would reject (exit code 1).",
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
    add_allow_option(parser)
    add("--output", metavar="FILE.json", help="write all results as JSON")
    add_page_options(parser, "cases, those with findings first,")
    add("--workers", type=int, default=1, metavar="N", help="processes (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace earlier outputs")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    return run_command(_run, _parser().parse_args(argv))


def _run(arguments: argparse.Namespace) -> int:
    from preprocessing.files import write_json

    check_page_options(arguments)
    output, page = (Path(p) if p else None for p in (arguments.output, arguments.report))
    for option, path in (("--output", output), ("--report", page)):
        if path and path.exists() and not (arguments.overwrite and path.is_file()):
            remedy = "Give --overwrite to replace a file."
            raise SettingsError(option, "a new file", f"{path}, which exists", remedy)
    task = load_task(arguments.task)
    allow = parse_allowances(arguments.allow)
    report = verify(arguments.input, task, allow=allow, workers=arguments.workers)
    for line in report_lines(report, shutil.get_terminal_size().columns):
        print(line)
    if output:
        write_json(output, report)
    if page:
        from preprocessing.page.dataset_page import write_verify_page

        volumes = arguments.report_cases
        write_verify_page(page, arguments.input, report, task, allow=allow, volumes=volumes)
    return 1 if report["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
