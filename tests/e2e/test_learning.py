"""A small network learns: a minute on synthetic breasts brings a score that no untrained network has."""

from __future__ import annotations

import attrs
import numpy as np
import pytest

from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.data.records import find_records
from ahnet_tf.inference.predictor import open_predictor
from ahnet_tf.inference.segment import segment_volume
from ahnet_tf.training.trainer import train_network
from preprocessing.convert import convert
from preprocessing.phantom.dataset import write_cases
from preprocessing.phantom.dbt import DBTSettings, make_case
from preprocessing.tasks import load_task
from preprocessing.volumes.geometry import spacing_mm

BREASTS = DBTSettings(
    shape_xyz=(64, 96, 16),
    spacing_mm=(1.0, 1.0, 1.5),
    fewest_masses=1,
    mass_diameter_mm=(9.0, 16.0),
    mass_contrast=(1.2, 1.3),
    lookalikes=1,
)
# A hit is as near as BCS-DBT's scorer wants it: 100 of its pixels.
REACH_MM = 8.5


@pytest.mark.slow
def test_ahnet_learns_to_find_masses(tmp_path):
    # A patch holds the depth over which a mass is smeared.
    task = attrs.evolve(
        load_task("dbt_lesion_small"),
        resampling="keep",
        spacing_mm=None,
        patch_shape_zyx=(16, 64, 64),
        patches_per_case=16,
    )
    model = ModelConfig(
        classes=2,
        intensity_window=task.intensity_window,
        activation="sigmoid",
        width=0.25,
        blocks=(1, 1, 1, 1),
        growth=16,
        dense_layers=1,
        norm="group",
        foreground_prior=0.01,
    )
    # With the seeds 3 and 4 it finds 0.89 and 0.79 of the masses. From run to run the order of threads moves
    # that by a tenth and more.
    training = TrainingConfig(
        steps=150,
        batch_size=2,
        learning_rate=3e-3,
        warmup_steps=10,
        class_weights=(1.0, 5.0),
        ema_momentum=0.9,
        elastic_mm=0.5,
        warp_probability=0.0,
        intensity_gamma=0.0,
        evaluate_every=0,
        checkpoint_every=150,
        seed=3,
    )
    write_cases(tmp_path / "cases", 10, 5, settings=BREASTS)
    convert([str(tmp_path / "cases")], str(tmp_path / "records"), task, progress=False)
    files = [find_records(tmp_path / "records" / split) for split in ("train", "eval")]
    train_network(model, training, task, *files, tmp_path / "run", progress=False)
    predictor = open_predictor(tmp_path / "run" / "last")

    cases = {number: make_case(5, number, BREASTS) for number in range(100, 120)}
    answers = []
    for number, case in cases.items():
        step_mm = np.array(spacing_mm(case.image.affine))
        truths = [middle(box, box.slice_index) for box in case.boxes]
        for lesion in segment_volume(case.image, predictor).lesions:
            place = middle(lesion, lesion.z + lesion.depth / 2)
            away_mm = [np.linalg.norm((place - truth) * step_mm) for truth in truths]
            near = min(away_mm, default=np.inf) <= REACH_MM
            answers.append((lesion.score, (number, np.argmin(away_mm)) if near else None))
    masses = sum(len(case.boxes) for case in cases.values())
    assert masses > 10
    recall = recall_at(answers, masses, wrong=2 * len(cases))
    assert recall > 0.5


def recall_at(answers, masses: int, wrong: int) -> float:
    """The share of masses that the surest answers find before more than `wrong` of them are wrong."""
    found = set()
    for _, mass in sorted(answers, key=lambda answer: -answer[0]):
        wrong -= mass is None
        if wrong < 0:
            break
        found.add(mass)
    return len(found - {None}) / masses


def middle(box, z: float) -> np.ndarray:
    return np.array([box.x + box.width / 2, box.y + box.height / 2, z])
