"""The report predicts a sample of bounded size, and takes all scores from the Evaluator."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
from tfx.types import standard_artifacts
from tfx.types.experimental.simple_artifacts import File

from ahnet_tf.inference.predictor import ExportSettings, Predictor
from ahnet_tf.networks import build_network
from ahnet_tf.presets import run_config
from pipeline.components.case_volumes import SAMPLE, choose_cases, write_cases
from pipeline.components.evaluator import INFERENCE_BATCH_SIZE, make_eval_config
from pipeline.components.report import write_report
from preprocessing.records.schema import encode_patch, parse_example
from serving.export.exporter import export_model


def evaluated(dice):
    """The Evaluator's scores of cases, from the Dice of the tumour; that of the liver is better."""
    return {"overall": {"dice_liver": 0.5}} | {
        f"case_id={case_id}": {"dice_liver": value + 0.1, "dice_tumour": value}
        for case_id, value in dice.items()
    }


def test_the_sample_is_half_the_worst_cases_and_half_drawn_by_their_ids(task):
    ids = [f"case-{number}" for number in range(1000)]
    rising = dict(zip(ids, np.linspace(0, 0.9, 1000), strict=True))
    chosen = choose_cases(evaluated(rising), ids, task)
    assert len(chosen) == len(set(chosen)) == SAMPLE == 20
    assert chosen[:10] == ids[:10]
    # Another model has other worst cases; those drawn are the same, or were shown as the worst.
    falling = dict(zip(ids, np.linspace(0.9, 0, 1000), strict=True))
    other = choose_cases(evaluated(falling), set(ids), task)
    assert other[:10] == ids[:-11:-1]
    assert len(other) == 20
    assert set(other[10:]) <= set(chosen)
    assert other[10:] != sorted(other[10:])
    # A case is as bad as its worst class.
    liver = evaluated(rising)
    liver["case_id=case-700"]["dice_liver"] = -1.0
    assert choose_cases(liver, ids, task, 4)[:2] == ["case-700", "case-0"]


def test_a_small_data_set_is_shown_whole_and_other_spans_are_not(task):
    scores = evaluated({"a": 0.5, "b": 0.2, "c": 0.9, "old": 0.0})
    assert choose_cases(scores, {"a", "b", "c", "unscored"}, task) == ["b", "a", "c"]


def test_patches_are_predicted_in_batches_and_put_together_exactly(
    phantom_records, task, model_config, tmp_path
):
    """The "network" calls the voxels above 100 HU liver, so that the volumes are known."""
    sizes = []

    def predict(windows):
        sizes.append(len(windows))
        liver = (windows[..., 0] > 100).astype(np.float32)
        return np.stack([1 - liver, liver, np.zeros_like(liver)], axis=-1)

    predictor = Predictor(ExportSettings(task, model_config, task.patch_shape_zyx), predict)
    files = sorted(map(str, (phantom_records / "eval").iterdir()))
    records = [parse_example(each, task) for each in tf.data.TFRecordDataset(files)]
    ids = list(dict.fromkeys(each["case_id"].numpy().decode() for each in records))
    write_cases(files, predictor, ids, tmp_path / "both")
    assert sizes == [INFERENCE_BATCH_SIZE, len(records) - INFERENCE_BATCH_SIZE]
    for case_id in ids:
        images, references, predictions = (
            np.asanyarray(nib.load(tmp_path / "both" / kind / f"{case_id}.nii").dataobj)
            for kind in ("images", "references", "predictions")
        )
        own = [each for each in records if each["case_id"].numpy().decode() == case_id]
        assert images.shape == tuple(int(own[0][f"volume_{axis}"]) for axis in "xyz")
        np.testing.assert_array_equal(predictions, images > 100)
        for value in range(3):
            assert np.sum(references == value) == int(own[0][f"case_voxels_label_{value}"])
    assert not list((tmp_path / "both").rglob("*.npy"))

    # One case of them: only its patches are predicted, and nothing after its last is read.
    sizes.clear()
    damaged = tmp_path / "z.tfrecord"
    damaged.write_bytes(b"no records")
    write_cases([*files, str(damaged)], predictor, ids[:1], tmp_path / "one")
    assert [path.name for path in (tmp_path / "one" / "images").iterdir()] == [f"{ids[0]}.nii"]
    own = sum(each["case_id"].numpy().decode() == ids[0] for each in records)
    assert sum(sizes) == own


@pytest.mark.slow
def test_a_report_of_more_cases_than_the_sample(
    patch, task, model_config, statistics_of_records, write_records, tmp_path
):
    """24 cases are evaluated; 20 are predicted again, and the card has the scores of all."""
    random = np.random.default_rng(0)
    cases = []
    for number in range(24):
        image = patch.image_zyx + random.normal(0, 40, patch.image_zyx.shape).astype(np.int16)
        label = patch.label_zyx.copy()
        label[3:5, 10:14, 8 : 9 + number] = 2
        cases.append(replace(patch, case_id=f"case-{number}", image_zyx=image, label_zyx=label))

    def made(kind, name, **properties):
        artifact = kind()
        artifact.uri = str(tmp_path / name)
        Path(artifact.uri).mkdir(exist_ok=True)
        for key, value in properties.items():
            artifact.set_int_custom_property(key, value)
        return artifact

    examples = made(standard_artifacts.Examples, "examples")
    statistics = made(standard_artifacts.ExampleStatistics, "statistics")
    for artifact in (examples, statistics):
        artifact.split_names = '["train", "eval"]'
    for split, patches in (("train", [patch]), ("eval", cases)):
        write_records(tmp_path / "examples" / f"Split-{split}", patches, task)
        found = statistics_of_records([encode_patch(each, task) for each in patches], task)
        folder = tmp_path / "statistics" / f"Split-{split}"
        folder.mkdir()
        (folder / "FeatureStats.pb").write_bytes(found.SerializeToString())
    model = made(standard_artifacts.Model, "model")
    export = export_model(
        build_network(model_config, seed=1),
        ExportSettings(task, model_config, task.patch_shape_zyx),
        tmp_path / "model" / "Format-Serving",
    )
    config = tfma.utils.update_eval_config_with_defaults(
        make_eval_config(task, {"liver": 0.0}, 0.0), has_baseline=False, rubber_stamp=True
    )
    tfma.run_model_analysis(
        tfma.default_eval_shared_model(str(export), eval_config=config),
        eval_config=config,
        data_location=str(tmp_path / "examples" / "Split-eval" / "*"),
        output_path=str(tmp_path / "evaluation"),
    )
    report = made(File, "report")
    settings = {
        "name": "ahnet",
        "task": task.to_dict(),
        "config": run_config(task).to_dict(),
        "thresholds": {"dice_liver": 0.0},
        "start": "scratch",
        "code_version": "0",
    }
    write_report.EXECUTOR_SPEC.executor_class().Do(
        {
            "examples": [examples],
            "statistics": [statistics],
            "model": [model],
            "evaluation": [made(standard_artifacts.ModelEvaluation, "evaluation")],
            "blessing": [made(standard_artifacts.ModelBlessing, "blessing", blessed=1)],
            "serving": [made(standard_artifacts.InfraBlessing, "serving", blessed=1)],
            "pushed_model": [made(standard_artifacts.PushedModel, "pushed")],
        },
        {"report": [report]},
        {"settings": json.dumps(settings)},
    )
    facts = json.loads((tmp_path / "report" / "facts.json").read_text(encoding="utf-8"))
    assert facts["scores"]["overall"]["cases"] == 24
    of_cases = {
        name.removeprefix("case_id="): min(each["dice_liver"], each["dice_tumour"])
        for name, each in facts["scores"].items()
        if name.startswith("case_id=")
    }
    assert len(set(of_cases.values())) >= 20
    assert facts["shown"][:10] == sorted(of_cases, key=lambda each: (of_cases[each], each))[:10]
    with open(tmp_path / "report" / "scores" / "scores.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["case_id"] for row in rows) == sorted(facts["shown"])
    assert len(rows) == SAMPLE
    assert facts["largest_difference"] <= 1e-6
    card = (tmp_path / "report" / "model_card.md").read_text(encoding="utf-8")
    assert "| overall | 24 |" in card
    assert "Whole volumes of 20 of these cases" in card
