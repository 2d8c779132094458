"""Writes synthetic data sets: CT with LiTS names, or DBT with the tables of BCS-DBT."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from preprocessing.datasets import bcs_dbt
from preprocessing.errors import SettingsError
from preprocessing.files import write_json
from preprocessing.phantom import ct, dbt
from preprocessing.phantom.dbt_dicom import write_tomosynthesis
from preprocessing.settings import SEED
from preprocessing.volumes.nifti import write_image


def write_cases(
    output: str | Path,
    count: int,
    seed: int,
    *,
    first: int = 0,
    settings: ct.PhantomSettings | dbt.DBTSettings | None = None,
    overwrite: bool = False,
    dicom: bool = False,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Writes cases `first` to `first + count - 1`; CT by default.

    CT: volume-N.nii.gz and segmentation-N.nii.gz. DBT: PHANTOM-N_VIEW.nii.gz and its _mask.nii.gz, or
    with `dicom` PHANTOM-N_VIEW.dcm alone, and rows of boxes.csv, labels.csv and paths.csv. phantom.json holds the settings and the returned entries: each case's id, voxels per label
    value, and for DBT its density class and arc. Raises SettingsError if a number is negative, a case
    exists and `overwrite` is not given, or CT is to be DICOM.
    """
    settings = settings or ct.PhantomSettings()
    output = Path(output)
    if count < 1 or first < 0 or not SEED.holds(seed):
        expected = f"cases >= 1, first >= 0, and as the seed {SEED.expected}"
        raise SettingsError("phantom", expected, (count, first, seed))
    if dicom and not isinstance(settings, dbt.DBTSettings):
        raise SettingsError("--format", "nifti for CT; DICOM is for --kind dbt", "dicom")
    numbers = range(first, first + count)
    patterns = ["volume-{}.nii.gz", "segmentation-{}.nii.gz", "PHANTOM-{:05d}_*"]
    patterns = patterns[2:] if isinstance(settings, dbt.DBTSettings) else patterns[:2]
    names = [pattern.format(number) for number in numbers for pattern in patterns]
    existing = [path for name in names for path in sorted(output.glob(name))]
    if existing and not overwrite:
        expected = "a folder without these cases"
        raise SettingsError("--output", expected, existing[0], "Give --overwrite to replace.")
    cases = []
    for number in tqdm(numbers, "phantom", unit="case", disable=not progress):
        if isinstance(settings, dbt.DBTSettings):
            cases.append(_write_dbt(output, seed, number, settings, dicom))
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


def _write_dbt(
    output: Path, seed: int, number: int, settings: dbt.DBTSettings, dicom: bool
) -> dict[str, Any]:
    case = dbt.make_case(seed, number, settings)
    patient = f"PHANTOM-{number:05d}"
    for old in output.glob(f"{patient}_*"):
        # With another seed the case may have another view.
        old.unlink()
    name = f"{patient}_{case.view}"
    volume = (patient, f"0.{seed}.{number}", case.view)
    keys = dict(zip(bcs_dbt.VOLUME_COLUMNS, volume, strict=True))
    if dicom:
        output.mkdir(parents=True, exist_ok=True)
        ids = {"patient_id": volume[0], "study_uid": volume[1], "view": case.view}
        write_tomosynthesis(output / f"{name}.dcm", case.image, bits=case.bits, **ids)
    else:
        write_image(output / f"{name}.nii.gz", case.image)
        write_image(output / f"{name}_mask.nii.gz", case.label)
    boxes, labels = bcs_dbt.rows_of_volume(volume, case.boxes, number)
    path = f"{name}.{'dcm' if dicom else 'nii.gz'}"
    path_columns = (*bcs_dbt.VOLUME_COLUMNS, *bcs_dbt.PATH_COLUMNS)
    tables: tuple[tuple[str, Sequence[str], list[dict[str, object]]], ...] = (
        ("boxes.csv", bcs_dbt.BOX_COLUMNS, boxes),
        ("labels.csv", bcs_dbt.LABEL_COLUMNS, [labels]),
        ("paths.csv", path_columns, [{**keys, **dict.fromkeys(bcs_dbt.PATH_COLUMNS, path)}]),
    )
    for table, columns, rows in tables:
        bcs_dbt.replace_rows(output / table, columns, "PatientID", patient, rows)
    voxels = np.bincount(case.label.voxels.ravel(), minlength=2)
    return {
        "case_id": bcs_dbt.dbt_case_id(*volume),
        "label_voxels": [int(n) for n in voxels],
        "density": case.density,
        "arc": case.arc,
    }
