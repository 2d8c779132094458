"""Which demonstration a task has, what it runs, what it summarises; the user's own breasts."""

from __future__ import annotations

import argparse
import csv
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pytest
from attrs import evolve

from ahnet_tf.presets import run_config
from pipeline.configs import threshold_names
from pipeline.demo import DEMONSTRATION_FILE, is_other_run, preset_of
from pipeline.demonstrations import (
    CT_LIVER,
    DBT_LESION,
    DEMONSTRATIONS,
    SENSITIVITIES,
    demonstration_of,
    strongest,
)
from pipeline.local.own_cases import hold_out
from pipeline.local_runner import PipelineResult, summary_table
from pipeline.options import add_pipeline_options, pipeline_settings
from preprocessing.datasets.bcs_dbt import VOLUME_COLUMNS, dbt_case_id
from preprocessing.datasets.discovery import find_cases
from preprocessing.errors import InputError, SettingsError
from preprocessing.files import write_json
from preprocessing.phantom.dataset import write_cases
from preprocessing.phantom.dbt import DBTSettings
from preprocessing.tasks import load_task
from tests.pipeline.recorded_stages import commands_of

ROOT = Path(__file__).resolve().parents[2]
DBT = load_task("dbt_lesion_small")
SMALL = DBTSettings(shape_xyz=(48, 64, 12), spacing_mm=(1.5, 1.5, 3.0), fewest_masses=1)


def value_after(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


@pytest.mark.parametrize(
    ("task", "shown"),
    [("ct_liver", CT_LIVER), ("ct_liver_small", CT_LIVER), ("dbt_lesion_small", DBT_LESION)],
)
def test_the_target_of_a_task_decides(task, shown):
    assert demonstration_of(load_task(task)) is shown


def test_presets_follow_the_task(tmp_path):
    own = tmp_path / "own.json"
    for task in (DBT, load_task("ct_liver_small")):
        write_json(own, evolve(task, name="own").to_dict())
        given = argparse.Namespace(task=str(own), preset=None)
        assert preset_of(given) == task.name
    assert preset_of(argparse.Namespace(task="dbt_lesion", preset=None)) == "dbt_lesion"
    assert preset_of(argparse.Namespace(task=str(own), preset="ct_liver")) == "ct_liver"


def test_breasts_are_blessed_and_scored_by_froc(tmp_path):
    commands = commands_of(task="dbt_lesion_small", set=["steps=17"])
    pipeline, evaluate = commands["pipeline"], commands["evaluate"]
    name, _, least = value_after(pipeline, "--threshold").partition("=")
    assert name in threshold_names(DBT)
    assert 0 < float(least) <= 1
    assert value_after(pipeline, "--preset") == "dbt_lesion_small"
    # As the pipeline's own parser reads them.
    write_json(tmp_path / "task.json", DBT.to_dict())
    parser = argparse.ArgumentParser()
    parser.add_argument("--output")
    add_pipeline_options(parser)
    parsed = pipeline_settings(parser.parse_args([*pipeline[1:], "--input", str(tmp_path)]))
    assert set(parsed.score_thresholds()) == {SENSITIVITIES[1]}
    assert "out/prediction/lesions.csv" in evaluate
    assert "--hits-in-mm" in evaluate
    for name, first in (("data", None), ("unseen", "1000")):
        assert value_after(commands[name], "--kind") == "dbt"
        assert ("--first" in commands[name]) == bool(first)
    # The settings exist, and those of the command line win.
    settings = [pipeline[i + 1] for i, word in enumerate(pipeline) if word == "--set"]
    config = run_config(DBT, preset="dbt_lesion_small", settings=settings)
    assert {stage.training.steps for stage in config.stages.values()} == {17}


def test_breasts_are_blessed_by_detections_by_default(tmp_path):
    write_json(tmp_path / "task.json", DBT.to_dict())
    parser = argparse.ArgumentParser()
    parser.add_argument("--output")
    add_pipeline_options(parser)
    options = ["--input", str(tmp_path), "--output", str(tmp_path / "run")]
    settings = pipeline_settings(parser.parse_args(options))
    assert settings.thresholds == {SENSITIVITIES[1]: 0.5}
    with pytest.raises(SettingsError, match=r"a task of label maps.*--threshold sensitivity_at_2"):
        pipeline_settings(parser.parse_args([*options, "--threshold-liver", "0.9"]))
    overall = {"cases": 3.0, "dice_lesion": 0.1, SENSITIVITIES[0]: 0.25, SENSITIVITIES[1]: 0.625}
    result = PipelineResult(
        seconds={},
        executed=[],
        blessed=True,
        refusals=[],
        thresholds=settings.score_thresholds(),
        scores={"overall": overall},
        pushed=None,
        report="report",
        total_seconds=1.0,
    )
    shown = [" ".join(line.split()) for line in summary_table(result).splitlines()]
    assert "lesion 0.1000" in shown
    assert f"{SENSITIVITIES[1]} 0.6250 threshold 0.5" in shown


def test_other_presets_keep_their_own_steps():
    pipeline = commands_of(task="dbt_lesion", set=["batch_size=1"])["pipeline"]
    assert value_after(pipeline, "--preset") == "dbt_lesion"
    assert [pipeline[i + 1] for i, word in enumerate(pipeline) if word == "--set"] == [
        "batch_size=1"
    ]


def test_ct_is_blessed_by_dice():
    commands = commands_of()
    assert value_after(commands["pipeline"], "--threshold-liver") == "0.8"
    assert value_after(commands["pipeline"], "--preset") == "ct_liver_small"
    assert "--threshold" not in commands["pipeline"]
    assert "--kind" not in commands["data"]
    assert value_after(commands["unseen"], "--cases") == "1"


def test_of_livers_the_largest_is_kept(tmp_path):
    """Organs of the user's own task may be several."""
    write_json(tmp_path / "own.json", evolve(load_task("ct_liver_small"), name="own").to_dict())
    kept = {
        task: "--largest-component" in commands_of(task=task)["predict"]
        for task in ("ct_liver_small", "dbt_lesion_small", str(tmp_path / "own.json"))
    }
    assert list(kept.values()) == [True, False, False]


@pytest.mark.parametrize("task", ["ct_liver_small", "dbt_lesion_small"])
def test_own_cases_have_no_threshold_but_a_given_one(task):
    own = commands_of(task=task, input=["mine"])["pipeline"]
    given = commands_of(task=task, input=["mine"], threshold=0.25)["pipeline"]
    assert [each for each in own if each.endswith("0.0")]
    assert [each for each in given if each.endswith("0.25")]
    assert "--allow-rejected" in commands_of(task=task, input=["mine"])["convert"]


def scored_breasts(output: Path, value: float | None) -> None:
    """Writes what the stages leave: three volumes, the second is the first with masses."""
    (output / "scores").mkdir()
    (output / "scores" / "scores.csv").write_text(
        "case_id,boxes,boxes_hit,detections,false_positives,further_hits\n"
        "dbt-a,0,0,1,1,0\ndbt-b,2,1,2,1,0\ndbt-c,1,1,1,0,0\n"
    )
    summary = {name: {"value": value} for name in SENSITIVITIES}
    write_json(output / "scores" / "scores.json", {"summary": summary})
    box = {"x": 10, "y": 20, "z": 3, "width": 5, "height": 4, "depth": 1}
    lesions = [{"score": score} | box for score in (0.3, 0.9)]
    cases = [
        {"case_id": f"dbt-{each}", "lesions": lesions if each == "b" else []} for each in "abc"
    ]
    write_json(output / "prediction" / "prediction.json", {"cases": cases})


@pytest.mark.parametrize(("value", "words"), [(0.75, ": 0.750"), (None, "undefined, no mass")])
def test_the_shown_case_has_a_mass(tmp_path, value, words):
    scored_breasts(tmp_path, value)
    scores = DBT_LESION.scores(tmp_path, DBT)
    assert scores["case"] == "dbt-b"
    assert (scores["case_masses"], scores["case_masses_found"]) == (2, 1)
    assert (scores["volumes"], scores["masses"]) == (3, 3)
    # The centre of columns 10 to 14, rows 20 to 23 and slice 3.
    assert scores["detections"][0] == {"score": 0.9, "x": 12, "y": 21.5, "z": 3}
    lines = "\n".join(DBT_LESION.lines(scores))
    assert f"at 2 false positives per volume: {value:.3f}" in lines if value else words in lines
    assert "case dbt-b: 1 of 2 masses found" in lines


def test_strongest_detections():
    box = {"x": 0, "y": 0, "z": 0, "width": 1, "height": 1, "depth": 1}
    found = strongest([{"score": score} | box for score in (0.2, 0.8, 0.5)], 2)
    assert [each["score"] for each in found] == [0.8, 0.5]


def test_stages_of_the_other_demonstration_do_not_fit(tmp_path):
    assert not is_other_run(tmp_path, CT_LIVER.task)
    (tmp_path / ".stages").mkdir()
    (tmp_path / ".stages" / DEMONSTRATION_FILE).write_text(CT_LIVER.task)
    assert not is_other_run(tmp_path, CT_LIVER.task)
    assert is_other_run(tmp_path, DBT_LESION.task)


@pytest.fixture(scope="module")
def breasts(tmp_path_factory) -> Path:
    """Nine patients of one volume each, all with a mass."""
    folder = tmp_path_factory.mktemp("breasts")
    write_cases(folder, 9, 0, settings=SMALL, progress=False)
    return folder


def test_a_quarter_of_the_breasts_is_kept_from_training(breasts, tmp_path):
    hold_out([str(breasts)], DBT, tmp_path / "data", tmp_path / "unseen")
    found = {name: find_cases([tmp_path / name], need_labels=True) for name in ("data", "unseen")}
    given = {case.case_id: case for case in find_cases([breasts], need_labels=True)}
    assert [len(cases) for cases in found.values()] == [7, 2]
    # Every volume comes with the boxes, the view and the image that its own row has.
    for case in found["data"] + found["unseen"]:
        own = given.pop(case.case_id)
        assert not case.problem
        assert case.image_path.resolve() == own.image_path
        assert case.label_path.resolve() == own.label_path
        assert (case.view, case.identifiers) == (own.view, own.identifiers)
        assert [evolve_box(box) for box in case.boxes] == [evolve_box(box) for box in own.boxes]
    assert not given


def evolve_box(box) -> tuple:
    """Returns a box without the file that it is from."""
    return tuple(value for name, value in vars(box).items() if name != "where")


def test_views_of_one_patient_stay_together(breasts, tmp_path):
    """The last three volumes become one patient's, without masks; two of nine are wanted."""
    folder, names = tmp_path / "dbt", ("PHANTOM-00006", "PHANTOM-00007")
    folder.mkdir()
    for table in ("boxes.csv", "labels.csv"):
        text = (breasts / table).read_text()
        for name in names:
            text = text.replace(name, "PHANTOM-00008")
        (folder / table).write_text(text)
    with open(folder / "labels.csv", newline="") as file:
        for row in csv.DictReader(file):
            # Case ids as names, because patient and view may be those of several volumes.
            number = int(row["StudyUID"].split(".")[-1])
            image = breasts / f"PHANTOM-{number:05d}_{row['View']}.nii.gz"
            case_id = dbt_case_id(*(row[name] for name in VOLUME_COLUMNS))
            (folder / f"{case_id}.nii.gz").symlink_to(image)
    hold_out([str(folder)], DBT, tmp_path / "data", tmp_path / "unseen")
    held_out = find_cases([tmp_path / "unseen"], need_labels=True)
    assert [case.identifiers[0] for case in held_out] == ["PHANTOM-00008"] * 3
    data = find_cases([tmp_path / "data"], need_labels=True)
    assert len(data) == 6
    assert not {case.identifiers[0] for case in data} & {"PHANTOM-00008", *names}


def test_volumes_that_cannot_be_used_are_refused_by_name(breasts, tmp_path):
    data, unseen = tmp_path / "data", tmp_path / "unseen"
    write_cases(tmp_path / "ct", 2, 0, progress=False)
    with pytest.raises(InputError, match="expected one folder with BCS-DBT's tables"):
        hold_out([str(tmp_path / "ct")], DBT, data, unseen)
    with pytest.raises(
        InputError, match=r"case volume-\d: expected a volume that BCS-DBT's tables"
    ):
        hold_out([str(breasts), str(tmp_path / "ct")], DBT, data, unseen)
    write_cases(tmp_path / "more", 1, 5, first=50, settings=SMALL, progress=False)
    with pytest.raises(InputError, match="one folder with BCS-DBT's tables"):
        hold_out([str(breasts), str(tmp_path / "more")], DBT, data, unseen)
    with pytest.raises(InputError, match="lesions of two patients or more"):
        hold_out([str(tmp_path / "more")], DBT, data, unseen)


def test_dicom_is_refused_by_name(breasts, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.local.own_cases.is_dicom_image", lambda path: True)
    with pytest.raises(InputError, match=r"case dbt-[0-9a-f]{12}: expected a NIfTI volume"):
        hold_out([str(breasts)], DBT, tmp_path / "data", tmp_path / "unseen")


def test_unreadable_volumes_are_not_held_out(breasts, tmp_path):
    folder = tmp_path / "dbt"
    folder.mkdir()
    for path in breasts.iterdir():
        (folder / path.name).symlink_to(path)
    (broken,) = folder.glob("PHANTOM-00008_*[co].nii.gz")
    broken.unlink()
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint16), np.eye(4)), broken)
    hold_out([str(folder)], DBT, tmp_path / "data", tmp_path / "unseen")
    held_out = find_cases([tmp_path / "unseen"], need_labels=True)
    assert {case.identifiers[0] for case in held_out} == {"PHANTOM-00006", "PHANTOM-00007"}


def make(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(["make", "-n", *words], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize("name", list(DEMONSTRATIONS))
def test_make_starts_the_demonstration_of_its_name(name):
    done = make("demo", f"TASK={name}", "OUTPUT=there")
    assert done.returncode == 0
    assert f'--task "{DEMONSTRATIONS[name].task}" --output "there"' in done.stdout


def test_make_refuses_another_name_in_one_line():
    done = make("demo", "TASK=dbt")
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert all(name in line for name in (*DEMONSTRATIONS, '"dbt"'))
