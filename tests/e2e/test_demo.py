"""The demonstration: the user's own cases, its stages, and how it goes on after an interruption."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from attrs import evolve

from ahnet_tf.predict import main as predict
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

TINY = (
    *("width=0.0625", "blocks=[1,1,1,1]", "growth=4", "dense_layers=1", "pvp_levels=1"),
    *("steps=4", "warmup_steps=1", "evaluate_every=4"),
)


@pytest.fixture(scope="module")
def own_cases(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own cases")
    write_cases(folder, 3, 3)
    return folder


@pytest.fixture(scope="module")
def breasts(tmp_path_factory) -> Path:
    """Ten small synthetic breasts in BCS-DBT's layout; each has a mass."""
    folder = tmp_path_factory.mktemp("own breasts")
    settings = DBTSettings(shape_xyz=(64, 96, 16), spacing_mm=(1.0, 1.0, 2.0), fewest_masses=1)
    write_cases(folder, 10, 3, settings=settings)
    return folder


@pytest.fixture
def interrupted(tfx, breasts, tmp_path, monkeypatch) -> list[str]:
    """The options of a demonstration that was interrupted after its pipeline."""
    output, file = tmp_path / "a demo", tmp_path / "small_breasts.json"
    task = evolve(load_task("dbt_lesion_small"), patch_shape_zyx=(16, 64, 64), patches_per_case=4)
    write_json(file, task.to_dict())
    options = ["--output", str(output), "--task", str(file), "--input", str(breasts)]
    for setting in TINY:
        options += ["--set", setting]

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Stages, "server", interrupt)
        assert main(options) == 130
    # The blessing is by FROC.
    result = json.loads((output / "pipeline" / "result.json").read_text())
    assert set(result["thresholds"]) == {SENSITIVITIES[1]}
    return options


@pytest.mark.slow
def test_an_interrupted_demonstration_of_breasts_is_finished(interrupted, capfd):
    assert main(interrupted) == 0
    printed = capfd.readouterr().out
    output = Path(interrupted[1])
    for name in ("convert", "pipeline"):
        assert f"[{name}] finished before" in printed
        assert f"preprocessing.{name}" not in printed
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
    line = f"sensitivity at 2 false positives per volume: {summary[SENSITIVITIES[1]]:.3f}"
    assert line in printed
    stages = {"data", "convert", "pipeline", "server", "predict", "evaluate"}
    assert set(summary["seconds"]) == stages
    picture = (output / "overlay.png").read_bytes()
    assert picture == (output / "prediction" / "overlays" / f"{summary['case']}.png").read_bytes()
    content = content_of(output / "report.html")
    assert len(content["cases"]) == 2

    with open(output / "prediction" / "lesions.csv", newline="") as file:
        own = [
            float(row["Score"])
            for row in csv.DictReader(file)
            if dbt_case_id(*(row[name] for name in VOLUME_COLUMNS)) == summary["case"]
        ]
    found = [each["score"] for each in summary["detections"]]
    assert found == pytest.approx(sorted(own, reverse=True)[:3], rel=1e-5)
    (trained,) = (output / "pipeline").glob("artifacts/Trainer3D/model_run/*")
    check_label_maps(output, trained, summary["model"])


def check_label_maps(output: Path, trained: Path, exported: str) -> None:
    """Both forms of a network predict the same labels, those of the larger probability."""
    answers = {}
    for form, model in (("trained", trained), ("exported", exported)):
        folder = output / form
        options = ["--model", str(model), str(output / "unseen"), str(folder), "--probabilities"]
        assert predict(options) == 0
        answers[form] = sorted(folder.glob("*.nii.gz"))
        assert len(answers[form]) == 2
    for pair in zip(*answers.values(), strict=True):
        labels = [np.asarray(nibabel.load(path).dataobj) for path in pair]
        assert (labels[0] != labels[1]).mean() < 1e-3
        case = pair[0].name.removesuffix(".nii.gz")
        assert case.startswith("dbt-")
        background, lesion = (
            np.asarray(
                nibabel.load(pair[0].parent / "probabilities" / f"{case}_{name}.nii.gz").dataobj
            )
            for name in ("background", "lesion")
        )
        np.testing.assert_allclose(background + lesion, 1, atol=1e-4)
        np.testing.assert_array_equal(labels[0] > 0, lesion > background)


def test_one_case_is_kept_from_training(own_cases, tmp_path):
    hold_out([str(own_cases)], load_task("ct_liver_small"), tmp_path / "d", tmp_path / "u")
    seen = {path.resolve() for path in (tmp_path / "d").rglob("*.nii.gz")}
    unseen = {path.resolve() for path in (tmp_path / "u").rglob("*.nii.gz")}
    assert len(seen) == 4
    assert len(unseen) == 2
    assert not seen & unseen


def test_no_other_series_of_the_patient_who_is_held_out_is_trained_on(tmp_path, dicom):
    stored = np.random.default_rng(0).integers(900, 1200, (4, 24, 20)).astype(np.int16)
    label = np.zeros((20, 24, 4), np.uint8)
    label[4:9, 4:9] = 1
    affine = np.diag([-0.7, -0.8, 2.5, 1.0])
    affine[:3, 3] = 20, 30, 40
    for number, patient in enumerate(("A", "B", "C", "C")):
        case = tmp_path / "own" / f"case-{number}"
        tags = {"SeriesInstanceUID": f"1.2.3.4.5.{number}", "PatientID": f"patient {patient}"}
        dicom.ct_series(case / "ct", stored + number, **tags)
        nibabel.save(nibabel.Nifti1Image(label, affine), case / "seg.nii.gz")
    hold_out([str(tmp_path / "own")], load_task("ct_liver"), tmp_path / "d", tmp_path / "u")
    assert os.listdir(tmp_path / "u") == ["case-3"]
    assert sorted(os.listdir(tmp_path / "d")) == ["case-0", "case-1"]


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


def test_stages_after_one_that_runs_again_run_again(tmp_path):
    """Also if the run ends between them, and whether or not frameworks' logs are shown."""
    runs = []

    def run(*names: str, debug: bool = False, **words: str) -> list[str]:
        stages = Stages(tmp_path, debug)
        for name in names:
            stages.call(name, lambda name=name: runs.append(name), [words.get(name, "same")])
        done = runs[:]
        runs.clear()
        return done

    assert run("data", "convert", "pipeline") == ["data", "convert", "pipeline"]
    assert run("data", "convert", "pipeline") == []
    assert run("data", data="other") == ["data"]
    assert run("data", "convert", "pipeline", data="other") == ["convert", "pipeline"]
    stages = [Stages(tmp_path / "commands", debug) for debug in (False, True)]
    for each in stages:
        each.run("help", ["preprocessing.convert", "--help"])
    assert stages[0].costs == stages[1].costs


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
