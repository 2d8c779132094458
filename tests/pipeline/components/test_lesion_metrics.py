"""Lesions inside TFMA: from patches to FROC, against hand-made maps of known lesions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
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

# A volume of 8 x 40 x 48 voxels (z, y, x) in patches of 8 x 16 x 16, the last of them padded along y.
VOLUME_ZYX, PATCH_ZYX = (8, 40, 48), (8, 16, 16)
SPACING_MM = (0.85, 0.85, 1.0)


def ball(centre_zyx, height, radius=3.0):
    """A heat map of one lesion: `height` at its centre, falling to 0 at sqrt(2) radii."""
    distance = np.linalg.norm(np.indices(VOLUME_ZYX).T - np.array(centre_zyx), axis=-1).T
    return (height * np.clip(1 - (distance / radius) ** 2 / 2, 0, 1)).astype(np.float32)


def patches_of(reference, predicted, case_id=b"case"):
    """Cuts a case into patches, as the evaluation split is, with the model's answers."""
    stored = np.rint(255 * reference).astype(np.uint8)
    for y in range(0, VOLUME_ZYX[1], PATCH_ZYX[1]):
        for x in range(0, VOLUME_ZYX[2], PATCH_ZYX[2]):
            heat = np.zeros(PATCH_ZYX, np.uint8)
            # Padding answers too, and must not count.
            answer = np.ones(PATCH_ZYX, np.float32)
            rows = min(PATCH_ZYX[1], VOLUME_ZYX[1] - y)
            heat[:, :rows] = stored[:, y : y + rows, x : x + 16]
            answer[:, :rows] = predicted[:, y : y + rows, x : x + 16]
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


def test_a_patch_that_is_unsure_everywhere_keeps_its_highest_voxels():
    side = 512
    features = {CASE_ID: np.array([b"case"])}
    features[HEAT_MAP] = np.array([bytes(side * side)], object)
    for name, values in (("shape", (1, side, side)), ("origin", (0, 0, 0))):
        for axis, value in zip("zyx", values, strict=True):
            features[f"{name}_{axis}"] = np.array([value])
    for axis, value in zip("zyx", (1, side, side), strict=True):
        features[f"valid_{axis}"] = features[f"volume_{axis}"] = np.array([value])
    for axis in "xyz":
        features[f"spacing_{axis}_mm"] = np.array([1.0])
    probability = np.linspace(0.1, 0.9, side * side, dtype=np.float32).reshape(1, side, side)
    (maps,) = cut_maps(features, {LESION_PROBABILITY: probability})
    kept = maps.heights
    assert MOST_KEPT - 2 <= len(kept) <= MOST_KEPT
    assert kept.max() == probability.max()


@pytest.mark.slow
def test_tfma_scores_the_lesions_of_whole_cases(tmp_path):
    """Synthetic breasts, whose boxes say how many lesions there are, and a network that knows nothing."""
    breasts, records = tmp_path / "breasts", tmp_path / "records"
    made = ["--kind", "dbt", "--cases", "2", "--shape", "64", "96", "16", "--spacing-mm"]
    assert phantom([*made, "1", "1", "2", "--output", str(breasts)]) == 0
    options = ["--task", "dbt_lesion_small", "--patch-shape", "16", "64", "64"]
    options += ["--eval-fraction", "0.5", "--input", str(breasts), "--output", str(records)]
    assert convert(options) == 0
    task = load_task(str(records / "task.json"))
    config = run_config(
        task,
        settings=["width=0.0625", "blocks=[1,1,1,1]", "growth=4", "dense_layers=1", "pvp_levels=1"],
    ).stages["3d"]
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

    files = [str(path) for path in (records / "eval").iterdir()]
    maps: dict[str, np.ndarray] = {}
    predictor = open_predictor(export)
    for serialized in tf.data.TFRecordDataset(files):
        record = parse_example(serialized, task)
        start, size, shape = (
            [int(record[f"{name}_{axis}"]) for axis in "zyx"]
            for name in ("origin", "valid", "volume")
        )
        whole = maps.setdefault(record[CASE_ID].numpy().decode(), np.zeros(shape, np.float32))
        place = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
        answer = predictor.predict(record["image"].numpy()[None])[0, ..., 1]
        whole[place] = answer[tuple(slice(n) for n in size)]
    spacing = tuple(float(record[f"spacing_{axis}_mm"]) for axis in "xyz")
    found = {name: detect_lesions(each.transpose(), spacing) for name, each in maps.items()}
    manifest = json.loads((records / "manifest.json").read_text(encoding="utf-8"))
    boxes = sum(case["boxes"] for case in manifest["cases"] if case["split"] == "eval")
    assert scores["overall"]["cases"] == len(maps)
    assert scores["overall"]["lesions"] == boxes
    hit = round(scores["overall"]["lesion_recall"] * boxes) if boxes else 0
    detections = sum(map(len, found.values()))
    missed = round(scores["overall"]["false_positives_per_volume"] * len(maps))
    assert detections - missed >= hit
    for name, each in found.items():
        of_case = scores[f"case_id={name}"]
        assert of_case["false_positives_per_volume"] <= len(each)
