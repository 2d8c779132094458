"""The page of a data set before training: volumes, measurements and findings."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from preprocessing.datasets.case import Case, redact_message
from preprocessing.datasets.discovery import find_cases
from preprocessing.datasets.reading import read_case_image, read_case_label
from preprocessing.errors import AHNetError
from preprocessing.page.contents import (
    CLASS_COLOURS,
    Axis,
    BoxPlot,
    Chart,
    Column,
    Table,
    class_colour,
    page_content,
    without_folders,
)
from preprocessing.page.volumes import PageVolume, page_volume, reference_boxes
from preprocessing.page.writer import write_page
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import Volume, normalize, spacing_mm

TITLE = "Data set before training"
# Columns of intensities by their keys in the report.
INTENSITIES = {"min": "min", "1 %": "p01", "median": "p50", "99 %": "p99", "max": "max"}


def write_verify_page(
    path: str | Path,
    inputs: Sequence[str],
    report: Mapping[str, Any],
    task: Task,
    *,
    allow: Collection[str] = (),
    volumes: int,
) -> None:
    """Writes the page of a verified data set, with the `volumes` cases that have most findings.

    `report` is the result of `verify.verify` for the same inputs, task and allowances.
    """
    entries = report["cases"]
    cases = find_cases(inputs, need_labels=True)
    order = sorted(
        range(len(entries)),
        key=lambda index: (-_count(entries[index], "error"), -_count(entries[index], "warning")),
    )
    # Only cases that could be read.
    shown = [index for index in order if "shape" in entries[index]][:volumes]
    counts = f"{len(entries)} cases, {report['errors']} errors, {report['warnings']} warnings"
    notes = ["Label maps are drawn as outlines, boxes of lesions as boxes."]
    if len(shown) < len(entries):
        text = "Volumes of {} of the {} cases are on this page: those with findings first."
        notes.append(text.format(len(shown), len(entries)))
    content = page_content(
        task,
        f"{counts}; checked for the task {task.name}.",
        [{"id": entry["case_id"], "facts": _facts(entry)} for entry in entries],
        order,
        tables=[*_findings(report, order, inputs), _measurements(entries, order, task)],
        charts=_charts(entries, task),
        notes=notes,
    )

    def volume_of(index: int, budget: int) -> tuple[PageVolume | None, str]:
        return _volume(cases[index], task, allow, budget)

    write_page(path, TITLE, content, shown, volume_of)


def _volume(
    case: Case, task: Task, allow: Collection[str], budget: int
) -> tuple[PageVolume | None, str]:
    """Returns a case's volume as far as it can be read, and why the rest can't."""
    try:
        image = read_case_image(case, allow=allow)
    except (AHNetError, OSError) as error:
        return None, without_folders(redact_message(case, str(error)))
    label: Volume | None = None
    note = ""
    try:
        if case.label_path is not None:
            label = read_case_label(case, task, image, allow=allow)
    except (AHNetError, OSError) as error:
        note = f"Without its label map: {without_folders(redact_message(case, str(error)))}"
    try:
        image = normalize(image, task)
    except AHNetError as error:
        return None, str(error)
    boxes = reference_boxes(case.boxes or (), spacing_mm(image.affine))
    return page_volume(image, label, None, task, budget_bytes=budget, boxes=boxes), note


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
) -> list[Table]:
    """Returns the table of findings, errors first; none if there are none."""
    entries = report["cases"]
    found: list[tuple[int | None, str, Mapping[str, Any]]] = [
        (index, entries[index]["case_id"], finding)
        for index in order
        for finding in entries[index]["findings"]
    ]
    found += [(None, "all cases", finding) for finding in report["findings"]]
    found.sort(key=lambda each: each[2]["severity"] != "error")
    rows = []
    for index, name, finding in found:
        text = without_folders(finding["text"], inputs)
        rows.append((index, [name, finding["severity"], finding["code"], text]))
    columns = [Column("case"), Column("severity"), Column("check"), Column("found", wide=True)]
    note = "Conversion refuses cases with errors; warnings should be looked at."
    return [Table("Findings", columns, rows, first=True, note=note)] if rows else []


def _measurements(entries: Sequence[Mapping[str, Any]], order: Sequence[int], task: Task) -> Table:
    columns = [
        *(Column(name) for name in ("case", "voxels")),
        *(Column(f"{name} mm", 3) for name in ("x", "y", "z")),
        *(Column(name) for name in ("axes", "slices along")),
        *(Column(name, 0) for name in INTENSITIES),
        *(Column(f"{name} ml", 2) for name in task.class_names[1:]),
        *(Column(name, 0) for name in ("errors", "warnings")),
    ]
    rows = []
    for index in order:
        entry = entries[index]
        levels = entry.get("intensity", {})
        volumes_ml = _volumes_ml(entry, task)
        cells = [
            entry["case_id"],
            "x".join(map(str, entry["shape"])) if "shape" in entry else None,
            *entry.get("spacing_mm", [math.nan] * 3),
            entry.get("orientation"),
            entry.get("slice_axis"),
            *(levels.get(key, math.nan) for key in INTENSITIES.values()),
            *(volumes_ml.get(name, math.nan) for name in task.class_names[1:]),
            *(_count(entry, severity) for severity in ("error", "warning")),
        ]
        rows.append((index, cells))
    note = "Those with findings first. A click on a header sorts. Axes and spacing are the file's."
    return Table("Cases", columns, rows, first=True, note=note)


def _volumes_ml(entry: Mapping[str, Any], task: Task) -> dict[str, float]:
    """Returns the volume of each class in ml, from voxels on the task's grid."""
    if "label_voxels" not in entry:
        return {}
    spacing = entry["spacing_mm"]
    if task.spacing_mm is not None and task.resampling == "full":
        spacing = task.spacing_mm
    elif task.spacing_mm is not None and task.resampling == "in_plane":
        across = spacing[entry["orientation"].index(entry["slice_axis"])]
        spacing = (*task.spacing_mm[:2], across)
    return {name: n * math.prod(spacing) / 1000 for name, n in entry["label_voxels"].items()}


def _charts(entries: Sequence[Mapping[str, Any]], task: Task) -> list[Chart]:
    measured = [(index, entry) for index, entry in enumerate(entries) if "shape" in entry]
    if not measured:
        return []
    in_plane, across = [], []
    for index, entry in measured:
        spacings = list(entry["spacing_mm"])
        across.append((spacings.pop(entry["orientation"].index(entry["slice_axis"])), index))
        in_plane.append((max(spacings), index))
    spacing_groups = {"in the plane": in_plane, "between slices": across}
    intensity_groups = {
        name: [(entry["intensity"][INTENSITIES[name]], index) for index, entry in measured]
        for name in ("1 %", "median", "99 %")
    }
    unit = "HU" if task.image_dtype == "int16" else "as stored"
    charts: list[Chart] = [
        BoxPlot("Spacing", Axis("mm"), spacing_groups, CLASS_COLOURS[:2]),
        BoxPlot("Intensities", Axis(unit), intensity_groups, CLASS_COLOURS[:3], digits=0),
    ]
    for value, name in enumerate(task.class_names[1:], start=1):
        values = [
            (_volumes_ml(entry, task)[name], index)
            for index, entry in measured
            if "label_voxels" in entry
        ]
        colour = class_colour(value)
        charts.append(BoxPlot(f"Volume of {name}", Axis("ml"), {name: values}, [colour], digits=2))
    return charts
