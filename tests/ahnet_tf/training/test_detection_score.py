"""FROC while training: volumes put together from tiles, lesions matched in mm, the network to keep."""

import json
import math
from collections import Counter

import attrs
import numpy as np
import pytest
import tensorflow as tf

from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.inference.ensemble import mean_predictor
from ahnet_tf.inference.predictor import open_predictor
from ahnet_tf.training.detection_score import FROC, VolumeDetections
from ahnet_tf.training.logs import read_history
from ahnet_tf.training.run_folder import keep_best
from ahnet_tf.training.train_state import Progress
from ahnet_tf.training.trainer import train_network
from ahnet_tf.training.validation import MEAN_DICE, CaseDice
from ahnet_tf.weights.checkpoint import load_network
from preprocessing.records.schema import Patch, encode_patch
from preprocessing.tasks import Task

TASK = Task(
    "spots",
    ("background", "lesion"),
    (0.0, 1000.0),
    image_dtype="uint16",
    outside_value=0,
    patch_shape_zyx=(4, 32, 32),
    target="heat_map",
)
MODEL = ModelConfig(
    architecture="unet2d",
    width=0.125,
    unet_levels=2,
    norm="group",
    classes=1,
    activation="sigmoid",
    intensity_window=(0.0, 1000.0),
)
VOLUME_ZYX = (4, 32, 48)


def spots(*centres):
    """A lesion mask [z, y, x] of cubes with a side of 3 voxels."""
    label = np.zeros(VOLUME_ZYX, np.uint8)
    for z, y, x in centres:
        label[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2] = 1
    return label


def tiles(case, probability, label, spacing_mm=(1.0, 1.0, 1.0)):
    """A volume as tiles of 4 x 32 x 32, the first one with half of its columns in the second."""
    names = ("probability", "label")
    found = []
    for start, width in ((0, 16), (16, 32)):
        cut = [a[..., start : start + 32].copy() for a in (probability, label)]
        # What the second tile counts must not come from the first.
        cut[0][..., width:] = 0.99
        weight = np.zeros((4, 32, 32))
        weight[..., :width] = 1
        places = {
            "origin_zyx": (0, 0, start),
            "valid_zyx": (4, 32, width),
            "volume_zyx": VOLUME_ZYX,
        }
        found.append(
            dict(zip(names, cut, strict=True))
            | {"case_id": case.encode(), "weight": weight, "spacing_mm": np.array(spacing_mm)}
            | {name: np.array(place) for name, place in places.items()}
        )
    return found


def batch(*of):
    return {name: np.stack([tile[name] for tile in of]) for name in of[0]}


def test_lesions_are_found_across_tiles_that_come_mixed():
    # The lesion of "a" lies in both tiles; "b" has one lesion, not found, and a false positive.
    at_border, elsewhere = spots((1, 10, 32)), spots((2, 25, 4))
    a = tiles("a", 0.9 * at_border, at_border)
    b = tiles("b", 0.6 * elsewhere, at_border)
    filling = a[0] | {"weight": np.zeros((4, 32, 32))}
    detections = VolumeDetections()
    detections.add(batch(b[1], a[1]))
    assert not detections.volumes
    detections.add(batch(a[0], filling))
    assert list(detections.volumes) == ["a"]
    detections.add(batch(b[0], filling))
    hits = {case: (found.boxes, found.hits.tolist()) for case, found in detections.volumes.items()}
    assert hits == {"a": (1, [0]), "b": (1, [-1])}
    # One of two lesions at any rate of false positives.
    assert detections.score() == 0.5


def test_a_near_miss_is_measured_in_mm():
    """8.5 mm, the challenge's 100 voxels: 10 voxels of 0.8 mm are a hit, of 0.9 mm a miss."""
    label, miss = spots((1, 10, 10)), spots((1, 10, 20))
    for spacing, score in ((0.8, 1.0), (0.9, 0.0)):
        detections = VolumeDetections()
        detections.add(batch(*tiles("a", miss.astype(float), label, (spacing, spacing, 1.0))))
        assert detections.score() == score


def test_without_lesions_there_is_no_score():
    detections = VolumeDetections()
    detections.add(batch(*tiles("a", spots((1, 10, 10)).astype(float), spots())))
    assert math.isnan(detections.score())


def test_of_equal_networks_the_later_is_kept(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(
        "ahnet_tf.training.run_folder.save_network", lambda *of: saved.append(int(progress.step))
    )
    progress = Progress()
    for step, both in enumerate((3, 4, 4, 2, 4)):
        progress.step.assign(step)
        found = CaseDice(["lesion"], {"a": np.array([[both, 5, 5]])})
        row = keep_best(found, progress, None, MODEL, tmp_path)
        assert row == {MEAN_DICE: both / 5, "dice_lesion": both / 5, "undefined_lesion": 0}
    assert saved == [0, 1, 2, 4]
    assert json.loads((tmp_path / "evaluation.json").read_text())["step"] == 4
    # A network without a score is as good as one of score 0.
    worst = Progress()
    found = CaseDice(["lesion"], {"a": np.array([[5, 5, 5]])}, VolumeDetections())
    found.detections.add(batch(*tiles("a", spots().astype(float), spots((1, 10, 10)))))
    assert keep_best(found, worst, None, MODEL, tmp_path)[FROC] == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())["measure"] == FROC


def patches(number):
    """The tiles of a volume with a bright spot, as `preprocessing.convert` writes them."""
    rng = np.random.default_rng(number)
    label = spots((1, *rng.integers(4, 28, 2).tolist()))
    image = (rng.normal(300, 30, VOLUME_ZYX) + 500.0 * label).astype(np.uint16)
    for index, tile in enumerate(tiles(f"volume-{number}", image, label)):
        yield Patch(
            image_zyx=tile["probability"],
            label_zyx=tile["label"],
            case_id=f"volume-{number}",
            source="spots",
            index=index,
            origin_zyx=tuple(tile["origin_zyx"].tolist()),
            valid_zyx=tuple(tile["valid_zyx"].tolist()),
            volume_shape_zyx=VOLUME_ZYX,
            spacing_mm=(1.0, 1.0, 1.0),
            intensity_quantiles=(0.0, 0.0, 0.0),
            case_label_voxels=(label.size - 27, 27),
            heat_map_zyx=255 * tile["label"],
        )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training of a network with one output on a task of heat maps."""
    folder = tmp_path_factory.mktemp("spots")
    files = []
    for split, numbers in (("train", range(4)), ("eval", range(4, 6))):
        files.append([str(folder / f"{split}.tfrecord")])
        with tf.io.TFRecordWriter(files[-1][0]) as writer:
            for number in numbers:
                for patch in patches(number):
                    writer.write(encode_patch(patch, TASK))
    settings = TrainingConfig(
        steps=6, warmup_steps=1, batch_size=3, evaluate_every=3, checkpoint_every=3, log_every=3
    )
    output = folder / "run"
    return output, train_network(MODEL, settings, TASK, *files, output, progress=False)


@pytest.mark.slow
def test_a_network_of_heat_maps_is_chosen_by_froc(run):
    output, result = run
    rows = read_history(output / "history.csv")
    found = {row["step"]: row[FROC] for row in rows if not math.isnan(row[FROC])}
    assert sorted(found) == [3, 6]
    assert all(math.isnan(row[MEAN_DICE]) for row in rows)
    best = max(found.values())
    # history.csv has six digits.
    assert (result.measure, result.score) == (FROC, pytest.approx(best, rel=1e-5))
    assert result.best_step == max(step for step, score in found.items() if score == best)
    assert json.loads((output / "training.json").read_text())["measure"] == FROC
    names = Counter()
    for path in (output / "tensorboard" / "scalars").glob("*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            names.update(value.tag for value in event.summary.value)
    assert names["froc/mean_sensitivity"] == 2
    assert names["dice/mean"] == 0


@pytest.mark.slow
def test_a_network_with_one_output_predicts_two_classes(run):
    network, config = load_network(run[0])
    assert config == MODEL
    image = next(patches(9)).image_zyx[None, ..., None].astype(np.float32)
    logits = network(image).numpy()
    assert logits.shape[-1] == 1
    predictor = open_predictor(run[0])
    found = predictor.predict(image)
    lesion = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(found, np.concatenate([1 - lesion, lesion], -1), atol=1e-5)
    both = mean_predictor([predictor, predictor], "ab").predict(image)
    np.testing.assert_allclose(both, found, atol=1e-6)
    assert attrs.evolve(MODEL, classes=2).class_count == MODEL.class_count == 2
