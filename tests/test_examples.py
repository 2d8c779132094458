"""The examples are true: their files load, fit each other, and read label maps as their page says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from ahnet_tf.presets import run_config
from preprocessing.datasets.discovery import find_cases
from preprocessing.datasets.reading import read_case_label
from preprocessing.tasks import load_task
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.nifti import write_image

ROOT = Path(__file__).resolve().parents[1]
REAL_CT = ROOT / "examples" / "real_ct"
PAGE = (ROOT / "docs" / "real_ct.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def task():
    return load_task(str(REAL_CT / "task.json"))


def test_settings_fit_the_task_and_need_no_evaluation_split(task):
    run = run_config(task, config_file=REAL_CT / "training.json")
    assert {stage.training.evaluate_every for stage in run.stages.values()} == {0}
    two, three = (run.stages[stage].model for stage in ("2d", "3d"))
    assert (two.norm, two.width, two.blocks) == (three.norm, three.width, three.blocks)
    # Left and right tell the liver from the spleen.
    assert {stage.training.flip_probability for stage in run.stages.values()} == {0}


def test_tumours_are_learned_as_liver(task, tmp_path):
    labels = np.array([[[0, 1, 2], [2, 1, 0]]], np.uint8)
    for name, voxels in (("ct", np.arange(6, dtype=np.int16).reshape(1, 2, 3)), ("liver", labels)):
        write_image(tmp_path / "scan" / f"{name}.nii.gz", Volume(voxels, np.eye(4)))
    (case,) = find_cases([tmp_path / "scan"], need_labels=True)
    assert np.array_equal(read_case_label(case, task).voxels, labels > 0)


def test_files_that_the_page_names_exist():
    named = set(re.findall(r"\bexamples/\S+\.json\b", PAGE))
    assert {ROOT / name for name in named} == set(REAL_CT.iterdir())
