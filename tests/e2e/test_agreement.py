"""Scores of the pipeline's Evaluator, from patches that tile each case, are those of whole volumes."""

import json
from types import SimpleNamespace

import keras
import nibabel as nib
import numpy as np
import pytest
import tensorflow as tf

from ahnet_tf.config import ModelConfig
from ahnet_tf.evaluate import main as evaluate
from ahnet_tf.inference.predictor import ExportSettings
from ahnet_tf.predict import main as predict
from pipeline.components.evaluator import (
    CONFUSION,
    SIGNATURE,
    CombineCases,
    confusion,
    regions,
    summarize,
)
from preprocessing.datasets.discovery import find_cases
from preprocessing.records.case_conversion import ConversionSettings, convert_case
from preprocessing.records.schema import CASE_ID
from preprocessing.tasks import Task
from serving.export.exporter import export_model

TASK = Task(
    name="t",
    class_names=("background", "liver", "tumour"),
    intensity_window=(-200.0, 250.0),
    patch_shape_zyx=(3, 4, 5),
)
# HU of air, tumour and liver to the network below, and to nobody else.
HU = np.array([0, 80, 55], np.int16)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Background below 45 HU, tumour from there to 65, liver above, whatever the window around."""
    image = keras.Input((None, None, None, 1))
    network = keras.Model(image, keras.layers.Conv3D(3, 1)(image))
    kernel = np.array([0, 1 / 20, 1 / 40], np.float32).reshape(1, 1, 1, 1, 3)
    network.set_weights([kernel, np.array([0, -55.25 / 20, -45.25 / 40], np.float32)])
    folder = tmp_path_factory.mktemp("models") / "1"
    return export_model(network, ExportSettings(TASK, ModelConfig(), (4, 8, 8)), folder)


def make_cases(folder):
    """Predictions that are partly wrong; no tumour at all, and none but in the prediction."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number, shape in enumerate([(11, 9, 7), (5, 4, 3), (13, 6, 10), (8, 8, 8)]):
        truth = random.choice(3, shape, p=[0.5, 0.3, 0.2]).astype(np.uint8)
        found = np.where(random.random(shape) < 0.2, random.choice(3, shape), truth)
        if number in (1, 2):
            truth[truth == 2] = 1
        if number == 1:
            found = np.minimum(found, 1)
        # Not the order of a tensor's axes.
        affine = np.diag([-1.0, -1.0, 3.0, 1.0])[:, [2, 0, 1, 3]]
        for name, voxels in (("volume", HU[found]), ("segmentation", truth)):
            nib.save(nib.Nifti1Image(voxels, affine), folder / f"{name}-{number}.nii.gz")


def scores_of_tiles(model, folder, records):
    """Sums the confusion counts of the eval split's records, as the Evaluator does."""
    (records / "eval").mkdir(parents=True)
    settings = ConversionSettings(task=TASK)
    for case in find_cases([folder], need_labels=True):
        assert convert_case(case, "eval", settings, str(records))["status"] == "converted"
    signature = tf.saved_model.load(str(model)).signatures[SIGNATURE]
    combine = CombineCases(confusion, summarize, {})
    halves = [combine.create_accumulator() for _ in range(2)]
    shards = sorted(map(str, (records / "eval").iterdir()))
    for number, record in enumerate(tf.data.TFRecordDataset(shards)):
        feature = tf.train.Example.FromString(record.numpy()).features.feature[CASE_ID]
        answer = signature(examples=record[tf.newaxis])[CONFUSION].numpy()
        patch = SimpleNamespace(
            features={CASE_ID: np.array(feature.bytes_list.value)},
            get_predictions=lambda _, answer=answer: {CONFUSION: answer},
        )
        # Any split of the patches among workers.
        combine.add_input(halves[number % 2], patch)
    return combine.merge_accumulators(halves)


def test_dice_of_tiles_is_that_of_whole_volumes(model, tmp_path):
    make_cases(tmp_path / "cases")
    confusions = scores_of_tiles(model, tmp_path / "cases", tmp_path / "records")
    words = [str(tmp_path / name) for name in ("cases", "predictions", "scores")]
    assert predict(["--model", str(model), *words[:2], "--overlap", "0.5"]) == 0
    assert evaluate([words[1], words[0], "--output", words[2]]) == 0
    whole = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert sorted(confusions) == [f"volume-{number}".encode() for number in range(4)]
    for case_id, counts in confusions.items():
        tiles = summarize([counts], regions(TASK))
        scores = whole["cases"][case_id.decode()]
        assert tiles["dice_liver"] == pytest.approx(scores["liver"]["dice"], abs=1e-6)
        assert tiles["dice_tumour"] == pytest.approx(scores["lesion_dice"], abs=1e-6)
    tiles = summarize(list(confusions.values()), regions(TASK))
    values = {name: score["value"] for name, score in whole["summary"].items()}
    for ours, theirs in (
        ("dice_liver", "liver_dice_per_case"),
        ("dice_global_liver", "liver_dice_global"),
        ("dice_tumour", "lesion_dice_per_case"),
        ("dice_global_tumour", "lesion_dice_global"),
    ):
        assert tiles[ours] == pytest.approx(values[theirs], abs=1e-6)
    # Neither all right nor all wrong, and each case by itself.
    dice = [summarize([each], regions(TASK))["dice_tumour"] for each in confusions.values()]
    assert dice[1] == 1
    assert dice[2] == 0
    assert 0.4 < dice[0] < 0.95
    assert dice[0] != dice[3]
