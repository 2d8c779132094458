"""One whole run, of the demonstration on own cases: what each of its stages and its pipeline leave.

All tests here share the run, which takes a minute or more. Its names have a space, and its network is as
small as one that learns can be.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tensorflow as tf

from ahnet_tf.inference.predictor import open_predictor
from pipeline.lineage import main as lineage
from pipeline.local_runner import EXIT_CODE_REFUSED, OPTIONS_VARIABLE, main
from preprocessing.files import write_json
from preprocessing.phantom.dataset import write_cases
from preprocessing.records.schema import parse_example
from tests.page_views import content_of

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
STAGES = {"data", "convert", "pipeline", "server", "predict", "evaluate"}
THRESHOLD = 0.2
# The last one is held out; of the others, 0 and 4 are for evaluation.
CASES = 6

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@dataclass(frozen=True)
class Demonstrated:
    """A finished demonstration."""

    output: Path
    printed: str
    summary: dict
    result: dict  # result.json of the pipeline as the demonstration left it
    options: list[str]  # of its command, `pipeline.local_runner`

    @property
    def run(self) -> Path:
        """The folder of the pipeline's run."""
        return self.output / "pipeline"

    @property
    def models(self) -> Path:
        """The folder of pushed versions."""
        return self.run / "serving_model" / "ahnet"


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory, task, grid, tiny_settings) -> Demonstrated:
    base = tmp_path_factory.mktemp("a demo")
    output, cases = base / "output", base / "own cases"
    write_cases(cases, CASES, seed=5, settings=grid, progress=False)
    write_json(base / "task.json", task.to_dict())
    command = [sys.executable, "-m", "pipeline.demo", "--output", str(output), "--seed", "3"]
    command += ["--input", str(cases), "--task", str(base / "task.json")]
    command += ["--threshold", str(THRESHOLD)]
    for setting in tiny_settings:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return Demonstrated(
        output,
        done.stdout,
        read_json(output / "summary.json"),
        read_json(output / "pipeline" / "result.json"),
        read_json(output / ".stages" / "pipeline.json")["command"][1:],
    )


def test_summary_and_picture(demo):
    assert {"dice_liver", "dice_tumour", "seconds", "peak_memory_mib"} <= set(demo.summary)
    assert 0 <= demo.summary["dice_liver"] <= 1
    assert 200 < demo.summary["peak_memory_mib"] < 16000
    assert set(demo.summary["seconds"]) == STAGES
    assert demo.summary["seconds"]["pipeline"] > 1
    assert (demo.output / "overlay.png").read_bytes().startswith(b"\x89PNG")
    assert "Dice liver" in demo.printed
    assert demo.summary["picture"] == str(demo.output / "overlay.png")
    assert demo.summary["picture"] in demo.printed


def test_page_has_the_case_with_its_volume_and_scores(demo):
    assert demo.summary["page"] == str(demo.output / "report.html")
    assert demo.summary["page"] in demo.printed
    content = content_of(demo.output / "report.html")
    (case,) = content["cases"]
    assert case["id"] == demo.summary["case"] == f"volume-{CASES - 1}"
    assert "volume" in case
    table = content["tables"][0]
    ((_, row),) = table["rows"]
    cells = dict(zip([column["name"] for column in table["columns"]], row, strict=True))
    assert cells["case"] == demo.summary["case"]
    assert cells["liver Dice"] == demo.summary["dice_liver"]
    assert cells["tumour Dice"] == demo.summary["dice_tumour"]


def test_prediction_lies_on_the_input_and_its_score_is_that_of_an_independent_count(demo):
    (image,) = (demo.output / "unseen").rglob("volume-*.nii.gz")
    (reference,) = (demo.output / "unseen").rglob("segmentation-*.nii.gz")
    (label,) = (demo.output / "prediction").glob("*.nii.gz")
    image, reference, label = (nibabel.load(path) for path in (image, reference, label))
    assert label.shape == image.shape
    np.testing.assert_array_equal(label.affine, image.affine)
    voxels = np.asarray(label.dataobj)
    assert set(np.unique(voxels)) <= {0, 1, 2}
    predicted, true = voxels >= 1, np.asarray(reference.dataobj) >= 1
    dice = 2 * (predicted & true).sum() / (predicted.sum() + true.sum())
    assert demo.summary["dice_liver"] == pytest.approx(dice, abs=1e-6)


def test_each_component_is_executed_once(demo):
    assert set(demo.result["seconds"]) == {"imports", *COMPONENTS}
    assert demo.result["executed"] == EXECUTED


def test_the_model_is_blessed_and_the_pushed_one_answers(demo, task):
    assert demo.result["blessed"]
    assert demo.result["refusals"] == []
    assert demo.result["scores"]["overall"]["dice_liver"] >= THRESHOLD
    # The layout of TensorFlow Serving.
    (version,) = demo.models.iterdir()
    assert version.name.isdigit()
    assert (version / "saved_model.pb").is_file()
    assert demo.result["pushed"] == demo.summary["model"] == str(version)
    predictor = open_predictor(demo.models)
    assert predictor.settings.task == task
    probabilities = predictor.predict(np.zeros((1, *task.patch_shape_zyx, 1), np.int16))
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, atol=1e-5)


def test_the_2d_network_has_learned_and_the_3d_one_started_from_it(demo):
    (scores,) = demo.run.glob("artifacts/Trainer2D/model_run/*/evaluation.json")
    assert read_json(scores)["dice"]["liver"] > 0.4
    (report,) = demo.run.glob("artifacts/Trainer3D/model_run/*/transfer.txt")
    copied = report.read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(r"copied: [1-9]\d* weights, .*", copied)


def test_the_evaluators_dice_is_that_of_numpy_on_the_same_tiles(demo, task):
    """Adds the masks' voxels of each case up in NumPy: nothing here is the pipeline's code."""
    predictor = open_predictor(demo.models)
    voxels: dict[str, np.ndarray] = {}
    files = [str(path) for path in (demo.output / "records" / "eval").glob("*.tfrecord*")]
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
    scores = demo.result["scores"]["overall"]
    assert scores["cases"] == len(per_case) == 2
    assert [scores["dice_liver"], scores["dice_tumour"]] == pytest.approx(list(means), abs=1e-6)
    assert [scores["dice_global_liver"], scores["dice_global_tumour"]] == pytest.approx(
        list(2 * both / np.maximum(predicted + reference, 1)), abs=1e-6
    )
    for case_id, (liver, tumour) in per_case.items():
        of_case = demo.result["scores"][f"case_id={case_id}"]
        assert [of_case["dice_liver"], of_case["dice_tumour"]] == pytest.approx(
            [liver, tumour], abs=1e-6
        )
    assert demo.result["scores"]["spacing_class=thick"] == scores


def test_the_evaluators_dice_is_that_of_the_evaluate_command(demo):
    """`python -m ahnet_tf.evaluate` scored the cases as whole volumes, put together from the same tiles."""
    scores = read_json(Path(demo.result["report"]) / "scores" / "scores.json")
    overall = demo.result["scores"]["overall"]
    for ours, theirs in (
        ("dice_liver", "liver_dice_per_case"),
        ("dice_tumour", "lesion_dice_per_case"),
        ("dice_global_liver", "liver_dice_global"),
        ("dice_global_tumour", "lesion_dice_global"),
    ):
        assert overall[ours] == pytest.approx(scores["summary"][theirs]["value"], abs=1e-6)


def test_the_model_card_tells_data_settings_scores_and_limits(demo):
    card = (Path(demo.result["report"]) / "model_card.md").read_text(encoding="utf-8")
    splits = read_json(demo.output / "records" / "manifest.json")["splits"]
    assert f"| cases | {splits['train']['cases']} | {splits['eval']['cases']} |" in card
    assert f"| patches | {splits['train']['patches']} | {splits['eval']['patches']} |" in card
    assert "| spacing z, mm | 10 to 10 | 10 to 10 |" in card
    assert "| network | mcgcn | ahnet |" in card
    assert "| learning rate | 0.01 | 0.01 |" in card
    overall = demo.result["scores"]["overall"]
    assert f"| overall | 2 | {overall['dice_liver']:.4f} |" in card
    assert "All scores come from 2 evaluation cases" in card
    assert f"pushed to `{demo.result['pushed']}`" in card


def test_nothing_is_executed_again_and_another_threshold_evaluates_anew(demo, capsys):
    assert main(demo.options) == 0
    again = read_json(demo.run / "result.json")
    assert again["executed"] == []
    assert again["scores"] == demo.result["scores"]
    assert again["pushed"] == demo.result["pushed"]

    assert main([*demo.options, "--threshold-liver", "1"]) == EXIT_CODE_REFUSED
    refused = read_json(demo.run / "result.json")
    assert refused["executed"] == ["Evaluator", "Pusher", "Report"]
    assert (refused["blessed"], refused["pushed"]) == (False, None)
    assert "is below the threshold 1" in capsys.readouterr().err.splitlines()[-1]
    assert len(list(demo.models.iterdir())) == 1
    card = (Path(refused["report"]) / "model_card.md").read_text(encoding="utf-8")
    assert "Outcome: refused: dice_liver " in card
    assert "not pushed" in card


def test_the_lineage_of_a_pushed_model_is_found(demo, capsys):
    assert lineage([demo.result["pushed"], "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)
    assert [step["name"] for step in steps] == EXECUTED
    trainer = next(step for step in steps if step["name"] == "Trainer3D")
    assert trainer["parameters"]["custom_config"]["training"]["learning_rate"] == 0.01
    assert set(trainer["inputs"]) == {"base_model", "examples"}
    (pushed,) = steps[EXECUTED.index("Pusher")]["outputs"]["pushed_model"]
    assert pushed[1].startswith(str(demo.run / "artifacts" / "Pusher"))

    assert lineage([str(demo.models)]) == 0
    text = capsys.readouterr().out
    for words in (
        "# ahnet: ahnet for tiny_ct",
        "learning_rate=0.01",
        "code version ",
        "-> examples",
    ):
        assert words in text
    assert lineage([str(demo.run)]) == 1
    assert "found none" in capsys.readouterr().err


def test_the_tfx_command_line_creates_and_runs_the_same_pipeline(demo, tmp_path, monkeypatch):
    """Nothing has changed since the first run, so that the run ends soon."""
    from click.testing import CliRunner
    from tfx.tools.cli.cli_main import cli_group

    monkeypatch.setenv("LOCAL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv(OPTIONS_VARIABLE, subprocess.list2cmdline(demo.options))
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
    last = f"[{len(COMPONENTS)}/{len(COMPONENTS)}] {COMPONENTS[-1]}: unchanged, not executed"
    assert last in ran.stdout
