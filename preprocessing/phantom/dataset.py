"""Writes synthetic data sets: CT with LiTS names, or DBT with the tables of BCS-DBT."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from preprocessing.datasets import bcs_dbt
from preprocessing.errors import SettingsError
from preprocessing.files import write_json
from preprocessing.phantom import ct, dbt
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
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Writes cases `first` to `first + count - 1`; CT by default.

    CT: volume-N.nii.gz and segmentation-N.nii.gz. DBT: PHANTOM-N_VIEW.nii.gz, its _mask.nii.gz, and
    rows of boxes.csv and labels.csv. phantom.json holds the settings and the returned entries: each
    case's id and voxels per label value. Raises SettingsError if a number is negative, or a case
    exists and `overwrite` is not given.
    """
    settings = settings or ct.PhantomSettings()
    output = Path(output)
    if count < 1 or first < 0 or not SEED.holds(seed):
        expected = f"cases >= 1, first >= 0, and as the seed {SEED.expected}"
        raise SettingsError("phantom", expected, (count, first, seed))
    numbers = range(first, first + count)
    patterns = ["volume-{}.nii.gz", "segmentation-{}.nii.gz", "PHANTOM-{:05d}_*.nii.gz"]
    patterns = patterns[2:] if isinstance(settings, dbt.DBTSettings) else patterns[:2]
    names = [pattern.format(number) for number in numbers for pattern in patterns]
    existing = [path for name in names for path in sorted(output.glob(name))]
    if existing and not overwrite:
        expected = "a folder without these cases"
        raise SettingsError("--output", expected, existing[0], "Give --overwrite to replace.")
    cases = []
    for number in tqdm(numbers, "phantom", unit="case", disable=not progress):
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
    volume = (patient, f"0.{seed}.{number}", case.view)
    classes = [box.lesion_class for box in case.boxes]
    outcome = next((each for each in ("cancer", "benign") if each in classes), "normal")
    outcomes = [int(each.lower() == outcome) for each in bcs_dbt.OUTCOMES]
    labels = dict(zip(bcs_dbt.LABEL_COLUMNS, (*volume, *outcomes), strict=True))
    boxes = []
    for box in case.boxes:
        place = (box.slice_index, box.x, box.y, box.width, box.height)
        values = (*volume, number, *place, box.lesion_class, 0, box.volume_slices)
        boxes.append(dict(zip(bcs_dbt.BOX_COLUMNS, values, strict=True)))
    bcs_dbt.replace_rows(output / "boxes.csv", bcs_dbt.BOX_COLUMNS, "PatientID", patient, boxes)
    bcs_dbt.replace_rows(
        output / "labels.csv", bcs_dbt.LABEL_COLUMNS, "PatientID", patient, [labels]
    )
    voxels = np.bincount(case.label.voxels.ravel(), minlength=2)
    return {"case_id": bcs_dbt.dbt_case_id(*volume), "label_voxels": [int(n) for n in voxels]}
