"""The page of a data set before training: its volumes, what they measure, and what was found."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from preprocessing.datasets.case import Case, redact_message
from preprocessing.datasets.discovery import find_cases
from preprocessing.datasets.reading import read_case_image, read_case_label
from preprocessing.errors import AHNetError
from preprocessing.page.boxes import reference_boxes
from preprocessing.page.colours import CLASS_COLOURS, class_colour
from preprocessing.page.contents import (
    axis,
    box_plot,
    column,
    page_content,
    table,
    without_folders,
)
from preprocessing.page.volumes import PageVolume, page_volume
from preprocessing.page.writer import budget_bytes, write_page
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import Volume, spacing_mm
from preprocessing.volumes.nifti import check_pair

TITLE = "Data set before training"


def write_verify_page(
    path: str | Path,
    inputs: Sequence[str],
    report: Mapping[str, Any],
    task: Task,
    *,
    allow: Collection[str] = (),
    volumes: int,
    progress: bool = True,
) -> None:
    """Writes the page of a verified data set.

    Args:
      path: of the page.
      inputs: what was verified.
      report: what `verify.verify` returned.
      task: whose classes and intensity window.
      allow: what is taken although it is irregular.
      volumes: how many cases can be looked at; those with most findings.
      progress: show a bar.
    """
    entries = report["cases"]
    cases = find_cases(inputs, need_labels=True)
    order = sorted(range(len(entries)), key=lambda index: _badness(entries[index]))
    # What could be read once.
    seen = [index for index in order if "shape" in entries[index]][:volumes]
    counts = f"{len(entries)} cases, {report['errors']} errors, {report['warnings']} warnings"
    notes = ["Label maps are drawn as outlines, boxes of lesions as boxes."]
    if len(seen) < len(entries):
        text = "Volumes of {} of the {} cases are on this page: those with findings first."
        notes.append(text.format(len(seen), len(entries)))
    content = page_content(
        task,
        f"{counts}; checked for the task {task.name}.",
        [{"id": entry["case_id"], "facts": _facts(entry)} for entry in entries],
        order,
        tables=[*_findings(report, order, inputs), _measurements(entries, order, task)],
        charts=_charts(entries, task),
        notes=notes,
    )

    def coded() -> Iterator[tuple[int, PageVolume | None, str]]:
        for index in tqdm(seen, "report", unit="case", leave=False, disable=not progress):
            yield index, *_volume(cases[index], task, allow, budget_bytes(len(seen)))

    write_page(path, TITLE, content, coded())


def _volume(
    case: Case, task: Task, allow: Collection[str], budget: int
) -> tuple[PageVolume | None, str]:
    """Returns a case's volume as far as it can be read, and what can't."""
    reason = ""
    try:
        image = read_case_image(case, allow=allow)
    except (AHNetError, OSError) as error:
        return None, without_folders(redact_message(case, str(error)))
    label: Volume | None = None
    try:
        if case.label_path is not None:
            label = read_case_label(case, task, shape=image.voxels.shape, allow=allow)
            check_pair(image, label, case.label_path)
    except (AHNetError, OSError) as error:
        label = None
        reason = f"Without its label map: {without_folders(redact_message(case, str(error)))}"
    boxes = reference_boxes(case.boxes or (), spacing_mm(image.affine))
    return page_volume(image, label, None, task, budget_bytes=budget, boxes=boxes), reason


def _badness(entry: Mapping[str, Any]) -> tuple[int, int]:
    errors, warnings = (-_count(entry, severity) for severity in ("error", "warning"))
    return errors, warnings


def _count(entry: Mapping[str, Any], severity: str) -> int:
    return sum(finding["severity"] == severity for finding in entry["findings"])


def _facts(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = []
    if "shape" in entry:
        spacing = " x ".join(f"{mm:.3g}" for mm in entry["spacing_mm"])
        facts = [
            ("voxels", " x ".join(map(str, entry["shape"]))),
            ("spacing", f"{spacing} mm"),
            ("axes", entry["orientation"]),
        ]
    found = {severity: _count(entry, severity) for severity in ("error", "warning")}
    return facts + [(f"{name}s", str(n)) for name, n in found.items() if n]


def _findings(
    report: Mapping[str, Any], order: Sequence[int], inputs: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns the table of findings, errors first; none if there are none."""
    entries = report["cases"]
    found = [(index, finding) for index in order for finding in entries[index]["findings"]]
    found += [(None, finding) for finding in report["findings"]]
    found.sort(key=lambda each: each[1]["severity"] != "error")
    rows = [
        (
            index,
            [
                "all cases" if index is None else entries[index]["case_id"],
                finding["severity"],
                finding["code"],
                without_folders(finding["text"], inputs),
            ],
        )
        for index, finding in found
    ]
    columns = [column("case"), column("severity"), column("check"), column("found", wide=True)]
    note = "Errors are what conversion would refuse, warnings what a person should look at."
    return [table("Findings", columns, rows, first=True, note=note)] if rows else []


def _measurements(
    entries: Sequence[Mapping[str, Any]], order: Sequence[int], task: Task
) -> dict[str, Any]:
    intensities = {"min": "min", "1 %": "p01", "median": "p50", "99 %": "p99", "max": "max"}
    columns = [
        *(column(name) for name in ("case", "voxels")),
        *(column(f"{name} mm", 3) for name in ("x", "y", "z")),
        *(column(name) for name in ("axes", "slices along")),
        *(column(name, 0) for name in intensities),
        *(column(f"{name} ml", 2) for name in task.class_names[1:]),
        *(column(name, 0) for name in ("errors", "warnings")),
    ]
    rows = []
    for index in order:
        entry = entries[index]
        spacing = entry.get("spacing_mm", [math.nan] * 3)
        levels = entry.get("intensity", {})
        volumes_ml = _volumes_ml(entry, task)
        cells = [
            entry["case_id"],
            "x".join(map(str, entry["shape"])) if "shape" in entry else None,
            *spacing,
            entry.get("orientation"),
            entry.get("slice_axis"),
            *(levels.get(key, math.nan) for key in intensities.values()),
            *(volumes_ml.get(name, math.nan) for name in task.class_names[1:]),
            *(_count(entry, severity) for severity in ("error", "warning")),
        ]
        rows.append((index, cells))
    note = "Those with findings first. A click on a header sorts. Axes and spacing are the file's."
    return table("Cases", columns, rows, first=True, note=note)


def _volumes_ml(entry: Mapping[str, Any], task: Task) -> dict[str, float]:
    """Returns the volume of each class in ml, from voxels on the task's grid."""
    if "label_voxels" not in entry:
        return {}
    spacing = entry["spacing_mm"]
    if task.resampling == "full":
        spacing = task.spacing_mm
    elif task.resampling == "in_plane":
        across = spacing[entry["orientation"].index(entry["slice_axis"])]
        spacing = (*task.spacing_mm[:2], across)
    return {name: n * math.prod(spacing) / 1000 for name, n in entry["label_voxels"].items()}


def _charts(entries: Sequence[Mapping[str, Any]], task: Task) -> list[dict[str, Any]]:
    measured = [(index, entry) for index, entry in enumerate(entries) if "shape" in entry]
    if not measured:
        return []
    in_plane, across = [], []
    for index, entry in measured:
        slices = entry["orientation"].index(entry["slice_axis"])
        across.append((entry["spacing_mm"][slices], index))
        others = [mm for position, mm in enumerate(entry["spacing_mm"]) if position != slices]
        in_plane.append((max(others), index))
    levels = {"1 %": "p01", "median": "p50", "99 %": "p99"}
    unit = "HU" if task.image_dtype == "int16" else "as stored"
    charts = [
        box_plot(
            "Spacing",
            axis("mm"),
            {"in the plane": in_plane, "between slices": across},
            CLASS_COLOURS[:2],
        ),
        box_plot(
            "Intensities",
            axis(unit),
            {
                name: [(entry["intensity"][key], index) for index, entry in measured]
                for name, key in levels.items()
            },
            CLASS_COLOURS[:3],
            digits=0,
        ),
    ]
    for value, name in enumerate(task.class_names[1:], start=1):
        values = [
            (_volumes_ml(entry, task)[name], index)
            for index, entry in measured
            if "label_voxels" in entry
        ]
        colour = class_colour(value)
        charts.append(box_plot(f"Volume of {name}", axis("ml"), {name: values}, [colour], digits=2))
    return charts
