"""Records of boxes in noise, and the settings of a tiny network that learns them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tensorflow as tf

from ahnet_tf.config import ModelConfig, TrainingConfig
from preprocessing.records.schema import Patch, encode_patch
from preprocessing.tasks import Task

TASK = Task("toy", ("background", "liver", "tumour"), (-200.0, 250.0), patch_shape_zyx=(4, 32, 32))
MODEL = ModelConfig(architecture="unet2d", width=0.125, unet_levels=2, norm="group")
TRAINING = TrainingConfig(
    steps=8,
    batch_size=2,
    warmup_steps=2,
    learning_rate=3e-3,
    class_weights=(0.5, 1.0, 2.0),
    evaluate_every=4,
    checkpoint_every=4,
    log_every=2,
    seed=5,
)


def toy_patch(number: int, split: str) -> Patch:
    """A bright box (liver) with a dark core (tumour) in noise, somewhere in the plane."""
    rng = np.random.default_rng([number, split == "eval"])
    image = rng.normal(-150, 20, (4, 32, 32))
    label = np.zeros((4, 32, 32), np.uint8)
    y, x = rng.integers(2, 14, 2)
    label[:, y : y + 16, x : x + 16] = 1
    label[:, y + 5 : y + 11, x + 5 : x + 11] = 2
    image += np.select([label == 1, label == 2], [250.0, 130.0], 0.0)
    counts = np.bincount(label.ravel(), minlength=3)
    return Patch(
        image_zyx=image.astype(np.int16),
        label_zyx=label,
        case_id=f"{split}-{number}",
        source="toy",
        index=0,
        origin_zyx=(0, 0, 0),
        valid_zyx=(4, 32, 32),
        volume_shape_zyx=(4, 32, 32),
        spacing_mm=(1.0, 1.0, 5.0),
        intensity_quantiles=(-200.0, -150.0, 100.0),
        case_label_voxels=tuple(int(n) for n in counts),
    )


def write_records(folder: Path) -> Path:
    """Writes six patches to learn and three to evaluate with, as preprocessing.convert does."""
    folder.mkdir()
    (folder / "task.json").write_text(json.dumps(TASK.to_dict()))
    for split, count in (("train", 6), ("eval", 3)):
        (folder / split).mkdir()
        with tf.io.TFRecordWriter(str(folder / split / "a.tfrecord.gz"), "GZIP") as writer:
            for number in range(count):
                writer.write(encode_patch(toy_patch(number, split), TASK))
    return folder
