"""Scores predicted label maps against references by the LiTS measures.

python -m ahnet_tf.evaluate --input predictions/ --reference cases/ --output scores/
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ahnet_tf.predict import prediction_name
from ahnet_tf.scoring.lits import CaseScores, score_case, summarise
from preprocessing.cases import find_cases
from preprocessing.command import make_parser, run_command
from preprocessing.errors import AHNetError, InputError, SettingsError
from preprocessing.files import replacing, write_json
from preprocessing.nifti import SUFFIXES, check_pair, has_nifti_suffix, read_label
from preprocessing.tasks import PRESETS
from preprocessing.volume import spacing_mm

CLASS_NAMES = PRESETS["ct_liver"].class_names

# Columns of the printed table: heading, column of `case_row`, format.
TABLE = (
    ("liver Dice", "liver_dice", ".4f"),
    ("liver ASSD mm", "liver_assd_mm", ".2f"),
    ("tumour Dice", "lesion_dice_per_case", ".4f"),
    ("lesions", "reference_lesions", "d"),
    ("predicted", "predicted_lesions", "d"),
    ("IoU>0.5", "detected_iou_over_0.5", "d"),
    ("IoU>0", "detected_iou_over_0", "d"),
    ("burden error", "tumour_burden_error", "+.4f"),
)


@dataclass(frozen=True)
class Pair:
    """A prediction and the reference it is scored against."""

    case_id: str
    prediction: Path
    reference: Path


def pair_up(
    inputs: Sequence[str | Path], references: Sequence[str | Path]
) -> tuple[list[Pair], list[str]]:
    """Pairs predictions with references by case.

    Single files are paired in the order given. In folders the prediction of a case is what
    `python -m ahnet_tf.predict` calls it, or a file named like the case, its label map or its image.

    Args:
      inputs: label map files, or folders that hold them (not their subfolders).
      references: label map files, or data-set folders as `preprocessing.cases.find_cases` knows.

    Returns:
      The pairs, and a line for every missing or extra case.

    Raises:
      InputError: a path doesn't exist or holds no label maps.
      SettingsError: files whose numbers differ.
    """
    inputs, references = [Path(path) for path in inputs], [Path(path) for path in references]
    if all(path.is_file() for path in inputs + references):
        if len(inputs) != len(references):
            raise SettingsError(
                "--input and --reference", f"as many files, {len(references)}", len(inputs)
            )
        stems = [_stem(path) for path in inputs]
        names = stems if len(set(stems)) == len(stems) else map(str, inputs)
        return [Pair(*files) for files in zip(names, inputs, references, strict=True)], []
    predictions = _prediction_files(inputs)
    cases = find_cases(references, need_labels=True)
    if any(case.label_path for case in cases):
        # Images without label maps are no references; label maps without images are.
        cases = [case for case in cases if case.label_path]
    pairs, problems = [], []
    for case in cases:
        reference = case.label_path or case.image_path
        names = [_stem(Path(prediction_name(case.case_id))), case.case_id, _stem(reference)]
        if case.image_path is not None:
            names.append(_stem(case.image_path))
        name = next((name for name in names if name in predictions), None)
        if name is None:
            problems.append(
                f"case {case.case_id}: expected a prediction named {names[0]}.nii.gz, found none"
            )
        else:
            pairs.append(Pair(case.case_id, predictions.pop(name), reference))
    problems += [
        f"{path}: expected a reference for this prediction, found none"
        for path in predictions.values()
    ]
    return pairs, problems


def score_pair(pair: Pair) -> CaseScores:
    """Reads and scores one case.

    Raises:
      InputError: a file can't be read, a value is no label, or shapes or affines differ.
    """
    reference = read_label(pair.reference, CLASS_NAMES)
    prediction = read_label(pair.prediction, CLASS_NAMES)
    check_pair(reference, prediction, pair.prediction)
    return score_case(prediction.voxels, reference.voxels, spacing_mm(reference.affine))


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
        "liver (label >= 1), tumour (label 2), lesion detection, tumour burden. Prints a table; "
        "with --output writes scores.json and scores.csv. Missing, extra or unreadable cases are "
        "named and make it fail; the others are scored.",
        [
            "python -m ahnet_tf.evaluate --input predictions/ --reference cases/",
            "python -m ahnet_tf.evaluate --input predictions/ --reference cases/ --output scores/",
            "python -m ahnet_tf.evaluate --input mine.nii.gz --reference truth.nii.gz",
        ],
    )
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="IN", help="predicted label maps, or a folder"
    )
    parser.add_argument(
        "--reference",
        nargs="+",
        required=True,
        metavar="REF",
        help="reference label maps in the same order, or a data-set folder",
    )
    parser.add_argument("--output", metavar="DIR", help="folder for scores.json and scores.csv")
    arguments = parser.parse_args(argv)
    return run_command(_run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    pairs, problems = pair_up(arguments.input, arguments.reference)
    scores: dict[str, CaseScores] = {}
    for pair in tqdm(pairs, desc="scoring", unit="case", leave=False):
        try:
            scores[pair.case_id] = score_pair(pair)
        except (InputError, OSError) as error:
            if arguments.debug:
                raise
            where = "" if isinstance(error, AHNetError) else f"{pair.prediction}: "
            problems.append(f"{where}{error}")
    rows = {case_id: case_row(case) for case_id, case in scores.items()}
    summary = summarise(scores.values())
    if rows:
        _print_table(rows)
        _print_summary(summary)
    if arguments.output is not None:
        record = {
            "input": list(map(str, arguments.input)),
            "reference": list(map(str, arguments.reference)),
            "cases": {case_id: dataclasses.asdict(case) for case_id, case in scores.items()},
            "summary": summary,
            "problems": problems,
        }
        write_json(Path(arguments.output) / "scores.json", _without_nan(record))
        _write_csv(Path(arguments.output) / "scores.csv", rows)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _prediction_files(inputs: Sequence[Path]) -> dict[str, Path]:
    """Returns the label maps by the stem of their names."""
    files: dict[str, Path] = {}
    for path in inputs:
        if not path.exists():
            raise InputError(path, "predicted label maps or a folder of them", "nothing there")
        own = sorted(path.iterdir()) if path.is_dir() else [path]
        own = [file for file in own if file.is_file() and has_nifti_suffix(file)]
        if not own:
            raise InputError(path, "predicted label maps (.nii, .nii.gz)", "none")
        for file in own:
            twin = files.setdefault(_stem(file), file)
            if twin != file:
                raise InputError(file, "one prediction a case", f"{twin} too")
    return files


def _stem(path: Path) -> str:
    suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), "")
    return path.name[: len(path.name) - len(suffix)]


def _print_table(rows: dict[str, dict[str, float | int]]) -> None:
    width = max(len("case"), *(len(case_id) for case_id in rows))
    print("  ".join(["case".ljust(width)] + [heading for heading, _, _ in TABLE]))
    for case_id, row in rows.items():
        cells = [
            format(row[column], layout).rjust(len(heading)) for heading, column, layout in TABLE
        ]
        print("  ".join([case_id.ljust(width), *cells]))


def _print_summary(summary: dict[str, dict[str, float | int]]) -> None:
    print("\nsummary (rvd = (reference - prediction) / prediction; lesion means over IoU > 0.5)")
    for name, entry in summary.items():
        undefined = f"  ({entry['undefined']} undefined)" if entry["undefined"] else ""
        print(f"  {name:<30}{entry['value']:>12.6f}{undefined}")


def _write_csv(path: Path, rows: dict[str, dict[str, float | int]]) -> None:
    columns = list(next(iter(rows.values()), {}))
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["case_id", *columns])
        for case_id, row in rows.items():
            writer.writerow([case_id, *(row[column] for column in columns)])


def _without_nan(content: Any) -> Any:
    """Returns JSON content with null for NaN, which JSON doesn't know."""
    if isinstance(content, dict):
        return {str(name): _without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content


if __name__ == "__main__":
    sys.exit(main())
