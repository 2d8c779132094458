"""The page of scored label maps: overlays on their images, the worst cases first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ahnet_tf.evaluation.lits import CaseScores
from ahnet_tf.evaluation.pairing import Pair
from ahnet_tf.evaluation.summary import TABLE
from ahnet_tf.report.charts import label_charts
from preprocessing.datasets.reading import read_case_image
from preprocessing.errors import InputError
from preprocessing.page.contents import Column, Table, page_content, without_folders
from preprocessing.page.volumes import PageVolume, page_volume
from preprocessing.page.writer import write_page
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.nifti import check_pair, read_label

TITLE = "Segmentation scores"
FACTS = ("liver Dice", "tumour Dice", "HD95 mm", "lesions", "predicted", "IoU>0")
NO_IMAGE = "No image of this case was found."


def write_label_page(
    path: str | Path,
    pairs: Sequence[Pair],
    scores: Mapping[str, CaseScores],
    rows: Mapping[str, Mapping[str, float]],
    summary: Mapping[str, Mapping[str, float]],
    task: Task,
    *,
    volumes: int,
    problems: list[str],
    notes: Sequence[str] = (),
) -> None:
    """Writes the page of scored label maps.

    Args:
      path: of the page.
      pairs: of which the scored ones are shown.
      scores: of each case.
      rows: the lines of `scores.csv` by case.
      summary: of the data set, see `summary.summarise`.
      task: gives the intensity window.
      volumes: number of cases whose volumes are on the page, the worst ones.
      problems: of scoring; images that can't be used are added.
      notes: sentences at the end of the page.
    """
    shown = [pair for pair in pairs if pair.case_id in rows]
    own = [rows[pair.case_id] for pair in shown]
    # By the lower Dice, then by the other one.
    order = sorted(
        range(len(own)),
        key=lambda index: sorted((own[index]["liver_dice"], own[index]["lesion_dice_per_case"])),
    )
    cases = []
    for pair, row in zip(shown, own, strict=True):
        texts = {
            heading: "\u2013" if math.isnan(row[key]) else format(row[key], layout)
            for heading, key, layout in TABLE
        }
        cases.append({"id": pair.case_id, "facts": [(name, texts[name]) for name in FACTS]})
    columns = [Column("case")]
    for heading, _, layout in TABLE:
        columns.append(Column(heading, 0 if layout == "d" else int(layout.strip("+.f"))))
    by_case = Table(
        "Cases",
        columns,
        [(i, [shown[i].case_id, *(own[i][key] for _, key, _ in TABLE)]) for i in order],
        first=True,
        note="Worst first: by the lower of liver Dice and tumour Dice. A click on a header sorts.",
    )
    folders = {file.parent for pair in pairs for file in (pair.prediction, pair.reference)}
    content = page_content(
        task,
        f"{len(shown)} cases by the measures of LiTS; classes {', '.join(task.class_names[1:])}.",
        cases,
        order,
        tables=[by_case, summary_table(summary), *problem_table(problems, folders)],
        charts=label_charts(own, [scores[pair.case_id] for pair in shown]),
        notes=[*notes, *left_out(len(shown), volumes)],
    )

    def volume_of(index: int, budget: int) -> tuple[PageVolume, str]:
        return _volume(shown[index], task, budget, problems)

    write_page(path, TITLE, content, order[:volumes], volume_of)


def summary_table(summary: Mapping[str, Mapping[str, float]]) -> Table:
    """Returns the scores of the data set as a table."""
    columns = [
        Column("measure"),
        Column("value", 4),
        Column("95 % from", 4, help="bootstrap over cases"),
        Column("to", 4),
        Column("undefined", 0, help="values left out of the mean"),
    ]
    rows = [
        (None, [name, *(entry[key] for key in ("value", "low", "high")), entry.get("undefined", 0)])
        for name, entry in summary.items()
    ]
    return Table("Data set", columns, rows)


def problem_table(problems: Sequence[str], folders: Iterable[str | Path]) -> list[Table]:
    """Returns the problems without their folders as a table; none if there are none."""
    rows = [(None, [without_folders(problem, folders)]) for problem in problems]
    return [Table("Not scored", [Column("problem", wide=True)], rows)] if rows else []


def left_out(cases: int, volumes: int) -> list[str]:
    """Returns a note if a page has fewer volumes than cases."""
    if cases <= volumes:
        return []
    return [
        f"Volumes of {volumes} of the {cases} cases are on this page, the worst by their scores."
    ]


def image_or_problem(read: Callable[[], Volume], problems: list[str]) -> tuple[Volume | None, str]:
    """Returns an image, or None and a note for the page if reading it fails."""
    try:
        return read(), ""
    except (InputError, OSError) as error:
        problems.append(str(error))
        return None, "The image of this case could not be used."


def _volume(pair: Pair, task: Task, budget: int, problems: list[str]) -> tuple[PageVolume, str]:
    reference = read_label(pair.reference, task.class_names)
    prediction = read_label(pair.prediction, task.class_names)
    image, note = None, NO_IMAGE
    case = pair.image
    if case is not None and case.image_path is not None:

        def read() -> Volume:
            volume = read_case_image(case)
            check_pair(reference, volume, case.image_path)
            return volume

        image, note = image_or_problem(read, problems)
    volume = page_volume(image, reference, prediction, task, budget_bytes=budget, crop=True)
    return volume, note
