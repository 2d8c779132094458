"""Whole runs of the pipeline on phantom cases, each of them real and as small as can be."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from ahnet_tf.predictors import open_predictor
from pipeline.local_runner import EXIT_CODE_REFUSED, OPTIONS_VARIABLE, main
from preprocessing.records import parse_example

ROOT = Path(__file__).resolve().parents[2]
COMPONENTS = [
    "ImportExampleGen",
    "TaskSchema",
    "StatisticsGen",
    "ExampleValidator",
    "AnomalyGate",
    "Trainer2D",
    "Trainer3D",
    "LatestBlessedModel",
    "Evaluator",
    "Pusher",
]
# A resolver looks up what is there; it executes nothing.
EXECUTED = [name for name in COMPONENTS if name != "LatestBlessedModel"]
THRESHOLD = 0.2

pytestmark = pytest.mark.slow


def read_result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run_options(phantom_records, tmp_path_factory, tiny_options) -> list[str]:
    run = tmp_path_factory.mktemp("pipeline") / "run"
    return ["--input", str(phantom_records), "--output", str(run), *tiny_options]


@pytest.fixture(scope="module")
def first_run(run_options) -> tuple[Path, dict]:
    """The folder and the result of a first run, whose model is blessed."""
    assert main([*run_options, "--threshold-liver", str(THRESHOLD)]) == 0
    run = Path(run_options[3])
    return run, read_result(run)


def test_each_component_is_executed_once(first_run):
    run, result = first_run
    assert set(result["seconds"]) == {"imports", *COMPONENTS}
    assert result["executed"] == EXECUTED
    for name in EXECUTED:
        outputs = list((run / "artifacts" / name).glob("*/*"))
        assert len({path.name for path in outputs if path.name.isdigit()}) <= 1, name


def test_the_model_is_blessed_and_the_pushed_one_answers(first_run, task):
    run, result = first_run
    assert result["blessed"]
    assert result["refusals"] == []
    assert result["scores"]["overall"]["dice_liver"] >= THRESHOLD
    assert Path(result["pushed"]).parent == run / "serving_model"
    predictor = open_predictor(run / "serving_model")
    assert predictor.settings.task == task
    probabilities = predictor.predict(np.zeros((1, *task.patch_shape_zyx, 1), np.int16))
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)


def test_the_3d_network_started_from_the_2d_one(first_run):
    run, _ = first_run
    (report,) = run.glob("artifacts/Trainer3D/model_run/*/transfer.txt")
    copied = report.read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(r"copied: [1-9]\d* weights, .*", copied)


def test_the_evaluators_dice_is_that_of_numpy_on_the_same_tiles(first_run, phantom_records, task):
    """Adds the masks' voxels of each case up in NumPy: nothing here is the pipeline's code."""
    run, result = first_run
    predictor = open_predictor(run / "serving_model")
    voxels: dict[str, np.ndarray] = {}
    files = [str(path) for path in (phantom_records / "eval").glob("*.tfrecord")]
    for serialized in tf.data.TFRecordDataset(files):
        record = parse_example(serialized, task)
        inside = record["weight"].numpy() > 0
        predicted = predictor.predict(record["image"].numpy()[None])[0].argmax(axis=-1)[inside]
        reference = record["label"].numpy()[inside]
        counts = np.array(
            [
                [np.sum(p & r), np.sum(p), np.sum(r)]
                for p, r in ((predicted >= 1, reference >= 1), (predicted == 2, reference == 2))
            ]
        )
        case_id = record["case_id"].numpy().decode()
        voxels[case_id] = voxels.get(case_id, 0) + counts
    per_case = {
        case_id: [2 * both / (p + r) if p + r else 1.0 for both, p, r in counts]
        for case_id, counts in voxels.items()
    }
    means = np.mean(list(per_case.values()), axis=0)
    both, predicted, reference = np.sum(list(voxels.values()), axis=0).T
    scores = result["scores"]["overall"]
    assert scores["cases"] == len(per_case)
    assert [scores["dice_liver"], scores["dice_tumour"]] == pytest.approx(list(means), abs=1e-6)
    assert [scores["dice_global_liver"], scores["dice_global_tumour"]] == pytest.approx(
        list(2 * both / np.maximum(predicted + reference, 1)), abs=1e-6
    )
    for case_id, (liver, tumour) in per_case.items():
        of_case = result["scores"][f"case_id={case_id}"]
        assert [of_case["dice_liver"], of_case["dice_tumour"]] == pytest.approx(
            [liver, tumour], abs=1e-6
        )
    assert result["scores"]["spacing_class=thick"] == scores


def test_nothing_is_executed_again_and_another_threshold_evaluates_anew(
    first_run, run_options, capsys
):
    run, first = first_run
    assert main([*run_options, "--threshold-liver", str(THRESHOLD)]) == 0
    second = read_result(run)
    assert second["executed"] == []
    assert second["scores"] == first["scores"]
    assert second["pushed"] == first["pushed"]

    assert main([*run_options, "--threshold-liver", "1"]) == EXIT_CODE_REFUSED
    third = read_result(run)
    assert third["executed"] == ["Evaluator", "Pusher"]
    assert (third["blessed"], third["pushed"]) == (False, None)
    assert "is below the threshold 1" in capsys.readouterr().err.splitlines()[-1]
    assert len(list((run / "serving_model").iterdir())) == 1


def test_a_model_worse_than_the_last_blessed_one_is_refused(first_run, run_options, capsys):
    """One step at a vanishing rate learns nothing, but the threshold alone would let it pass."""
    run, first = first_run
    worse = ["--set", "3d.steps=1", "--set", "3d.warmup_steps=0", "--set", "3d.learning_rate=1e-9"]
    assert main([*run_options, *worse, "--threshold-liver", "0"]) == EXIT_CODE_REFUSED
    result = read_result(run)
    assert "Trainer2D" not in result["executed"]
    assert result["scores"]["overall"]["dice_liver"] < first["scores"]["overall"]["dice_liver"]
    assert "below the last blessed model's" in capsys.readouterr().err.splitlines()[-1]


def test_the_tfx_command_line_creates_and_runs_the_same_pipeline(first_run, run_options, tmp_path):
    """Nothing has changed since the first run, so that the run ends soon."""
    options = [*run_options, "--threshold-liver", str(THRESHOLD)]
    environment = os.environ | {
        "LOCAL_HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        OPTIONS_VARIABLE: subprocess.list2cmdline(options),
    }

    def tfx(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [Path(sys.executable).parent / "tfx", *words, "--engine=local"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    created = tfx("pipeline", "create", "--pipeline_path=pipeline/local_runner.py")
    assert created.returncode == 0, created.stderr
    assert 'Pipeline "ahnet" created successfully.' in created.stdout
    ran = tfx("run", "create", "--pipeline_name=ahnet")
    assert ran.returncode == 0, ran.stderr
    assert f"[10/10] {COMPONENTS[-1]}: unchanged, not executed" in ran.stdout


def test_records_that_do_not_fit_stop_the_run_before_training(
    records, patch, task, write_records, tmp_path, tiny_options, capsys
):
    from dataclasses import replace

    write_records(records / "train", [replace(patch, spacing_mm=(10.0, 10.0, 55.0))], task)
    run = tmp_path / "run"
    assert main(["--input", str(records), "--output", str(run), *tiny_options]) == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("error: data validation: ")
    assert "spacing_z_mm" in line
    assert "55" in line
    assert "Trainer" not in printed.out
    assert not (run / "artifacts" / "Trainer2D").exists()


def test_a_components_own_error_comes_last_in_one_line(records, tmp_path, tiny_options, capsys):
    """The file's second record is damaged: only the component that reads it can find out."""
    (file,) = (records / "train").iterdir()
    content = file.read_bytes()
    file.write_bytes(content + content[:-100] + bytes(100))
    run = tmp_path / "run"
    assert main(["--input", str(records), "--output", str(run), *tiny_options]) == 1
    error = capsys.readouterr().err.splitlines()
    assert error[-1].startswith("error: component ImportExampleGen: ")
    assert "Traceback" not in "".join(error)


def test_input_that_cannot_work_is_refused_before_anything_is_launched(
    records, tmp_path, tiny_options, capsys
):
    run = tmp_path / "run"

    def refusal(*options: str) -> str:
        assert main(["--input", str(records), "--output", str(run), *tiny_options, *options]) == 1
        assert not (run / "metadata.sqlite").exists()
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "no such folder" in refusal("--input", str(tmp_path / "nowhere"))
    assert "a Dice from 0 to 1, found 1.5" in refusal("--threshold-liver", "1.5")
    assert "a folder that can be written to" in refusal("--output", str(records / "task.json"))
    (file,) = (records / "eval").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    assert f"{file}: expected readable TFRecords" in refusal()
    file.write_bytes(b"")
    assert "records of the eval split" in refusal()
    shutil.rmtree(records / "eval")
    assert "eval: expected records of the eval split" in refusal()
