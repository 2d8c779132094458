"""Scores predictions against references: label maps by the LiTS measures, lesion tables by FROC.

python -m ahnet_tf.evaluate --input predictions/ --reference cases/ --output scores/
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ahnet_tf.evaluation.froc import count, curve, volume_rows
from ahnet_tf.evaluation.lits import (
    TOLERANCE_MM,
    CaseScores,
    ClassScores,
    score_case,
    score_classes,
)
from ahnet_tf.evaluation.pairing import (
    Pair,
    match_tables,
    pair_up,
    predicted_task,
    read_pair,
    with_images,
)
from ahnet_tf.evaluation.summary import case_row, summarise, summarise_detections, table_columns
from ahnet_tf.inference.run_record import RECORD_FILE
from ahnet_tf.report.score_pages import write_detection_page, write_label_page
from preprocessing.cli import add_allow_option, make_parser, parse_allowances, run_command
from preprocessing.datasets.label_names import is_organ_with_lesions
from preprocessing.errors import AHNetError, InputError, SettingsError
from preprocessing.files import without_nan, write_csv, write_json
from preprocessing.page.writer import add_page_options, check_page_options
from preprocessing.settings import check_seed
from preprocessing.tasks import PRESETS, Task, load_task
from preprocessing.volumes.geometry import spacing_mm

TASK = "ct_liver"
LESION_TASK = PRESETS["dbt_lesion"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m ahnet_tf.evaluate`; returns its exit code."""
    parser = make_parser(
        "ahnet_tf.evaluate",
        "Scores predicted label maps of an organ and its tumours by the measures of the LiTS "
        "challenge: organ (label >= 1), tumour (label 2), lesion detection, tumour burden; with surface "
        "Dice and HD95. Those of other tasks are scored by class. Scores a table of detected lesions (CSV in BCS-DBT's prediction columns) by that "
        "challenge's FROC. Missing, extra and unreadable cases are named; the exit code is then 1.",
        [
            "python -m ahnet_tf.evaluate --input predictions/ --reference cases/",
            "python -m ahnet_tf.evaluate --input predictions/ --reference cases/ --output scores/",
            "python -m ahnet_tf.evaluate mine.nii.gz truth.nii.gz",
            "python -m ahnet_tf.evaluate predictions/ cases/ --task task.json --report page.html",
            "python -m ahnet_tf.evaluate --input predictions/lesions.csv --reference bcs_dbt/",
        ],
    )
    add = parser.add_argument
    add("paths", nargs="*", metavar="PRED REF", help="short for --input PRED --reference REF")
    input_help = "predicted label maps, or a folder; or a table of detected lesions"
    add("--input", nargs="+", metavar="IN", help=input_help)
    reference_help = "reference label maps in that order, or a data-set folder; or BCS-DBT's tables"
    add("--reference", nargs="+", metavar="REF", help=reference_help)
    task_help = "classes of label maps: preset or JSON file (default: the task in "
    task_help += f"{RECORD_FILE} beside the predictions, or else {TASK})"
    add("--task", help=task_help)
    add_allow_option(parser)
    add("--output", metavar="DIR", help="folder for scores.json and scores.csv")
    tolerance_help = f"tolerance of surface Dice (default: {TOLERANCE_MM:g})"
    add("--tolerance-mm", type=float, default=TOLERANCE_MM, metavar="MM", help=tolerance_help)
    hits_help = "tables: the 100 pixels of a hit are BCS-DBT's 8.5 mm, by the spacing of each image"
    add("--hits-in-mm", action="store_true", help=hits_help)
    add("--seed", type=int, default=0, help="seed of the bootstrap (default: 0)")
    add_page_options(parser, "cases, the worst ones,")
    images_help = "images of the cases: files in that order, or a folder (default: beside REF)"
    add("--images", nargs="+", metavar="IMG", help=images_help)
    return run_command(_run, parser.parse_args(argv))


def _run(arguments: argparse.Namespace) -> int:
    inputs, references = arguments.input or [], arguments.reference or []
    if arguments.paths:
        if len(arguments.paths) != 2 or inputs or references:
            raise SettingsError("PRED REF", "these two, or --input and --reference", "both or more")
        inputs, references = arguments.paths[:1], arguments.paths[1:]
    if not inputs or not references:
        raise SettingsError("--input and --reference", "both", "one or none")
    arguments.input, arguments.reference = list(map(Path, inputs)), list(map(Path, references))
    if not 0 <= arguments.tolerance_mm < float("inf"):
        raise SettingsError("--tolerance-mm", "a distance of at least 0", arguments.tolerance_mm)
    check_seed(arguments.seed)
    check_page_options(arguments)
    is_table = any(path.suffix.lower() == ".csv" for path in arguments.input)
    if arguments.hits_in_mm and not is_table:
        raise SettingsError("--hits-in-mm", "a table of lesions as --input", "label maps")
    for path in arguments.images or ():
        if not Path(path).exists():
            raise SettingsError("--images", "images or a folder of them", f"nothing at {path}")
    problems = _score_detections(arguments) if is_table else _score_label_maps(arguments)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


@dataclass(frozen=True)
class Scores:
    """Scores of label maps against their references."""

    cases: dict[str, CaseScores | ClassScores]  # all measures of each case, by case id
    rows: dict[str, dict[str, float | int]]  # the main measures of each case, by name
    # Value, 95 % interval and number of undefined values of each measure, by name.
    summary: dict[str, dict[str, float | int]]
    problems: list[str]  # why a case has no scores, one line each
    pairs: list[Pair]  # the files of each case


def score_cases(
    predictions: str | Path | Sequence[str | Path],
    references: str | Path | Sequence[str | Path],
    *,
    task: Task | str | None = None,
    allow: Collection[str] = (),
    tolerance_mm: float = TOLERANCE_MM,
    seed: int = 0,
    debug: bool = False,
    progress: bool = True,
) -> Scores:
    """Scores label maps: an organ and its lesions by the measures of LiTS, other tasks by class.

    Args:
      predictions: one or several label maps in the values of the task's classes, or a folder of them.
      references: reference label maps in the same order, or a data-set folder, with the labels that
        conversion reads for this task.
      task: name of a preset, JSON file or `Task`; by default the one in the record of the folder of
        predictions (`prediction.json`), or else `ct_liver`.
      allow: irregularities to accept, names of `preprocessing.errors.ALLOWANCES`.
      tolerance_mm: tolerance of surface Dice.
      seed: seed of the bootstrap.
      debug: raise the errors of single cases.
      progress: show a progress bar.

    Raises:
      InputError: nothing to score.
      SettingsError: an unknown task, or predictions of several.
    """
    inputs = _paths(predictions)
    task = load_task(task or predicted_task(inputs) or TASK)
    pairs, problems = pair_up(inputs, _paths(references))
    scores: dict[str, CaseScores | ClassScores] = {}
    for pair in tqdm(pairs, desc="scoring", unit="case", leave=False, disable=not progress):
        try:
            prediction, reference = read_pair(pair, task, allow=allow)
            both, spacing = (prediction.voxels, reference.voxels), spacing_mm(reference.affine)
            if is_organ_with_lesions(task):
                scores[pair.case_id] = score_case(*both, spacing, tolerance_mm)
            else:
                own = score_classes(*both, task.class_names, spacing, tolerance_mm)
                scores[pair.case_id] = own
        except (InputError, OSError, MemoryError) as error:
            if debug:
                raise
            where = "" if isinstance(error, AHNetError) else f"{pair.prediction}: "
            problems.append(f"{where}{error or type(error).__name__}")
    rows = {case_id: case_row(case) for case_id, case in scores.items()}
    return Scores(scores, rows, summarise(scores.values(), seed), problems, pairs)


def _paths(given: str | Path | Sequence[str | Path]) -> list[Path]:
    return [Path(given)] if isinstance(given, str | Path) else list(map(Path, given))


def _score_label_maps(arguments: argparse.Namespace) -> list[str]:
    """Scores label maps; prints and writes the scores, and returns the cases without scores."""
    task = load_task(arguments.task or predicted_task(arguments.input) or TASK)
    allow = parse_allowances(arguments.allow)
    scores = score_cases(
        arguments.input,
        arguments.reference,
        task=task,
        allow=allow,
        tolerance_mm=arguments.tolerance_mm,
        seed=arguments.seed,
        debug=arguments.debug,
    )
    tolerance = f"Dice at {arguments.tolerance_mm:g} mm"
    rvd = "rvd = (reference - prediction) / prediction"
    if scores.rows:
        _print_table(scores.rows, task)
        means = "lesion means over IoU > 0.5; " if is_organ_with_lesions(task) else ""
        means = f"{rvd}; {means}surface {tolerance}"
        _print_summary(f"summary with 95 % intervals ({means})", scores.summary)
    cases = {case_id: dataclasses.asdict(case) for case_id, case in scores.cases.items()}
    record = {"cases": cases, "summary": scores.summary, "tolerance_mm": arguments.tolerance_mm}
    record |= {"task": task.to_dict(), "allow": sorted(allow)}
    _write_scores(arguments, record, scores.rows, scores.problems)
    if arguments.report is not None:
        pairs = scores.pairs
        write_label_page(
            arguments.report,
            with_images(pairs, arguments.images) if arguments.images else pairs,
            scores.cases,
            scores.rows,
            scores.summary,
            task,
            allow=allow,
            volumes=arguments.report_cases,
            problems=scores.problems,
            notes=[f"Surface {tolerance}; {rvd}."],
        )
    return scores.problems


def _score_detections(arguments: argparse.Namespace) -> list[str]:
    """Scores a table of detections; otherwise like `_score_label_maps`."""
    images = [Path(each) for each in arguments.images or ()]
    if len(images) > 1:
        raise SettingsError("--images", "one folder of volumes", len(images))
    folder = images[0] if images else None
    in_mm = arguments.hits_in_mm
    matched = match_tables(arguments.input, arguments.reference, hits_in_mm=in_mm, images=folder)
    rows = volume_rows(matched.volumes)
    summary = summarise_detections(matched.volumes, arguments.seed) if rows else {}
    if rows:
        columns = next(iter(rows.values()))
        totals = {name: sum(row[name] for row in rows.values()) for name in columns}
        empty = sum(row["detections"] == 0 for row in rows.values())
        print(f"{len(rows)} volumes, {empty} of them without detections")
        print(", ".join(f"{name.replace('_', ' ')} {total}" for name, total in totals.items()))
        froc = "FROC; sensitivity = boxes hit / boxes"
        _print_summary(f"summary with 95 % intervals ({froc})", summary)
    volumes = list(matched.volumes.values())
    with_boxes = [volume for volume in volumes if volume.boxes]
    curves = {}
    for group, own in (("volumes_with_boxes", with_boxes), ("all_volumes", volumes)):
        rates, sensitivity = (values.tolist() for values in curve(count(own)))
        curves[group] = {"false_positives_per_volume": rates, "sensitivity": sensitivity}
    record = {"cases": rows, "summary": summary, "curves": curves, "hits_in_mm": in_mm}
    _write_scores(arguments, record, rows, matched.problems)
    if arguments.report is not None:
        write_detection_page(
            arguments.report,
            matched,
            rows,
            summary,
            LESION_TASK,
            images=folder,
            volumes=arguments.report_cases,
            problems=matched.problems,
        )
    return matched.problems


def _print_table(rows: Mapping[str, Mapping[str, float | int]], task: Task) -> None:
    width, columns = max(len("case"), *map(len, rows)), table_columns(task)
    print("  ".join(["case".ljust(width)] + [heading for heading, _, _ in columns]))
    for case_id, row in rows.items():
        cells = (format(row[key], layout).rjust(len(heading)) for heading, key, layout in columns)
        print("  ".join([case_id.ljust(width), *cells]))


def _print_summary(heading: str, summary: Mapping[str, Mapping[str, float | int]]) -> None:
    """Prints each measure with its interval and the number of undefined values."""
    print(f"\n{heading}")
    width = max(map(len, summary))
    for name, entry in summary.items():
        line = f"  {name:<{width}}{entry['value']:>12.6f}"
        if not math.isnan(entry["low"]):
            line += f"  [{entry['low']:.6f}, {entry['high']:.6f}]"
        if entry.get("undefined"):
            line += f"  ({entry['undefined']} undefined)"
        print(line)


def _write_scores(
    arguments: argparse.Namespace,
    record: dict[str, Any],
    rows: Mapping[str, dict[str, Any]],
    problems: Sequence[str],
) -> None:
    """Writes `scores.json`, with null for NaN, and `scores.csv` to the folder `--output`, if any."""
    if arguments.output is None:
        return
    folder = Path(arguments.output)
    settings = {
        "input": list(map(str, arguments.input)),
        "reference": list(map(str, arguments.reference)),
        "seed": arguments.seed,
        "problems": problems,
    }
    write_json(folder / "scores.json", without_nan(record | settings))
    columns = ["case_id", *next(iter(rows.values()), {})]
    lines = ({"case_id": case_id} | row for case_id, row in rows.items())
    write_csv(folder / "scores.csv", columns, lines)


if __name__ == "__main__":
    sys.exit(main())
