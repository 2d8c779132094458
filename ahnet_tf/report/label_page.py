"""The page of a scored prediction: label maps over their images, the worst cases first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ahnet_tf.evaluation.lits import CaseScores
from ahnet_tf.evaluation.pairing import Pair
from ahnet_tf.evaluation.score_files import TABLE
from ahnet_tf.report.charts import label_charts
from preprocessing.datasets.reading import read_case_image
from preprocessing.errors import InputError
from preprocessing.page.contents import column, page_content, table, without_folders
from preprocessing.page.volumes import PageVolume, page_volume
from preprocessing.page.writer import budget_bytes, write_page
from preprocessing.tasks import Task
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
      pairs: the scored ones among them are shown.
      scores: of each case.
      rows: the lines of `scores.csv` by case.
      summary: of the data set, see `scoring.lits_summary.summarise`.
      task: gives the intensity window.
      volumes: how many cases can be looked at, the worst ones.
      problems: of scoring; an image that can't be used is added.
      notes: sentences at the page's end.
    """
    shown = [pair for pair in pairs if pair.case_id in rows]
    own = [rows[pair.case_id] for pair in shown]
    order = sorted(range(len(own)), key=lambda index: badness(own[index]))
    digits = {heading: _digits(layout) for heading, _, layout in TABLE}
    keys = {heading: key for heading, key, _ in TABLE}
    cases = [
        {
            "id": pair.case_id,
            "facts": [(name, _text(row[keys[name]], digits[name])) for name in FACTS],
        }
        for pair, row in zip(shown, own, strict=True)
    ]
    by_case = table(
        "Cases",
        [column("case"), *(column(heading, digits[heading]) for heading, _, _ in TABLE)],
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
        charts=label_charts(own, [scores[pair.case_id] for pair in shown], task),
        notes=[*notes, *left_out(len(shown), volumes)],
    )
    chosen = order[:volumes]

    def coded() -> Iterator[tuple[int, PageVolume | None, str]]:
        for index in tqdm(chosen, desc="report", unit="case", leave=False):
            yield index, *_volume(shown[index], task, budget_bytes(len(chosen)), problems)

    write_page(path, TITLE, content, coded())


def badness(row: Mapping[str, float]) -> tuple[float, float]:
    """Returns what cases are sorted by, the worst first: the lower Dice, then the other one."""
    both = sorted((row["liver_dice"], row["lesion_dice_per_case"]))
    return both[0], both[1]


def summary_table(summary: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Returns the scores of the data set as a table."""
    columns = [
        column("measure"),
        column("value", 4),
        column("95 % from", 4, help="bootstrap over cases"),
        column("to", 4),
        column("undefined", 0, help="values left out of the mean"),
    ]
    rows = [
        (None, [name, *(entry[key] for key in ("value", "low", "high")), entry.get("undefined", 0)])
        for name, entry in summary.items()
    ]
    return table("Data set", columns, rows)


def problem_table(problems: Sequence[str], folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Returns what could not be scored as a table, if there is anything; folders are left out."""
    rows = [(None, [without_folders(problem, folders)]) for problem in problems]
    return [table("Not scored", [column("problem", wide=True)], rows)] if rows else []


def left_out(cases: int, volumes: int) -> list[str]:
    """Returns a note where a page holds fewer volumes than cases."""
    if cases <= volumes:
        return []
    return [
        f"Volumes of {volumes} of the {cases} cases are on this page, the worst by their scores."
    ]


def image_or_problem(read: Callable[[], Any], problems: list[str]) -> tuple[Any | None, str]:
    """Returns what a reader returns, or None, and a sentence for the page if it fails."""
    try:
        return read(), ""
    except (InputError, OSError) as error:
        problems.append(str(error))
        return None, "The image of this case could not be used."


def _volume(pair: Pair, task: Task, budget: int, problems: list[str]) -> tuple[PageVolume, str]:
    reference = read_label(pair.reference, task.class_names)
    prediction = read_label(pair.prediction, task.class_names)
    image, note = None, NO_IMAGE
    if pair.image is not None and pair.image.image_path is not None:

        def read():
            volume = read_case_image(pair.image)
            check_pair(reference, volume, pair.image.image_path)
            return volume

        image, note = image_or_problem(read, problems)
    volume = page_volume(image, reference, prediction, task, budget_bytes=budget, crop=True)
    return volume, note


def _digits(layout: str) -> int:
    return 0 if layout == "d" else int(layout.strip("+.f"))


def _text(value: float, digits: int) -> str:
    return "\u2013" if math.isnan(value) else f"{value:.{digits}f}"
