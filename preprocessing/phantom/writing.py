"""Synthetic data sets with exact ground truth: abdominal CT in LiTS naming, or DBT with BCS-DBT's tables."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.cli import make_parser, run_command
from preprocessing.datasets.bcs_dbt import (
    BOX_COLUMNS,
    LABEL_COLUMNS,
    OUTCOMES,
    dbt_case_id,
    replace_rows,
)
from preprocessing.errors import SettingsError
from preprocessing.files import write_json
from preprocessing.phantom import dbt as phantom_dbt
from preprocessing.phantom.ct import PhantomSettings, make_case
from preprocessing.phantom.dbt import DBTSettings
from preprocessing.volumes.nifti import write_image

KINDS = {"ct": PhantomSettings, "dbt": DBTSettings}


def write_cases(
    output: str | Path,
    count: int,
    seed: int,
    *,
    first: int = 0,
    settings: PhantomSettings | DBTSettings | None = None,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Writes cases `first` to `first + count - 1`; CT unless the settings are DBT's.

    CT: volume-N.nii.gz and segmentation-N.nii.gz. DBT: PHANTOM-N_VIEW.nii.gz and its _mask.nii.gz, and
    their rows of boxes.csv and labels.csv. Beside them goes phantom.json with the settings and every
    case's voxels a label value.

    Returns:
      phantom.json's entries of the cases.

    Raises:
      SettingsError: a file of that name exists and `overwrite` is not given.
    """
    from tqdm import tqdm

    settings = settings or PhantomSettings()
    output = Path(output)
    if count < 1 or first < 0 or seed < 0:
        raise SettingsError("phantom", "cases >= 1, first >= 0, seed >= 0", (count, first, seed))
    dbt = isinstance(settings, DBTSettings)
    numbers = range(first, first + count)
    patterns = "PHANTOM-{:05d}_*.nii.gz" if dbt else "volume-{0}.nii.gz segmentation-{0}.nii.gz"
    names = [name for number in numbers for name in patterns.format(number).split()]
    existing = [path for name in names for path in sorted(output.glob(name))]
    if existing and not overwrite:
        raise SettingsError(
            "--output", "a folder without these cases", existing[0], "Give --overwrite to replace."
        )
    write_case = _write_dbt if dbt else _write_ct
    cases = [
        write_case(output, seed, number, settings)
        for number in tqdm(numbers, "phantom", unit="case")
    ]
    content = {"seed": seed, "first": first, "cases": cases}
    write_json(output / "phantom.json", content | {"settings": dataclasses.asdict(settings)})
    return cases


def _write_ct(output: Path, seed: int, number: int, settings: PhantomSettings) -> dict[str, Any]:
    image, label = make_case(seed, number, settings)
    write_image(output / f"volume-{number}.nii.gz", image)
    write_image(output / f"segmentation-{number}.nii.gz", label)
    voxels = np.bincount(label.voxels.ravel(), minlength=3)
    return {"case_id": f"volume-{number}", "label_voxels": [int(n) for n in voxels]}


def _write_dbt(output: Path, seed: int, number: int, settings: DBTSettings) -> dict[str, Any]:
    case = phantom_dbt.make_case(seed, number, settings)
    patient = f"PHANTOM-{number:05d}"
    for old in output.glob(f"{patient}_*.nii.gz"):
        # Of another seed, and perhaps another view.
        old.unlink()
    name = f"{patient}_{case.view}"
    write_image(output / f"{name}.nii.gz", case.image)
    write_image(output / f"{name}_mask.nii.gz", case.label)
    volume = {"PatientID": patient, "StudyUID": f"0.{seed}.{number}", "View": case.view}
    boxes = [
        volume
        | {
            "Subject": number,
            "Slice": box.slice_index,
            "X": box.x,
            "Y": box.y,
            "Width": box.width,
            "Height": box.height,
            "Class": box.lesion_class,
            "AD": 0,
            "VolumeSlices": box.volume_slices,
        }
        for box in case.boxes
    ]
    classes = {box.lesion_class for box in case.boxes}
    outcome = next((each for each in ("cancer", "benign") if each in classes), "normal")
    outcomes = {each: int(each.lower() == outcome) for each in OUTCOMES}
    replace_rows(output / "boxes.csv", BOX_COLUMNS, "PatientID", patient, boxes)
    replace_rows(output / "labels.csv", LABEL_COLUMNS, "PatientID", patient, [volume | outcomes])
    voxels = np.bincount(case.label.voxels.ravel(), minlength=2)
    return {"case_id": dbt_case_id(*volume.values()), "label_voxels": [int(n) for n in voxels]}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    parser = make_parser(
        "preprocessing.phantom",
        "Writes synthetic cases with exact ground truth. CT: volume-N.nii.gz (HU) and "
        "segmentation-N.nii.gz (0 background, 1 liver, 2 tumour). DBT: PHANTOM-N_VIEW.nii.gz (10 bits), "
        "its _mask.nii.gz (1 mass), boxes.csv and labels.csv as in BCS-DBT.",
        [
            "python -m preprocessing.phantom --output phantom",
            "python -m preprocessing.phantom --output unseen --cases 1 --first 100",
            "python -m preprocessing.phantom --kind dbt --output breasts --cases 24",
        ],
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for the cases")
    parser.add_argument("--kind", choices=list(KINDS), default="ct", help="default: ct")
    parser.add_argument("--cases", type=int, default=8, help="how many (default: 8)")
    parser.add_argument(
        "--first", type=int, default=0, metavar="N", help="number of the first case"
    )
    parser.add_argument("--seed", type=int, default=0, help="case N depends on N and this only")
    shapes, spacings = (
        ", ".join(f"{kind} {' '.join(map(str, getattr(of, name)))}" for kind, of in KINDS.items())
        for name in ("shape_xyz", "spacing_mm")
    )
    parser.add_argument(
        "--shape",
        type=int,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help=f"voxels of the mean case (default: {shapes})",
    )
    parser.add_argument(
        "--spacing-mm",
        type=float,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help=f"voxel spacing (default: {spacings})",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace cases of the same name")
    return run_command(_run, parser.parse_args(argv))


def _run(arguments: argparse.Namespace) -> None:
    given = {"shape_xyz": arguments.shape, "spacing_mm": arguments.spacing_mm}
    settings = KINDS[arguments.kind](**{k: tuple(v) for k, v in given.items() if v is not None})
    cases = write_cases(
        arguments.output,
        arguments.cases,
        arguments.seed,
        first=arguments.first,
        settings=settings,
        overwrite=arguments.overwrite,
    )
    lesions = {"ct": "tumours", "dbt": "masses"}[arguments.kind]
    some = sum(case["label_voxels"][-1] > 0 for case in cases)
    print(f"{len(cases)} cases, {some} with {lesions}, in {arguments.output}")


if __name__ == "__main__":
    sys.exit(main())
