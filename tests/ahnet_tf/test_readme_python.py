"""The README's lines of Python run as they stand, in a folder with an export and a CT."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
# A voxel of 2 x 2 x 4 mm has 0.016 ml.
AFFINE = np.diag([2.0, 2.0, 4.0, 1.0])
VOXEL_ML = 0.016


def test_readmes_lines_segment_a_ct(threshold_model, tissues, tmp_path, monkeypatch, capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## In Python\n+((?: {4}.*\n)+)", text, re.MULTILINE)
    lines = section[1].replace("\n    ", "\n").strip()
    assert len(lines.splitlines()) == 5
    shutil.copytree(threshold_model, tmp_path / "models" / "ahnet" / threshold_model.name)
    hu = np.random.default_rng(0).integers(-200, 300, (20, 18, 9)).astype(np.int16)
    nib.save(nib.Nifti1Image(hu, AFFINE), tmp_path / "ct.nii.gz")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(lines, names)
    expected = tissues(hu)
    volumes_ml = names["result"].volumes_ml
    assert volumes_ml.keys() == {"liver", "tumour"}
    assert np.isclose(volumes_ml["tumour"], (expected == 2).sum() * VOXEL_ML)
    assert "liver" in capsys.readouterr().out
    saved = nib.load("segmentation.nii.gz")
    np.testing.assert_array_equal(np.asarray(saved.dataobj), expected)
    np.testing.assert_array_equal(saved.affine, AFFINE)
    assert Path("overlay.png").read_bytes().startswith(b"\x89PNG")
