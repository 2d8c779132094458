"""Pages of scored predictions: label maps over their images, lesion boxes on their volumes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ahnet_tf.evaluation.froc import ScoredVolume
from ahnet_tf.evaluation.lits import CaseScores, ClassScores
from ahnet_tf.evaluation.pairing import MatchedTables, Pair, images_of_tables, read_pair
from ahnet_tf.evaluation.summary import dice_columns, table_columns
from ahnet_tf.report.charts import class_charts, detection_charts, label_charts
from preprocessing.datasets.bcs_dbt import dbt_case_id
from preprocessing.datasets.case import Case
from preprocessing.datasets.detection_table import Detection
from preprocessing.datasets.reading import read_case_image
from preprocessing.errors import InputError
from preprocessing.page.contents import Column, Table, page_content, without_folders
from preprocessing.page.volumes import Box, PageVolume, page_volume, reference_boxes
from preprocessing.page.writer import write_page
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import Volume, normalize, spacing_mm
from preprocessing.volumes.grids import on_grid

# Columns that stand above a case's volume, besides the Dice of its classes.
FACTS = ("liver_hd95_mm", "reference_lesions", "predicted_lesions", "detected_iou_over_0")


def write_label_page(
    path: str | Path,
    pairs: Sequence[Pair],
    scores: Mapping[str, CaseScores | ClassScores],
    rows: Mapping[str, Mapping[str, float]],
    summary: Mapping[str, Mapping[str, float]],
    task: Task,
    *,
    allow: Collection[str] = (),
    volumes: int,
    problems: list[str],
    notes: Sequence[str] = (),
) -> None:
    """Writes the page of scored label maps, the worst cases first.

    Scores and `rows`, the lines of `scores.csv`, are by case; pairs without them are left out. `volumes`
    is the number of cases whose volumes are on the page. `problems` says why cases were not scored;
    those of unusable images are added.
    """
    shown = [pair for pair in pairs if pair.case_id in rows]
    own = [rows[pair.case_id] for pair in shown]
    table, dice_of = table_columns(task), dice_columns(task)
    # By the lowest Dice, then by the next one.
    dice = [sorted(row[key] for key in dice_of.values()) for row in own]
    order = sorted(range(len(own)), key=dice.__getitem__)
    cases = []
    for pair, row in zip(shown, own, strict=True):
        facts = [
            (heading, "\u2013" if math.isnan(row[key]) else format(row[key], layout))
            for heading, key, layout in table
            if key in (*dice_of.values(), *FACTS)
        ]
        cases.append({"id": pair.case_id, "facts": facts})
    columns = [Column("case")]
    for heading, _, layout in table:
        columns.append(Column(heading, 0 if layout == "d" else int(layout.strip("+.f"))))
    by_case = Table(
        "Cases",
        columns,
        [(i, [shown[i].case_id, *(own[i][key] for _, key, _ in table)]) for i in order],
        first=True,
        note=f"Worst first: by the lowest of {', '.join(dice_of)}. A click on a header sorts.",
    )
    folders = {file.parent for p in pairs for file in (p.prediction, p.reference.path)}
    by_lesion = [each for p in shown if isinstance(each := scores[p.case_id], CaseScores)]
    kind = "by the measures of LiTS" if by_lesion else "by class"
    content = page_content(
        task,
        f"{'1 case' if len(shown) == 1 else f'{len(shown)} cases'} {kind}; "
        f"classes {', '.join(task.class_names[1:])}.",
        cases,
        order,
        tables=[by_case, _summary_table(summary), *_problem_table(problems, folders)],
        charts=label_charts(own, by_lesion) if by_lesion else class_charts(own, task.class_names),
        notes=[*notes, *_left_out(len(shown), volumes)],
    )

    def volume_of(index: int, budget: int) -> tuple[PageVolume, str]:
        pair = shown[index]
        prediction, reference = read_pair(pair, task, allow=allow)
        image, note = _read_image(pair.image, reference, task, problems, allow)
        if image is not None:
            prediction, reference = (
                on_grid(each, image, pair.case_id, allow=allow) for each in (prediction, reference)
            )
        volume = page_volume(image, reference, prediction, task, budget_bytes=budget, crop=True)
        return volume, note

    write_page(path, "Segmentation scores", content, order[:volumes], volume_of)


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

    The images are in the folder `images`, or in that of the reference tables if it is None; otherwise
    like `write_label_page`.
    """
    keys = list(matched.volumes)
    ids = [dbt_case_id(*key) for key in keys]
    own = [rows[case_id] for case_id in ids]
    missed = [(row["boxes_hit"] - row["boxes"], -row["false_positives"]) for row in own]
    order = sorted(range(len(own)), key=missed.__getitem__)
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
    found = images_of_tables(matched.tables, images)
    folders = [matched.tables.folder]
    shown = [i for i in order if ids[i] in found][:volumes]
    content = page_content(
        task,
        f"{len(keys)} volumes by the FROC of BCS-DBT.",
        cases,
        order,
        tables=[by_case, _summary_table(summary), *_problem_table(problems, folders)],
        charts=detection_charts(list(matched.volumes.values())),
        notes=[
            "A reference box belongs to one slice. It is drawn as deep as it is wide, through at "
            "most half of all slices.",
            *([] if found else ["No image of any volume was found."]),
            *_left_out(len(keys), len(shown)),
        ],
    )

    def volume_of(index: int, budget: int) -> tuple[PageVolume | None, str]:
        key = keys[index]
        image, note = _read_image(found[ids[index]], None, task, problems)
        if image is None:
            return None, note
        boxes = reference_boxes(matched.boxes[key], spacing_mm(image.affine))
        boxes += _detection_boxes(matched.detections[key], matched.volumes[key])
        return page_volume(image, None, None, task, budget_bytes=budget, boxes=boxes), note

    write_page(path, "Detection scores", content, shown, volume_of)


def _summary_table(summary: Mapping[str, Mapping[str, float]]) -> Table:
    columns = [
        Column("measure"),
        Column("value", 4),
        Column("95 % from", 4, help="bootstrap over cases"),
        Column("to", 4),
        Column("undefined", 0, help="values left out of the mean"),
    ]
    keys = ("value", "low", "high", "undefined")
    rows = [(None, [name, *(entry.get(key, 0) for key in keys)]) for name, entry in summary.items()]
    return Table("Data set", columns, rows)


def _problem_table(problems: Sequence[str], folders: Iterable[str | Path]) -> list[Table]:
    """Returns a table of the problems, without their folders, if there are any."""
    rows = [(None, [without_folders(problem, folders)]) for problem in problems]
    return [Table("Not scored", [Column("problem", wide=True)], rows)] if rows else []


def _left_out(cases: int, volumes: int) -> list[str]:
    """Returns a note if a page has fewer volumes than cases."""
    note = f"Volumes of {volumes} of the {cases} cases are on this page, the worst by their scores."
    return [note] if volumes < cases else []


def _read_image(
    case: Case | None,
    labels: Volume | None,
    task: Task,
    problems: list[str],
    allow: Collection[str] = (),
) -> tuple[Volume | None, str]:
    """Returns the normalised image of a case, on whose grid its labels must be, or None; and a note."""
    if case is None or case.image_path is None:
        return None, "No image of this case was found."
    try:
        image = read_case_image(case, allow=allow)
        if labels is not None:
            on_grid(labels, image, case.image_path, allow=allow)
        image = normalize(image, task)
    except (InputError, OSError) as error:
        problems.append(str(error))
        return None, "The image of this case could not be used."
    return image, ""


def _detection_boxes(detections: Sequence[Detection], volume: ScoredVolume) -> list[Box]:
    """Returns the boxes of a volume's detections by falling score, with what they were scored as."""
    first: dict[int, int] = {}
    boxes = []
    for number in np.argsort(-volume.scores, kind="stable").tolist():
        each, hit = detections[number], int(volume.hits[number])
        kind = "false positive"
        if hit >= 0:
            kind = "hit" if first.setdefault(hit, number) == number else "further hit"
        low, size = (each.x, each.y, each.z), (each.width, each.height, each.depth)
        boxes.append(Box(kind, low, size, f"{each.score:.3g}", each.score))
    return boxes
