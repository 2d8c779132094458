"""The page of scored detections: boxes on slices and on a projection, FROC."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ahnet_tf.evaluation.froc import ScoredVolume
from ahnet_tf.evaluation.pairing import MatchedTables
from ahnet_tf.report.charts import detection_charts
from ahnet_tf.report.label_page import (
    NO_IMAGE,
    image_or_problem,
    left_out,
    problem_table,
    summary_table,
)
from preprocessing.datasets.bcs_dbt import cases_of_tables, dbt_case_id
from preprocessing.datasets.case import Case
from preprocessing.datasets.case_files import nifti_files, walk_folders
from preprocessing.datasets.detection_table import Detection
from preprocessing.datasets.reading import read_case_image
from preprocessing.errors import InputError, SettingsError
from preprocessing.page.contents import Column, Table, page_content
from preprocessing.page.volumes import Box, PageVolume, page_volume, reference_boxes
from preprocessing.page.writer import write_page
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import spacing_mm

TITLE = "Detection scores"


def write_detection_page(
    path: str | Path,
    matched: MatchedTables,
    rows: Mapping[str, Mapping[str, int]],
    summary: Mapping[str, Mapping[str, float]],
    task: Task,
    *,
    images: Path | None,
    volumes: int,
    problems: list[str],
) -> None:
    """Writes the page of a scored table of detections.

    Args:
      path: of the page.
      matched: detections and boxes of each volume.
      rows: the lines of `scores.csv` by case.
      summary: the FROC scores.
      task: gives the intensity window.
      images: folder of the images; that of the reference tables if None.
      volumes: number of volumes on the page, the worst ones.
      problems: of scoring; images that can't be used are added.
    """
    keys = list(matched.volumes)
    ids = [dbt_case_id(*key) for key in keys]
    own = [rows[case_id] for case_id in ids]
    order = sorted(
        range(len(own)),
        key=lambda i: (own[i]["boxes_hit"] - own[i]["boxes"], -own[i]["false_positives"]),
    )
    names = [name.replace("_", " ") for name in own[0]] if own else []
    cases = [
        {"id": case_id, "facts": list(zip(names, map(str, row.values()), strict=True))}
        for case_id, row in zip(ids, own, strict=True)
    ]
    by_case = Table(
        "Volumes scored",
        [Column("case"), *(Column(name, 0) for name in names)],
        [(i, [ids[i], *own[i].values()]) for i in order],
        first=True,
        note="Worst first: by boxes missed, then by false positives. A click on a header sorts.",
    )
    found = _images(matched, images)
    shown = [i for i in order if ids[i] in found][:volumes]
    content = page_content(
        task,
        f"{len(keys)} volumes by the FROC of BCS-DBT.",
        cases,
        order,
        tables=[by_case, summary_table(summary), *problem_table(problems, [matched.tables.folder])],
        charts=detection_charts(list(matched.volumes.values())),
        notes=[
            "A reference box belongs to one slice. It is drawn through as many slices as make it "
            "as deep as it is wide, at most half of all.",
            *([] if found else [NO_IMAGE.replace("this case", "any volume")]),
            *left_out(len(keys), len(shown)),
        ],
    )

    def volume_of(index: int, budget: int) -> tuple[PageVolume | None, str]:
        key = keys[index]
        image, note = image_or_problem(lambda: read_case_image(found[ids[index]]), problems)
        if image is None:
            return None, note
        boxes = reference_boxes(matched.boxes[key], spacing_mm(image.affine))
        boxes += detection_boxes(matched.detections[key], matched.volumes[key])
        return page_volume(image, None, None, task, budget_bytes=budget, boxes=boxes), note

    write_page(path, TITLE, content, shown, volume_of)


def detection_boxes(detections: Sequence[Detection], volume: ScoredVolume) -> list[Box]:
    """Returns the boxes of a volume's detections by falling score, with what they were scored as."""
    first: dict[int, int] = {}
    falling = np.argsort(-volume.scores, kind="stable").tolist()
    boxes = []
    for number in falling:
        each, hit = detections[number], int(volume.hits[number])
        kind = "false positive"
        if hit >= 0:
            kind = "hit" if first.setdefault(hit, number) == number else "further hit"
        low, size = (each.x, each.y, each.z), (each.width, each.height, each.depth)
        boxes.append(Box(kind, low, size, f"{each.score:.3g}", each.score))
    return boxes


def _images(matched: MatchedTables, folder: Path | None) -> dict[str, Case]:
    """Returns the cases that have an image, by their ids."""
    tables = matched.tables
    if folder is not None:
        if not folder.is_dir():
            raise SettingsError("--images", "the folder of the volumes", folder)
        tables = dataclasses.replace(tables, folder=folder)
    files = nifti_files(list(walk_folders(tables.folder)))
    cases = cases_of_tables(tables, files, need_labels=True)
    found = {case.case_id: case for case in cases if case.image_path is not None}
    if folder is not None and not found:
        raise InputError(folder, "volumes that the reference tables name", "none")
    return found
