"""Lesions inside TFMA: from patches to FROC, against hand-made maps of known lesions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
from scipy import ndimage
from tensorflow_model_analysis import metrics as tfma_metrics

from ahnet_tf.evaluation.froc import ScoredVolume
from ahnet_tf.inference.lesion_nms import detect_lesions
from ahnet_tf.inference.predictor import ExportSettings, open_predictor
from ahnet_tf.networks import build_network
from ahnet_tf.presets import run_config
from pipeline.components.evaluator import CombineCases, make_eval_config, read_scores
from pipeline.components.lesion_metrics import (
    LESION_PROBABILITY,
    MOST_KEPT,
    cut_maps,
    lesion_score_names,
    lesion_summary,
    score_cases,
    score_maps,
)
from preprocessing.convert import main as convert
from preprocessing.phantom.__main__ import main as phantom
from preprocessing.records.schema import CASE_ID, HEAT_MAP, parse_example
from preprocessing.tasks import load_task
from serving.export.exporter import export_model

# A volume of 8 x 40 x 48 voxels (z, y, x) in patches of 8 x 16 x 16; of the first, eight rows count.
VOLUME_ZYX, PATCH_ZYX = (8, 40, 48), (8, 16, 16)
SPACING_MM = (0.85, 0.85, 1.0)


def ball(centre_zyx, height, radius=3.0):
    """A heat map of one lesion: `height` at its centre, falling to 0 at sqrt(2) radii."""
    distance = np.linalg.norm(np.indices(VOLUME_ZYX).T - np.array(centre_zyx), axis=-1).T
    return (height * np.clip(1 - (distance / radius) ** 2 / 2, 0, 1)).astype(np.float32)


def patches_of(reference, predicted, case_id=b"case"):
    """Cuts a case into patches, as the evaluation split is, with the model's answers."""
    stored = np.rint(255 * reference).astype(np.uint8)
    for y, rows in ((0, 8), (8, 16), (24, 16)):
        for x in range(0, VOLUME_ZYX[2], PATCH_ZYX[2]):
            heat = stored[:, y : y + 16, x : x + 16]
            answer = predicted[:, y : y + 16, x : x + 16].copy()
            # What another patch counts is answered too, and must not count here.
            answer[:, rows:] = 1
            numbers = {"shape": PATCH_ZYX, "origin": (0, y, x), "volume": VOLUME_ZYX}
            numbers["valid"] = (8, rows, 16)
            features = {CASE_ID: np.array([case_id]), HEAT_MAP: np.array([heat.tobytes()], object)}
            for name, values in numbers.items():
                for axis, value in zip("zyx", values, strict=True):
                    features[f"{name}_{axis}"] = np.array([value])
            for axis, value in zip("xyz", SPACING_MM, strict=True):
                features[f"spacing_{axis}_mm"] = np.array([value])
            yield tfma_metrics.StandardMetricInputs(
                features=features, predictions={LESION_PROBABILITY: answer[None]}
            )


def combined(patches):
    keys = {name: tfma_metrics.MetricKey(name) for name in lesion_score_names()}
    collect = CombineCases(cut_maps, score_cases, keys)
    bundles = [collect.create_accumulator(), collect.create_accumulator()]
    for number, patch in enumerate(patches):
        bundles[number % 2] = collect.add_input(bundles[number % 2], patch)
    merged = collect.merge_accumulators(bundles)
    scores = collect.extract_output(merged)
    return merged, {name: scores[keys[name]] for name in keys}


def test_the_patches_of_a_case_give_the_detections_of_its_whole_map():
    """The lesion lies across the borders of four patches."""
    predicted = np.maximum(ball((4, 16, 16), 0.9), ball((4, 34, 40), 0.4))
    merged, _ = combined(patches_of(ball((4, 16, 16), 1.0), predicted))
    whole = detect_lesions(predicted.transpose(), SPACING_MM)
    scored = score_maps(merged[b"case"])
    assert scored.scores.tolist() == pytest.approx([found.score for found in whole])
    # The second is 24.9 mm away: further than 8.5 mm.
    assert scored.hits.tolist() == [0, -1]
    assert scored.boxes == 1


def test_scores_of_a_slice_by_hand():
    """Three cases: found at 0.9; missed, with a false alarm at 0.6; none there, a false alarm at 0.5."""
    found = patches_of(ball((4, 16, 16), 1.0), ball((4, 16, 16), 0.9), b"a")
    missed = patches_of(ball((4, 16, 16), 1.0), ball((4, 34, 40), 0.6), b"b")
    healthy = patches_of(np.zeros(VOLUME_ZYX), ball((4, 10, 10), 0.5), b"c")
    _, scores = combined([*found, *missed, *healthy])
    assert scores["lesions"] == 2
    assert scores["lesion_recall"] == 0.5
    assert scores["false_positives_per_volume"] == pytest.approx(2 / 3)
    assert scores["sensitivity_at_2_fp_all_volumes"] == 0.5


def test_recall_is_undefined_without_lesions():
    scores = lesion_summary([ScoredVolume(0, np.array([0.5]), np.array([-1]))])
    assert scores["false_positives_per_volume"] == 1
    assert math.isnan(scores["lesion_recall"])
    assert math.isnan(scores["sensitivity_at_2_fp_all_volumes"])


def test_a_hit_means_the_same_distance_on_every_grid():
    """8.5 mm are ten voxels here: nine away is a hit, eleven away is none."""
    for away, hits in ((9, [0]), (11, [-1])):
        predicted = ball((4, 16, 16 + away), 0.9, radius=1.5)
        merged, _ = combined(patches_of(ball((4, 16, 16), 1.0, radius=1.5), predicted))
        assert score_maps(merged[b"case"]).hits.tolist() == hits


def slice_answer(probability):
    """Returns what `cut_maps` keeps of a patch of one slice [y, x] without a lesion."""
    shape = (1, *probability.shape)
    features = {CASE_ID: np.array([b"case"])}
    features[HEAT_MAP] = np.array([bytes(probability.size)], object)
    numbers = {"origin": (0, 0, 0)} | dict.fromkeys(("shape", "valid", "volume"), shape)
    for name, values in numbers.items():
        for axis, value in zip("zyx", values, strict=True):
            features[f"{name}_{axis}"] = np.array([value])
    for axis in "xyz":
        features[f"spacing_{axis}_mm"] = np.array([1.0])
    (maps,) = cut_maps(features, {LESION_PROBABILITY: probability[None]})
    return maps


def test_a_patch_that_is_unsure_everywhere_keeps_its_highest_voxels():
    probability = np.linspace(0.1, 0.9, 512 * 512, dtype=np.float32).reshape(512, 512)
    kept = slice_answer(probability).heights
    assert len(kept) == MOST_KEPT
    assert kept.tolist() == probability.ravel()[-MOST_KEPT:].tolist()


def test_a_saturated_network_has_a_false_positive():
    """More voxels than are kept share the highest probability."""
    maps = slice_answer(np.ones((512, 512), np.float32))
    assert len(maps.places) == MOST_KEPT
    assert lesion_summary([score_maps([maps])])["false_positives_per_volume"] == 1


def test_of_equal_voxels_as_many_are_kept_as_there_is_room_for():
    probability = np.full((512, 512), 0.5, np.float32)
    probability[-1] = 0.75
    maps = slice_answer(probability)
    assert len(maps.places) == MOST_KEPT
    assert np.count_nonzero(maps.heights == 0.75) == 512
    assert maps.places.tolist()[: MOST_KEPT - 512] == list(range(MOST_KEPT - 512))


@pytest.mark.slow
def test_tfma_scores_the_lesions_of_whole_cases(tmp_path):
    """Synthetic breasts, whose boxes say how many lesions there are, and a network that knows nothing."""
    breasts, records = tmp_path / "breasts", tmp_path / "records"
    made = [
        "--kind",
        "dbt",
        "--cases",
        "2",
        "--seed",
        "1",
        "--shape",
        "64",
        "96",
        "16",
        "--spacing-mm",
    ]
    assert phantom([*made, "1", "1", "2", "--output", str(breasts)]) == 0
    options = ["--task", "dbt_lesion_small", "--patch-shape", "16", "64", "64"]
    options += ["--eval-fraction", "0.5", "--input", str(breasts), "--output", str(records)]
    assert convert(options) == 0
    task = load_task(str(records / "task.json"))
    settings = ["3d.architecture=unet3d", "unet_levels=2", "width=0.0625"]
    config = run_config(task, settings=settings).stages["3d"]
    export = export_model(
        build_network(config.model, seed=1),
        ExportSettings(task, config.model, task.patch_shape_zyx),
        tmp_path / "export",
    )
    evaluation = tfma.utils.update_eval_config_with_defaults(
        make_eval_config(task, {"lesion_recall": 0.0}, 0.0), has_baseline=False, rubber_stamp=True
    )
    tfma.run_model_analysis(
        tfma.default_eval_shared_model(str(export), eval_config=evaluation),
        eval_config=evaluation,
        data_location=str(records / "eval" / "*"),
        output_path=str(tmp_path / "scores"),
    )
    scores = read_scores(str(tmp_path / "scores"))

    heat, lesions, spacing_mm = whole_maps(open_predictor(export), records / "eval", task)
    expected = {}
    for name in heat:
        detections = detect_lesions(heat[name].transpose(), spacing_mm)
        regions, count = ndimage.label(lesions[name], np.ones((3, 3, 3)))
        boxes = ndimage.find_objects(regions)
        hit = [hits(each, boxes, heat[name].shape, spacing_mm) for each in detections]
        expected[name] = (count, len(set(hit) - {None}), hit.count(None))
    boxes, found, missed = np.sum(list(expected.values()), axis=0)
    manifest = json.loads((records / "manifest.json").read_text(encoding="utf-8"))
    assert boxes == sum(case["boxes"] for case in manifest["cases"] if case["split"] == "eval")
    # Otherwise a network that finds nothing would do.
    assert boxes > 0
    assert missed > 0
    assert scores["overall"]["cases"] == len(heat)
    assert scores["overall"]["lesions"] == boxes
    assert scores["overall"]["lesion_recall"] == pytest.approx(found / boxes)
    rate = scores["overall"]["false_positives_per_volume"]
    assert rate == pytest.approx(missed / len(heat))
    for name, (own_boxes, own_found, own_missed) in expected.items():
        of_case = scores[f"case_id={name}"]
        assert of_case["lesions"] == own_boxes
        assert of_case["false_positives_per_volume"] == own_missed
        if own_boxes:
            assert of_case["lesion_recall"] == pytest.approx(own_found / own_boxes)


def whole_maps(predictor, folder, task):
    """Returns heat maps and lesions [z, y, x] of the cases in a split, and the spacing."""
    heat: dict[str, np.ndarray] = {}
    lesions: dict[str, np.ndarray] = {}
    for serialized in tf.data.TFRecordDataset([str(path) for path in folder.iterdir()]):
        record = parse_example(serialized, task)
        start, size, shape = (
            [int(record[f"{name}_{axis}"]) for axis in "zyx"]
            for name in ("origin", "valid", "volume")
        )
        name = record[CASE_ID].numpy().decode()
        place = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
        inside = tuple(slice(n) for n in size)
        answer = predictor.predict(record["image"].numpy()[None])[0, ..., 1]
        heat.setdefault(name, np.zeros(shape, np.float32))[place] = answer[inside]
        lesion = record["label"].numpy() > 0
        lesions.setdefault(name, np.zeros(shape, bool))[place] = lesion[inside]
    return heat, lesions, tuple(float(record[f"spacing_{axis}_mm"]) for axis in "xyz")


def hits(detection, regions, shape_zyx, spacing_mm):
    """Returns the number of the nearest lesion that a detection hits by the challenge's rule, or None."""
    reached = []
    for number, region in enumerate(regions):
        middle = [(side.start + side.stop) / 2 for side in reversed(region)]
        size_mm = [
            (side.stop - side.start) * mm
            for side, mm in zip(reversed(region), spacing_mm, strict=True)
        ]
        dx, dy = (
            (getattr(detection, axis) + getattr(detection, length) / 2 - middle[index])
            * spacing_mm[index]
            for index, (axis, length) in enumerate((("x", "width"), ("y", "height")))
        )
        dz = detection.z + detection.depth / 2 - middle[2]
        near = math.hypot(dx, dy) <= max(8.5, math.hypot(*size_mm[:2]) / 2)
        if near and abs(dz) <= shape_zyx[0] / 4:
            reached.append((math.hypot(dx / 0.085, dy / 0.085, dz), number))
    return min(reached)[1] if reached else None
