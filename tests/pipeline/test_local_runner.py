"""Whole runs of the pipeline on phantom cases, each of them real and as small as can be."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from ahnet_tf.inference.predictor import open_predictor
from pipeline.components.schema import schema_text
from pipeline.lineage import main as lineage
from pipeline.local_runner import EXIT_CODE_REFUSED, OPTIONS_VARIABLE, main
from preprocessing.records.schema import parse_example
from preprocessing.tasks import PRESETS

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
    "ServingCheck",
    "Evaluator",
    "Pusher",
    "Report",
]
# A resolver looks up what is there; it executes nothing.
EXECUTED = [name for name in COMPONENTS if name != "LatestBlessedModel"]
THRESHOLD = 0.2
# One step at a vanishing rate learns nothing; it gives a model that answers badly.
BAD = ("3d.steps=1", "3d.warmup_steps=0", "3d.learning_rate=1e-9")

pytestmark = pytest.mark.slow


def read_result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run_options(phantom_records, tmp_path_factory, tiny_options) -> list[str]:
    run = tmp_path_factory.mktemp("pipeline") / "run"
    return ["--input", str(phantom_records), "--output", str(run), *tiny_options]


def bad(run_options: list[str]) -> list[str]:
    """Returns the options of a run whose 3D network learns nothing."""
    settings = [part for setting in BAD for part in ("--set", setting)]
    return [*run_options, *settings, "--threshold-liver", "0"]


@pytest.fixture(scope="module")
def bad_run(run_options) -> dict:
    """The result of a first run of all, whose model is bad, with a threshold that everything reaches."""
    assert main(bad(run_options)) == 0
    return read_result(Path(run_options[3]))


@pytest.fixture(scope="module")
def first_run(run_options, bad_run) -> tuple[Path, dict]:
    """The folder and the result of the first good run, whose model is blessed."""
    assert main([*run_options, "--threshold-liver", str(THRESHOLD)]) == 0
    run = Path(run_options[3])
    return run, read_result(run)


def test_each_component_is_executed_once(bad_run):
    assert set(bad_run["seconds"]) == {"imports", *COMPONENTS}
    assert bad_run["executed"] == EXECUTED


def test_a_first_model_is_judged_by_the_threshold_alone_and_a_better_one_is_blessed(
    bad_run, first_run
):
    run, good = first_run
    assert bad_run["blessed"]
    assert bad_run["scores"]["overall"]["dice_liver"] < THRESHOLD
    assert good["blessed"]
    assert good["scores"]["overall"]["dice_liver"] > bad_run["scores"]["overall"]["dice_liver"]
    assert good["executed"] == EXECUTED[EXECUTED.index("Trainer3D") :]
    pushed = sorted((run / "serving_model" / "ahnet").iterdir())
    assert [str(path) for path in pushed] == [bad_run["pushed"], good["pushed"]]


def test_the_model_is_blessed_and_the_pushed_one_answers(first_run, task):
    run, result = first_run
    assert result["blessed"]
    assert result["refusals"] == []
    assert result["scores"]["overall"]["dice_liver"] >= THRESHOLD
    assert Path(result["pushed"]).parent == run / "serving_model" / "ahnet"
    predictor = open_predictor(run / "serving_model" / "ahnet")
    assert predictor.settings.task == task
    probabilities = predictor.predict(np.zeros((1, *task.patch_shape_zyx, 1), np.int16))
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)


def test_the_3d_network_started_from_the_2d_one(first_run):
    run, _ = first_run
    reports = list(run.glob("artifacts/Trainer3D/model_run/*/transfer.txt"))
    assert len(reports) >= 2
    for report in reports:
        copied = report.read_text(encoding="utf-8").splitlines()[0]
        assert re.fullmatch(r"copied: [1-9]\d* weights, .*", copied)


def test_the_evaluators_dice_is_that_of_numpy_on_the_same_tiles(first_run, phantom_records, task):
    """Adds the masks' voxels of each case up in NumPy: nothing here is the pipeline's code."""
    run, result = first_run
    predictor = open_predictor(run / "serving_model" / "ahnet")
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
    assert third["executed"] == ["Evaluator", "Pusher", "Report"]
    assert (third["blessed"], third["pushed"]) == (False, None)
    assert "is below the threshold 1" in capsys.readouterr().err.splitlines()[-1]
    assert len(list((run / "serving_model" / "ahnet").iterdir())) == 2


def test_a_model_worse_than_the_last_blessed_one_is_refused(first_run, run_options, capsys):
    """It is the model that was pushed when there was nothing to compare with."""
    run, first = first_run
    assert main(bad(run_options)) == EXIT_CODE_REFUSED
    result = read_result(run)
    assert result["executed"] == ["Evaluator", "Pusher", "Report"]
    assert result["scores"]["overall"]["dice_liver"] < first["scores"]["overall"]["dice_liver"]
    assert "below the last blessed model's" in capsys.readouterr().err.splitlines()[-1]
    card = (Path(result["report"]) / "model_card.md").read_text(encoding="utf-8")
    assert "Outcome: refused: dice_liver is " in card
    assert "not pushed" in card


def test_the_evaluators_dice_is_that_of_the_evaluate_command(first_run):
    """`python -m ahnet_tf.evaluate` scored the cases as whole volumes, put together from the same tiles."""
    _, result = first_run
    scores = json.loads((Path(result["report"]) / "scores" / "scores.json").read_text())
    overall = result["scores"]["overall"]
    for ours, theirs in (
        ("dice_liver", "liver_dice_per_case"),
        ("dice_tumour", "lesion_dice_per_case"),
        ("dice_global_liver", "liver_dice_global"),
        ("dice_global_tumour", "lesion_dice_global"),
    ):
        assert overall[ours] == pytest.approx(scores["summary"][theirs]["value"], abs=1e-6)


def test_the_model_card_tells_data_settings_scores_and_limits(first_run, phantom_records):
    _, result = first_run
    card = (Path(result["report"]) / "model_card.md").read_text(encoding="utf-8")
    manifest = json.loads((phantom_records / "manifest.json").read_text())
    splits = manifest["splits"]
    assert f"| cases | {splits['train']['cases']} | {splits['eval']['cases']} |" in card
    assert f"| patches | {splits['train']['patches']} | {splits['eval']['patches']} |" in card
    assert "| spacing z, mm | 10 to 10 | 10 to 10 |" in card
    assert "| network | mcgcn | ahnet |" in card
    assert "| learning rate | 0.01 | 0.01 |" in card
    overall = result["scores"]["overall"]
    assert f"| overall | 2 | {overall['dice_liver']:.4f} |" in card
    assert "All scores come from 2 evaluation cases" in card
    assert f"pushed to `{result['pushed']}`" in card


def test_the_lineage_of_a_pushed_model_is_found(first_run, capsys):
    run, result = first_run
    assert lineage([result["pushed"], "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)
    assert [step["name"] for step in steps] == EXECUTED
    trainer = next(step for step in steps if step["name"] == "Trainer3D")
    assert trainer["parameters"]["custom_config"]["training"]["learning_rate"] == 0.01
    assert set(trainer["inputs"]) == {"base_model", "examples"}
    (pushed,) = steps[EXECUTED.index("Pusher")]["outputs"]["pushed_model"]
    assert pushed[1].startswith(str(run / "artifacts" / "Pusher"))

    assert lineage([str(run / "serving_model" / "ahnet")]) == 0
    text = capsys.readouterr().out
    for words in (
        "# ahnet: ahnet for tiny_ct",
        "learning_rate=0.01",
        "code version ",
        "-> examples",
    ):
        assert words in text
    assert lineage([str(run)]) == 1
    assert "found none" in capsys.readouterr().err


def test_the_tfx_command_line_creates_and_runs_the_same_pipeline(
    first_run, run_options, tmp_path, monkeypatch
):
    """Nothing has changed since the first run, so that the run ends soon."""
    from click.testing import CliRunner
    from tfx.tools.cli.cli_main import cli_group

    options = [*run_options, "--threshold-liver", str(THRESHOLD)]
    monkeypatch.setenv("LOCAL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv(OPTIONS_VARIABLE, subprocess.list2cmdline(options))
    monkeypatch.chdir(ROOT)
    create = ["pipeline", "create", "--pipeline_path=pipeline/local_runner.py", "--engine=local"]
    created = CliRunner().invoke(cli_group, create)
    assert created.exit_code == 0, created.output
    assert 'Pipeline "ahnet" created successfully.' in created.output

    # The whole command as a process: it is what people type.
    run = ["run", "create", "--pipeline_name=ahnet", "--engine=local"]
    tfx = Path(sys.executable).parent / "tfx"
    ran = subprocess.run([tfx, *run], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert (
        f"[{len(COMPONENTS)}/{len(COMPONENTS)}] {COMPONENTS[-1]}: unchanged, not executed"
        in ran.stdout
    )


def test_poisoned_records_stop_the_run_before_training(
    records, patch, task, write_records, tmp_path, tiny_options, capsys
):
    """A wrong spacing, liver and tumour swapped, and a patient in both splits, all at once."""
    voxels = patch.case_label_voxels
    poisoned = [
        replace(patch, spacing_mm=(10.0, 10.0, 55.0)),
        replace(patch, case_id="case-2", case_label_voxels=(voxels[0], voxels[2], voxels[1])),
        replace(patch, case_id="case-1", case_label_voxels=(voxels[0], voxels[2], voxels[1])),
    ]
    write_records(records / "train", poisoned, task)
    run = tmp_path / "run"
    assert main(["--input", str(records), "--output", str(run), *tiny_options]) == 1
    printed = capsys.readouterr()
    line = printed.err.splitlines()[-1]
    assert line.startswith("error: data validation: ")
    assert "spacing_z_mm: " in line
    assert "55" in line
    assert "case_id: 1 cases are in both eval and train (case-1)" in line
    assert "the two may be swapped (train split)" in line
    assert "Trainer" not in printed.out
    assert not (run / "artifacts" / "Trainer2D").exists()


def test_records_of_another_program_are_explained(records, tmp_path, tiny_options, capsys):
    """Without case ids and with cut images: TFX's and our own components must get as far as the gate."""
    (file,) = (records / "train").iterdir()
    (record,) = tf.data.TFRecordDataset(str(file))
    example = tf.train.Example.FromString(record.numpy())
    del example.features.feature["case_id"]
    example.features.feature["image"].bytes_list.value[0] = b"pixels"
    with tf.io.TFRecordWriter(str(file)) as writer:
        writer.write(example.SerializeToString())
    run = tmp_path / "run"
    assert main(["--input", str(records), "--output", str(run), *tiny_options]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: data validation: expected records that match their task, each other and the span "
        "before, found case_id: missing in all 1 records (train split); image: 6 bytes long, not "
        "16384, as patches of 8 x 32 x 32 voxels (z, y, x) are (train split). "
        "Convert the volumes again with this version and this task."
    )


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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(records, tmp_path, tiny_options, capsys):
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    assert main(["--input", str(records), "--output", str(folder), *tiny_options]) == 1
    assert "a folder that can be written to, found Permission denied" in capsys.readouterr().err


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
    assert "Did you mean --threshold-liver?" in refusal("--threshold-livr", "0.5")
    assert "Nonsense" in refusal("--runner", "NonsenseRunner")
    assert "a readable schema" in refusal("--schema", str(tmp_path / "schema.pbtxt"))
    other = tmp_path / "other.pbtxt"
    other.write_text(schema_text(PRESETS["dbt_lesion"]), encoding="utf-8")
    assert "entries for the features of task tiny_ct" in refusal("--schema", str(other))
    assert "a blessed model of an earlier run" in refusal("--warm-start")
    assert "span-1, span-2, found none" in refusal("--spans", "2")
    assert "names among drift" in refusal("--allow", "everything")
    (file,) = (records / "eval").iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    assert f"{file}: expected readable TFRecords" in refusal()
    file.write_bytes(b"")
    assert "records of the eval split" in refusal()
    shutil.rmtree(records / "eval")
    assert "eval: expected TFRecords" in refusal()
