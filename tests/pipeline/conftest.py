"""A small task with hand-made records, and with records converted from phantom cases."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from preprocessing.files import write_json
from preprocessing.phantom.ct import PhantomSettings
from preprocessing.records.schema import Patch, encode_patch
from preprocessing.tasks import Task

# Settings of the smallest two-stage training that still learns.
TINY_SETTINGS = (
    *("steps=80", "batch_size=4", "learning_rate=0.01", "width=0.125", "blocks=[1,1,1,1]"),
    *("warmup_steps=2", "class_weights=[0.2,1.0,3.0]", "evaluate_every=80"),
    *("3d.growth=4", "3d.dense_layers=1", "3d.pvp_levels=1"),
    # An average over so few steps is still near the start weights.
    *("loss=focal", "ema_momentum=0"),
)
# Its data: cases of a few patches.
GRID = PhantomSettings(shape_xyz=(32, 32, 16), spacing_mm=(10.0, 10.0, 10.0))


@pytest.fixture(scope="session")
def tiny_settings() -> tuple[str, ...]:
    return TINY_SETTINGS


@pytest.fixture(scope="session")
def tiny_options() -> tuple[str, ...]:
    return ("--seed", "3", *(part for each in TINY_SETTINGS for part in ("--set", each)))


@pytest.fixture(scope="session")
def grid() -> PhantomSettings:
    return GRID


@pytest.fixture(scope="session")
def task() -> Task:
    return Task(
        name="tiny_ct",
        class_names=("background", "liver", "tumour"),
        intensity_window=(-200.0, 250.0),
        resampling="full",
        spacing_mm=(10.0, 10.0, 10.0),
        patch_shape_zyx=(8, 32, 32),
        patches_per_case=4,
    )


@pytest.fixture(scope="session")
def patch(task) -> Patch:
    """One whole case of 8 x 32 x 32 voxels: a liver slab with a tumour in it."""
    label = np.zeros(task.patch_shape_zyx, np.uint8)
    label[2:6, 8:24, 8:24] = 1
    label[3:5, 10:14, 10:14] = 2
    image = np.array([-100, 110, 40], np.int16)[label]
    return Patch(
        image_zyx=image,
        label_zyx=label,
        case_id="case-0",
        source="hand-made",
        index=0,
        origin_zyx=(0, 0, 0),
        valid_zyx=label.shape,
        volume_shape_zyx=label.shape,
        spacing_mm=(10.0, 10.0, 10.0),
        intensity_quantiles=(-100.0, -100.0, 110.0),
        case_label_voxels=tuple(np.bincount(label.ravel(), minlength=3).tolist()),
    )


@pytest.fixture(scope="session")
def write_records() -> Callable[[Path, list[Patch], Task], Path]:
    """Writes patches as the only record file of a split's folder."""

    def write(folder: Path, patches: list[Patch], task: Task) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "hand-made.tfrecord"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for patch in patches:
                writer.write(encode_patch(patch, task))
        return path

    return write


@pytest.fixture
def records(tmp_path, patch, task, write_records) -> Path:
    """A hand-made data set: one case to train on, another to evaluate on."""
    folder = tmp_path / "records"
    write_records(folder / "train", [patch], task)
    write_records(folder / "eval", [replace(patch, case_id="case-1")], task)
    write_json(folder / "task.json", task.to_dict())
    return folder


@pytest.fixture(scope="session")
def phantom_records(tmp_path_factory, task) -> Path:
    """Four phantom cases with tumours, two of them to evaluate on, as `convert` writes them."""
    from preprocessing.convert import convert
    from preprocessing.phantom.dataset import write_cases

    base = tmp_path_factory.mktemp("phantoms")
    write_cases(base / "cases", 4, seed=5, settings=GRID, progress=False)
    convert([str(base / "cases")], str(base / "records"), task, eval_fraction=0.5, progress=False)
    shutil.rmtree(base / "cases")
    return base / "records"
