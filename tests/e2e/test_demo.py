"""The whole workflow at its smallest, in a folder with a space, with the commands users type."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from attrs import evolve

from pipeline.demo import clear, main
from pipeline.demonstrations import SENSITIVITIES
from pipeline.local.own_cases import hold_out
from pipeline.local.preflight import only_run_in
from pipeline.stages import Stages
from preprocessing.datasets.bcs_dbt import VOLUME_COLUMNS, dbt_case_id
from preprocessing.datasets.discovery import find_cases
from preprocessing.datasets.reading import read_case_label
from preprocessing.errors import InputError, PipelineError
from preprocessing.files import write_json
from preprocessing.phantom.dataset import write_cases
from preprocessing.phantom.dbt import DBTSettings
from preprocessing.tasks import load_task
from tests.page_views import content_of

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "width=0.0625",
    "blocks=[1,1,1,1]",
    "growth=4",
    "dense_layers=1",
    "pvp_levels=1",
    "steps=4",
    "warmup_steps=1",
    "evaluate_every=4",
)


@pytest.fixture(scope="module")
def own_cases(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own cases")
    write_cases(folder, 3, 3)
    return folder


def demonstrated(
    output: Path, cases: Path, task: Path, timeout_s: int
) -> subprocess.CompletedProcess:
    """Runs the demonstration on own cases with tiny settings."""
    command = [sys.executable, "-m", "pipeline.demo", "--output", str(output)]
    command += ["--input", str(cases), "--task", str(task)]
    for setting in TINY:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=timeout_s)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def demo_run(tfx, own_cases, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    output = tmp_path_factory.mktemp("a demo")
    coarse = evolve(load_task("ct_liver_small"), spacing_mm=(12.0, 12.0, 12.0))
    task = output.parent / "coarse.json"
    write_json(task, evolve(coarse, patch_shape_zyx=(8, 32, 32), patches_per_case=4).to_dict())
    return output, demonstrated(output, own_cases, task, timeout_s=600)


@pytest.fixture(scope="module")
def breasts(tmp_path_factory) -> Path:
    """Ten small synthetic breasts in BCS-DBT's layout; each has a mass."""
    folder = tmp_path_factory.mktemp("own breasts")
    settings = DBTSettings(shape_xyz=(64, 96, 16), spacing_mm=(1.0, 1.0, 2.0), fewest_masses=1)
    write_cases(folder, 10, 3, settings=settings)
    return folder


@pytest.fixture(scope="module")
def dbt_run(tfx, breasts, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    output = tmp_path_factory.mktemp("a demo of breasts")
    small = evolve(load_task("dbt_lesion_small"), patch_shape_zyx=(16, 64, 64), patches_per_case=4)
    task = output.parent / "small_breasts.json"
    write_json(task, small.to_dict())
    return output, demonstrated(output, breasts, task, timeout_s=900)


@pytest.mark.slow
def test_summary_and_picture_of_breasts(dbt_run):
    output, done = dbt_run
    summary = json.loads((output / "summary.json").read_text())
    with open(output / "unseen" / "boxes.csv", newline="") as file:
        boxes = list(csv.DictReader(file))
    assert summary["volumes"] == 2
    assert summary["masses"] == len(boxes) >= 2
    shown = [
        row for row in boxes if dbt_case_id(*(row[n] for n in VOLUME_COLUMNS)) == summary["case"]
    ]
    assert summary["case_masses"] == len(shown) >= 1
    assert 0 <= summary[SENSITIVITIES[0]] <= summary[SENSITIVITIES[1]] <= 1
    assert (
        f"sensitivity at 2 false positives per volume: {summary[SENSITIVITIES[1]]:.3f}"
        in done.stdout
    )
    assert set(summary["seconds"]) == {
        "data",
        "convert",
        "pipeline",
        "server",
        "predict",
        "evaluate",
    }
    picture = (output / "overlay.png").read_bytes()
    assert picture == (output / "prediction" / "overlays" / f"{summary['case']}.png").read_bytes()
    # The blessing is by FROC.
    result = json.loads((output / "pipeline" / "result.json").read_text())
    assert set(result["thresholds"]) == {SENSITIVITIES[1]}
    content = content_of(output / "report.html")
    assert len(content["cases"]) == 2


@pytest.mark.slow
def test_strongest_detections_are_those_of_the_table(dbt_run):
    output, _ = dbt_run
    summary = json.loads((output / "summary.json").read_text())
    with open(output / "prediction" / "lesions.csv", newline="") as file:
        own = [
            float(row["Score"])
            for row in csv.DictReader(file)
            if dbt_case_id(*(row[name] for name in VOLUME_COLUMNS)) == summary["case"]
        ]
    found = [each["score"] for each in summary["detections"]]
    assert found == pytest.approx(sorted(own, reverse=True)[:3], rel=1e-5)


@pytest.mark.slow
def test_summary_and_picture(demo_run):
    output, done = demo_run
    summary = json.loads((output / "summary.json").read_text())
    assert {"dice_liver", "dice_tumour", "seconds", "peak_memory_mib"} <= set(summary)
    assert 0 <= summary["dice_liver"] <= 1
    assert 200 < summary["peak_memory_mib"] < 16000
    stages = {"data", "convert", "pipeline", "server", "predict", "evaluate"}
    assert set(summary["seconds"]) == stages
    assert summary["seconds"]["pipeline"] > 1
    assert (output / "overlay.png").read_bytes().startswith(b"\x89PNG")
    assert "Dice liver" in done.stdout
    assert summary["picture"] == str(output / "overlay.png")
    assert summary["picture"] in done.stdout


@pytest.mark.slow
def test_page_has_the_case_with_its_volume_and_scores(demo_run):
    output, done = demo_run
    summary = json.loads((output / "summary.json").read_text())
    assert summary["page"] == str(output / "report.html")
    assert summary["page"] in done.stdout
    content = content_of(output / "report.html")
    (case,) = content["cases"]
    assert case["id"] == summary["case"]
    assert "volume" in case
    table = content["tables"][0]
    ((_, row),) = table["rows"]
    cells = dict(zip([column["name"] for column in table["columns"]], row, strict=True))
    assert cells["case"] == summary["case"]
    assert cells["liver Dice"] == summary["dice_liver"]
    assert cells["tumour Dice"] == summary["dice_tumour"]


@pytest.mark.slow
def test_prediction_lies_on_the_input(demo_run):
    output, _ = demo_run
    (image,) = (output / "unseen").rglob("volume-*.nii.gz")
    (label,) = (output / "prediction").glob("*.nii.gz")
    image, label = nibabel.load(image), nibabel.load(label)
    assert label.shape == image.shape
    np.testing.assert_array_equal(label.affine, image.affine)
    assert set(np.unique(np.asarray(label.dataobj))) <= {0, 1, 2}


@pytest.mark.slow
def test_scores_are_those_of_an_independent_count(demo_run):
    output, _ = demo_run
    (label,) = (output / "prediction").glob("*.nii.gz")
    (reference,) = (output / "unseen").rglob("segmentation-*.nii.gz")
    predicted = np.asarray(nibabel.load(label).dataobj) >= 1
    true = np.asarray(nibabel.load(reference).dataobj) >= 1
    dice = 2 * (predicted & true).sum() / (predicted.sum() + true.sum())
    summary = json.loads((output / "summary.json").read_text())
    assert summary["dice_liver"] == pytest.approx(dice, abs=1e-6)


@pytest.mark.slow
def test_model_lies_in_the_layout_of_tf_serving(demo_run):
    output, _ = demo_run
    (version,) = (output / "pipeline" / "serving_model" / "ahnet").iterdir()
    assert version.name.isdigit()
    assert (version / "saved_model.pb").is_file()


def test_one_case_is_kept_from_training(own_cases, tmp_path):
    hold_out([str(own_cases)], load_task("ct_liver_small"), tmp_path / "d", tmp_path / "u")
    seen = {path.resolve() for path in (tmp_path / "d").rglob("*.nii.gz")}
    unseen = {path.resolve() for path in (tmp_path / "u").rglob("*.nii.gz")}
    assert len(seen) == 4
    assert len(unseen) == 2
    assert not seen & unseen


def test_names_of_labels_are_kept(tmp_path):
    """A Decathlon set, whose images and label maps have the same names, with swapped values."""
    write_cases(tmp_path / "phantom", 3, 3)
    names = {"0": "background", "1": "tumour", "2": "liver"}
    training = []
    for number in range(3):
        pair = {"image": f"imagesTr/{number}.nii.gz", "label": f"labelsTr/{number}.nii.gz"}
        for path, kind in zip(pair.values(), ("volume", "segmentation"), strict=True):
            image = nibabel.load(tmp_path / "phantom" / f"{kind}-{number}.nii.gz")
            voxels = np.asarray(image.dataobj)
            if kind == "segmentation":
                voxels = np.array([0, 2, 1], np.uint8)[voxels]
            (tmp_path / "set" / path).parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(voxels, image.affine), tmp_path / "set" / path)
        training.append(pair)
    write_json(tmp_path / "set" / "dataset.json", {"labels": names, "training": training})
    task = load_task("ct_liver")
    hold_out([str(tmp_path / "set")], task, tmp_path / "data", tmp_path / "unseen")
    cases = find_cases([tmp_path / "data", tmp_path / "unseen"], need_labels=True)
    assert [case.case_id for case in cases] == ["0", "1", "2"]
    for case in cases:
        true = nibabel.load(tmp_path / "phantom" / f"segmentation-{case.case_id}.nii.gz")
        assert np.array_equal(read_case_label(case, task).voxels, np.asarray(true.dataobj))


def test_one_case_alone_is_refused(tmp_path):
    write_cases(tmp_path / "one", 1, 5)
    with pytest.raises(InputError, match="two or more readable cases"):
        hold_out(
            [str(tmp_path / "one")], load_task("ct_liver_small"), tmp_path / "d", tmp_path / "u"
        )


def test_finished_stages_are_not_repeated(tmp_path):
    runs = []
    for _ in range(2):
        stages = Stages(tmp_path)
        stages.call("work", lambda: runs.append(1) or 7.0, ["same"])
        assert stages.costs["work"]["peak_memory_mib"] == 7
    Stages(tmp_path).call("work", lambda: runs.append(1) or 7.0, ["other"])
    assert len(runs) == 2


def test_failing_stage_is_an_error_and_not_done(tmp_path):
    stages = Stages(tmp_path)
    with pytest.raises(PipelineError, match="stage broken: expected exit code 0, found 2"):
        stages.run("broken", ["preprocessing.convert", "--no-such-option"])
    assert not list(tmp_path.glob("*.json"))


def test_two_runs_in_one_folder_are_refused(tmp_path):
    with (
        only_run_in(tmp_path),
        pytest.raises(PipelineError, match="no other run"),
        only_run_in(tmp_path),
    ):
        pass


def test_starting_anew_leaves_what_is_not_the_demos(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "overlay.png").write_bytes(b"")
    (tmp_path / "report.html").write_text("")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "records").mkdir()
    clear(tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_missing_input_is_one_line(tfx, tmp_path, capsys):
    code = main(["--output", str(tmp_path / "out"), "--input", str(tmp_path / "absent")])
    errors = capsys.readouterr().err.strip().splitlines()
    assert code == 1
    assert len(errors) == 1
    assert "absent" in errors[0]
