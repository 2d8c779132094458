"""Scores predictions against references: label maps by the LiTS measures, lesion tables by FROC.

python -m ahnet_tf.evaluate --input predictions/ --reference cases/ --output scores/
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tqdm import tqdm

from ahnet_tf.evaluation.detection_tables import (
    froc_curves,
    match_tables,
    summarise_detections,
    volume_rows,
)
from ahnet_tf.evaluation.lits import TOLERANCE_MM, CaseScores, score_case
from ahnet_tf.evaluation.lits_summary import summarise
from ahnet_tf.evaluation.pairing import Pair, pair_up, with_images
from ahnet_tf.evaluation.score_files import print_summary, print_table, write_scores
from preprocessing.cli import make_parser, run_command
from preprocessing.errors import AHNetError, InputError, SettingsError
from preprocessing.page.options import add_page_options, check_page_options
from preprocessing.tasks import PRESETS
from preprocessing.volumes.geometry import spacing_mm
from preprocessing.volumes.nifti import check_pair, read_label

TASK = PRESETS["ct_liver"]
LESION_TASK = PRESETS["dbt_lesion"]


def score_pair(pair: Pair, tolerance_mm: float = TOLERANCE_MM) -> CaseScores:
    """Reads and scores one case; the tolerance is that of surface Dice.

    Raises:
      InputError: a file can't be read, a value is no label, or shapes or affines differ.
    """
    reference = read_label(pair.reference, TASK.class_names)
    prediction = read_label(pair.prediction, TASK.class_names)
    check_pair(reference, prediction, pair.prediction)
    spacing = spacing_mm(reference.affine)
    return score_case(prediction.voxels, reference.voxels, spacing, tolerance_mm)


def case_row(scores: CaseScores) -> dict[str, float | int]:
    """Returns a case's scores as one flat row, the line of `scores.csv`."""
    summary = summarise([scores])
    names = [name for name in summary if name.startswith(("lesion_", "liver_"))]
    row = {name: summary[name]["value"] for name in names if not name.endswith("_global")}
    row["liver_dice"] = row.pop("liver_dice_per_case")
    row |= {
        "reference_lesions": scores.reference_lesions,
        "predicted_lesions": scores.predicted_lesions,
    }
    row |= {f"detected_iou_over_{iou:g}": n for iou, n in scores.detected_lesions.items()}
    row |= {f"tumour_burden_{kind}": value for kind, value in scores.tumour_burden.items()}
    return row | {f"voxels_{name}": count for name, count in scores.voxels.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m ahnet_tf.evaluate`."""
    parser = make_parser(
        "ahnet_tf.evaluate",
        "Scores predicted label maps (1 liver, 2 tumour) by the measures of the LiTS challenge: "
        "liver (label >= 1), tumour (label 2), lesion detection, tumour burden; with surface Dice and "
        "HD95. A table of detected lesions (CSV in BCS-DBT's prediction columns) is scored by that "
        "challenge's FROC against BCS-DBT's tables. Prints a table; with --output writes scores.json "
        "and scores.csv; with --report one HTML page with volumes, overlays, scores and curves. "
        "Missing, extra or unreadable cases are named and make it fail; the others are scored.",
        [
            "python -m ahnet_tf.evaluate --input predictions/ --reference cases/",
            "python -m ahnet_tf.evaluate --input predictions/ --reference cases/ --output scores/",
            "python -m ahnet_tf.evaluate mine.nii.gz truth.nii.gz",
            "python -m ahnet_tf.evaluate predictions/ cases/ --report page.html",
            "python -m ahnet_tf.evaluate --input predictions.csv --reference bcs_dbt/",
        ],
    )
    parser.add_argument(
        "paths", nargs="*", metavar="PRED REF", help="one --input and one --reference, unnamed"
    )
    parser.add_argument(
        "--input",
        nargs="+",
        metavar="IN",
        help="predicted label maps, or a folder; or a table of detected lesions",
    )
    parser.add_argument(
        "--reference",
        nargs="+",
        metavar="REF",
        help="reference label maps in the same order, or a data-set folder; or BCS-DBT's tables",
    )
    parser.add_argument("--output", metavar="DIR", help="folder for scores.json and scores.csv")
    parser.add_argument(
        "--tolerance-mm",
        type=float,
        default=TOLERANCE_MM,
        metavar="MM",
        help=f"of surface Dice (default: {TOLERANCE_MM:g})",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the bootstrap's drawings (default: 0)"
    )
    add_page_options(parser, "cases, the worst ones,")
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="IMG",
        help="for the page: the volumes, as files in the same order or as a folder (default: those "
        "beside the references)",
    )
    arguments = parser.parse_args(argv)
    return run_command(_run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    inputs, references = _paths(arguments)
    if not 0 <= arguments.tolerance_mm < float("inf"):
        raise SettingsError("--tolerance-mm", "a distance of at least 0", arguments.tolerance_mm)
    if arguments.seed < 0:
        raise SettingsError("--seed", "a number of at least 0", arguments.seed)
    check_page_options(arguments)
    is_table = any(path.suffix.lower() == ".csv" for path in inputs)
    score = _score_detections if is_table else _score_label_maps
    record, rows, problems, write_page = score(inputs, references, arguments)
    if arguments.output is not None:
        record |= {
            "input": list(map(str, inputs)),
            "reference": list(map(str, references)),
            "seed": arguments.seed,
            "problems": problems,
        }
        write_scores(Path(arguments.output), record, rows)
    if arguments.report is not None:
        # After the scores, which are safe by now; images that can't be used become problems too.
        write_page()
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _paths(arguments: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    """Returns the predictions and the references, however they were given."""
    inputs, references = arguments.input or [], arguments.reference or []
    if arguments.paths:
        if len(arguments.paths) != 2 or inputs or references:
            raise SettingsError("PRED REF", "these two, or --input and --reference", "both or more")
        inputs, references = arguments.paths[:1], arguments.paths[1:]
    if not inputs or not references:
        raise SettingsError("--input and --reference", "both", "one or none")
    return [Path(path) for path in inputs], [Path(path) for path in references]


def _score_label_maps(
    inputs: Sequence[Path], references: Sequence[Path], arguments: argparse.Namespace
) -> tuple[dict, dict, list[str], Callable[[], None]]:
    """Scores and prints label maps.

    Returns:
      The record, the rows by case, the problems, and what writes the page.
    """
    pairs, problems = pair_up(inputs, references)
    scores: dict[str, CaseScores] = {}
    for pair in tqdm(pairs, desc="scoring", unit="case", leave=False):
        try:
            scores[pair.case_id] = score_pair(pair, arguments.tolerance_mm)
        except (InputError, OSError) as error:
            if arguments.debug:
                raise
            where = "" if isinstance(error, AHNetError) else f"{pair.prediction}: "
            problems.append(f"{where}{error}")
    rows = {case_id: case_row(case) for case_id, case in scores.items()}
    summary = summarise(scores.values(), arguments.seed)
    if rows:
        print_table(rows)
        print_summary(
            "summary with 95 % intervals (rvd = (reference - prediction) / prediction; lesion means "
            f"over IoU > 0.5; surface Dice at {arguments.tolerance_mm:g} mm)",
            summary,
        )
    record = {
        "cases": {case_id: dataclasses.asdict(case) for case_id, case in scores.items()},
        "summary": summary,
        "tolerance_mm": arguments.tolerance_mm,
    }

    def write_page() -> None:
        from ahnet_tf.report.label_page import write_label_page

        tolerance = f"Surface Dice at {arguments.tolerance_mm:g} mm"
        write_label_page(
            arguments.report,
            with_images(pairs, arguments.images) if arguments.images else pairs,
            scores,
            rows,
            summary,
            TASK,
            volumes=arguments.report_cases,
            problems=problems,
            notes=[f"{tolerance}; rvd = (reference - prediction) / prediction."],
        )

    return record, rows, problems, write_page


def _score_detections(
    inputs: Sequence[Path], references: Sequence[Path], arguments: argparse.Namespace
) -> tuple[dict, dict, list[str], Callable[[], None]]:
    """Scores and prints a table of detections; returns what `_score_label_maps` returns."""
    matched = match_tables(inputs, references)
    rows = volume_rows(matched.volumes)
    summary = summarise_detections(matched.volumes, arguments.seed) if rows else {}
    if rows:
        totals = {
            name: sum(row[name] for row in rows.values()) for name in next(iter(rows.values()))
        }
        empty = sum(row["detections"] == 0 for row in rows.values())
        print(f"{len(rows)} volumes, {empty} of them without detections")
        print(", ".join(f"{name.replace('_', ' ')} {total}" for name, total in totals.items()))
        print_summary(
            "summary with 95 % intervals (FROC; sensitivity = boxes hit / boxes)", summary
        )
    record = {"cases": rows, "summary": summary, "curves": froc_curves(matched.volumes)}

    def write_page() -> None:
        from ahnet_tf.report.detection_page import write_detection_page

        images = arguments.images or [None]
        if len(images) != 1:
            raise SettingsError("--images", "one folder of volumes", len(images))
        write_detection_page(
            arguments.report,
            matched,
            rows,
            summary,
            LESION_TASK,
            images=images[0] and Path(images[0]),
            volumes=arguments.report_cases,
            problems=matched.problems,
        )

    return record, rows, matched.problems, write_page


if __name__ == "__main__":
    sys.exit(main())
