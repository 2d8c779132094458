"""Writes synthetic data sets: CT with LiTS names, or DBT with the tables of BCS-DBT."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.datasets.bcs_dbt import (
    BOX_COLUMNS,
    LABEL_COLUMNS,
    OUTCOMES,
    dbt_case_id,
    replace_rows,
)
from preprocessing.errors import SettingsError
from preprocessing.files import write_json
from preprocessing.phantom import ct, dbt
from preprocessing.volumes.nifti import write_image


def write_cases(
    output: str | Path,
    count: int,
    seed: int,
    *,
    first: int = 0,
    settings: ct.PhantomSettings | dbt.DBTSettings | None = None,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Writes cases `first` to `first + count - 1`; CT by default.

    CT: volume-N.nii.gz and segmentation-N.nii.gz. DBT: PHANTOM-N_VIEW.nii.gz, its _mask.nii.gz, and
    rows of boxes.csv and labels.csv. phantom.json holds the settings and each case's voxels per label
    value.

    Returns:
      The entries of the cases in phantom.json.

    Raises:
      SettingsError: a number is negative, or a case exists and `overwrite` is not given.
    """
    from tqdm import tqdm

    settings = settings or ct.PhantomSettings()
    output = Path(output)
    if count < 1 or first < 0 or seed < 0:
        raise SettingsError("phantom", "cases >= 1, first >= 0, seed >= 0", (count, first, seed))
    patterns = ["volume-{}.nii.gz", "segmentation-{}.nii.gz"]
    if isinstance(settings, dbt.DBTSettings):
        patterns = ["PHANTOM-{:05d}_*.nii.gz"]
    numbers = range(first, first + count)
    names = [pattern.format(number) for number in numbers for pattern in patterns]
    existing = [path for name in names for path in sorted(output.glob(name))]
    if existing and not overwrite:
        raise SettingsError(
            "--output", "a folder without these cases", existing[0], "Give --overwrite to replace."
        )
    cases = []
    for number in tqdm(numbers, "phantom", unit="case"):
        if isinstance(settings, dbt.DBTSettings):
            cases.append(_write_dbt(output, seed, number, settings))
        else:
            cases.append(_write_ct(output, seed, number, settings))
    content = {"seed": seed, "first": first, "cases": cases}
    write_json(output / "phantom.json", content | {"settings": dataclasses.asdict(settings)})
    return cases


def _write_ct(output: Path, seed: int, number: int, settings: ct.PhantomSettings) -> dict[str, Any]:
    image, label = ct.make_case(seed, number, settings)
    write_image(output / f"volume-{number}.nii.gz", image)
    write_image(output / f"segmentation-{number}.nii.gz", label)
    voxels = np.bincount(label.voxels.ravel(), minlength=3)
    return {"case_id": f"volume-{number}", "label_voxels": [int(n) for n in voxels]}


def _write_dbt(output: Path, seed: int, number: int, settings: dbt.DBTSettings) -> dict[str, Any]:
    case = dbt.make_case(seed, number, settings)
    patient = f"PHANTOM-{number:05d}"
    for old in output.glob(f"{patient}_*.nii.gz"):
        # With another seed the case may have another view.
        old.unlink()
    name = f"{patient}_{case.view}"
    write_image(output / f"{name}.nii.gz", case.image)
    write_image(output / f"{name}_mask.nii.gz", case.label)
    volume: dict[str, Any] = {
        "PatientID": patient,
        "StudyUID": f"0.{seed}.{number}",
        "View": case.view,
    }
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
