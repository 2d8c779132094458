"""Scores of folders: pairing, tables, files, and failures."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest

from ahnet_tf.evaluate import main, score_cases
from ahnet_tf.evaluation.pairing import pair_up
from ahnet_tf.predict import main as predict
from preprocessing.dicom.multiframe import read_dicom
from preprocessing.errors import InputError, SettingsError
from preprocessing.tasks import task_from_dict
from tests.page_views import content_of


def write(path, labels, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine
    nib.save(nib.Nifti1Image(np.asarray(labels, np.uint8), affine), path)


def label_map(*row):
    """One row of labels along x in a 3D volume."""
    volume = np.zeros((len(row) + 2, 3, 3), np.uint8)
    volume[1:-1, 1, 1] = row
    return volume


@pytest.fixture
def folders(tmp_path):
    """Two cases in LiTS naming with their images, and predictions as `ahnet_tf.predict` names them."""
    references, predictions = tmp_path / "cases", tmp_path / "predictions"
    for number, row in ((0, (1, 1, 2, 2)), (7, (1, 1, 1, 1))):
        write(references / f"segmentation-{number}.nii.gz", label_map(*row))
        write(references / f"volume-{number}.nii.gz", np.arange(54).reshape(6, 3, 3))
    write(predictions / "segmentation-0.nii.gz", label_map(1, 2, 2, 2))
    write(predictions / "segmentation-7.nii.gz", label_map(1, 1, 1, 0))
    return predictions, references


def test_command_prints_and_writes(folders, tmp_path, capsys):
    predictions, references = folders
    output = tmp_path / "scores"
    options = ["--input", str(predictions), "--reference", str(references)]
    assert main([*options, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    # Case 0: tumour 2 of 3 + 2 voxels, liver exact; case 7: liver 3 of 3 + 4, no tumour at all.
    assert "volume-0" in printed
    assert "0.8000" in printed
    assert "0.8571" in printed
    scores = json.loads((output / "scores.json").read_text())
    assert scores["problems"] == []
    assert set(scores["cases"]) == {"volume-0", "volume-7"}
    assert scores["cases"]["volume-0"]["lesion_dice"] == pytest.approx(4 / 5)
    assert scores["cases"]["volume-7"]["liver"]["dice"] == pytest.approx(6 / 7)
    assert scores["summary"]["lesion_dice_per_case"]["value"] == pytest.approx((4 / 5 + 1) / 2)
    assert scores["summary"]["liver_dice_global"]["value"] == pytest.approx(2 * 7 / (8 + 7))
    # The liver of case 7 ends one voxel early, along x with 1 mm spacing.
    assert scores["cases"]["volume-7"]["liver"]["msd_mm"] == pytest.approx(1.0)
    with open(output / "scores.csv", newline="") as file:
        rows = {row["case_id"]: row for row in csv.DictReader(file)}
    assert float(rows["volume-0"]["lesion_dice_per_case"]) == pytest.approx(4 / 5)
    assert float(rows["volume-0"]["tumour_burden_error"]) == pytest.approx(2 / 4 - 3 / 4)
    assert rows["volume-7"]["lesion_dice"] == "nan"
    assert scores["summary"]["lesion_assd_mm"]["undefined"] == 0


def test_json_has_null_for_what_is_undefined(tmp_path):
    write(tmp_path / "a.nii.gz", label_map(0, 0))
    write(tmp_path / "b.nii.gz", label_map(0, 0))
    options = ["--input", str(tmp_path / "a.nii.gz"), "--reference", str(tmp_path / "b.nii.gz")]
    assert main([*options, "--output", str(tmp_path)]) == 0
    text = (tmp_path / "scores.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["summary"]["liver_assd_mm"] == {
        "value": None,
        "defined": 0,
        "undefined": 1,
        "low": None,
        "high": None,
    }


def test_missing_and_extra_cases_fail(folders, capsys):
    predictions, references = folders
    (predictions / "segmentation-7.nii.gz").rename(predictions / "segmentation-8.nii.gz")
    assert main(["--input", str(predictions), "--reference", str(references)]) == 1
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 2
    assert "volume-7" in errors[0]
    assert "segmentation-7.nii.gz" in errors[0]
    assert "segmentation-8.nii.gz" in errors[1]
    assert "volume-0" in printed.out


@pytest.mark.parametrize(
    ("labels", "affine", "message"),
    [
        (label_map(1, 2), None, "shape"),
        (label_map(1, 1, 1, 1), np.diag([1.0, 2.0, 3.5, 1.0]), "affine"),
        (label_map(1, 1, 1, 7), None, "7"),
    ],
)
def test_unfit_prediction_fails_alone(folders, capsys, labels, affine, message):
    predictions, references = folders
    write(predictions / "segmentation-7.nii.gz", labels, affine)
    assert main(["--input", str(predictions), "--reference", str(references)]) == 1
    printed = capsys.readouterr()
    (error,) = [line for line in printed.err.splitlines() if line.startswith("error:")]
    assert "segmentation-7.nii.gz" in error
    assert message in error
    assert "volume-0" in printed.out


@pytest.mark.parametrize("part", ["predictions", "cases"])
def test_an_unreadable_file_fails_alone(folders, tmp_path, capsys, part):
    predictions, references = folders
    (tmp_path / part / "segmentation-7.nii.gz").write_bytes(b"damaged")
    assert main([str(predictions), str(references)]) == 1
    printed = capsys.readouterr()
    (error,) = [line for line in printed.err.splitlines() if line.startswith("error:")]
    assert f"{part}/segmentation-7.nii.gz" in error
    assert "volume-0" in printed.out
    assert "volume-7" not in printed.out


def test_other_ways_of_naming(tmp_path):
    """Decathlon: label maps named like the reference, which lies without its images."""
    for name in ("liver_1", "liver_2"):
        write(tmp_path / "labelsTr" / f"{name}.nii.gz", label_map(1))
        write(tmp_path / "predictions" / f"{name}.nii.gz", label_map(1))
    pairs, problems = pair_up([tmp_path / "predictions"], [tmp_path / "labelsTr"])
    assert problems == []
    assert [pair.prediction.name for pair in pairs] == ["liver_1.nii.gz", "liver_2.nii.gz"]
    assert [pair.reference.label_path.parent.name for pair in pairs] == ["labelsTr", "labelsTr"]


def test_a_case_folder_pairs_by_its_name(tmp_path):
    write(tmp_path / "case17" / "ct.nii.gz", np.arange(54).reshape(6, 3, 3))
    write(tmp_path / "case17" / "label.nii.gz", label_map(1))
    write(tmp_path / "predictions" / "case17.nii.gz", label_map(1))
    pairs, problems = pair_up([tmp_path / "predictions"], [tmp_path / "case17"])
    assert problems == []
    (pair,) = pairs
    assert (pair.case_id, pair.reference.label_path.name) == ("case17", "label.nii.gz")


def test_what_can_not_be_paired(folders, tmp_path):
    predictions, references = folders
    with pytest.raises(InputError, match="nothing there"):
        pair_up([tmp_path / "missing"], [references])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="none"):
        pair_up([tmp_path / "empty"], [references])
    files = sorted(predictions.iterdir())
    with pytest.raises(SettingsError, match="as many files"):
        pair_up(files, files[:1])
    pairs, _ = pair_up(files, files)
    assert [pair.prediction for pair in pairs] == files


def test_two_paths_alone_are_enough(folders, tmp_path, capsys):
    predictions, references = folders
    assert main([str(predictions), str(references), "--output", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "scores.json").read_text())["input"] == [str(predictions)]
    assert main([str(predictions)]) == 1
    assert main([str(predictions), "--reference", str(references)]) == 1
    assert "--input and --reference" in capsys.readouterr().err


def test_tolerance_and_intervals(folders, tmp_path, capsys):
    options = ["--input", str(folders[0]), "--reference", str(folders[1]), "--output"]
    found = {}
    for mm in ("0", "1"):
        assert main([*options, str(tmp_path / mm), "--tolerance-mm", mm]) == 0
        found[mm] = json.loads((tmp_path / mm / "scores.json").read_text())
    assert found["1"]["tolerance_mm"] == 1
    # The liver of case 7 ends one voxel of 1 mm early.
    surface_dice = [found[mm]["cases"]["volume-7"]["liver"]["surface_dice"] for mm in ("0", "1")]
    assert surface_dice[0] < 1
    assert surface_dice[1] == 1
    dice = found["0"]["summary"]["liver_dice_per_case"]
    assert [dice["low"], dice["high"]] == pytest.approx([6 / 7, 1])
    assert "[0.857143, 1.000000]" in capsys.readouterr().out
    assert main([*options, str(tmp_path / "x"), "--tolerance-mm", "-1"]) == 1
    assert "--tolerance-mm" in capsys.readouterr().err


def test_the_task_is_that_of_the_predictions(heat_map_model, tmp_path, capsys):
    image = np.arange(54).reshape(6, 3, 3) * 20
    write(tmp_path / "references" / "a.nii.gz", label_map(1, 1, 0, 0))
    nib.save(nib.Nifti1Image(image.astype(np.uint16), np.diag([1, 2, 3, 1])), tmp_path / "a.nii")
    output = tmp_path / "predictions"
    assert predict(["--model", str(heat_map_model), str(tmp_path / "a.nii"), str(output)]) == 0
    capsys.readouterr()
    references = str(tmp_path / "references")
    assert main([str(output), references]) == 0
    printed = capsys.readouterr().out
    assert "lesion_dice_per_case" in printed
    assert "liver" not in printed
    files = [str(output / "a.nii.gz"), str(tmp_path / "references" / "a.nii.gz")]
    assert set(score_cases(*files, progress=False).rows["a"]) >= {"lesion_dice", "lesion_hd95_mm"}
    # A given task wins.
    assert main([str(output), references, "--task", "ct_liver"]) == 0
    assert "liver_dice_per_case" in capsys.readouterr().out
    (output / "prediction.json").write_text("{}")
    assert main([str(output), references]) == 1
    assert "prediction.json: expected the record of a prediction" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hits-in-mm"], "--hits-in-mm: expected a table of lesions"),
        (["--images", "nowhere"], "--images: expected images or a folder of them"),
    ],
)
def test_options_without_effect_are_refused(folders, capsys, options, message):
    assert main([*map(str, folders), *options]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err


class TestReferences:
    """References are read as conversion reads them; predictions have the classes' values."""

    IMAGE = np.arange(54).reshape(6, 3, 3)
    PREDICTION = label_map(1, 2, 2, 1)

    @pytest.fixture
    def decathlon(self, tmp_path):
        """A data set that calls tumours 1 and livers 2, and a perfect prediction."""
        names = {"0": "background", "1": "tumour", "2": "liver"}
        files = {"image": "imagesTr/x.nii.gz", "label": "labelsTr/x.nii.gz"}
        write(tmp_path / "set" / files["image"], self.IMAGE)
        write(tmp_path / "set" / files["label"], label_map(2, 1, 1, 2))
        content = json.dumps({"labels": names, "training": [files]})
        (tmp_path / "set" / "dataset.json").write_text(content)
        write(tmp_path / "predictions" / "x.nii.gz", self.PREDICTION)
        return tmp_path

    def test_swapped_values(self, decathlon):
        scores = score_cases(decathlon / "predictions", decathlon / "set")
        assert scores.problems == []
        assert scores.rows["x"]["liver_dice"] == 1
        assert scores.rows["x"]["lesion_dice_per_case"] == 1

    def test_the_page_shows_what_was_scored(self, decathlon):
        page = decathlon / "page.html"
        arguments = [str(decathlon / "predictions"), str(decathlon / "set"), "--report", str(page)]
        assert main(arguments) == 0
        text = page.read_text()
        blocks = [
            text.split(f'id="volume-0-{part}">')[1].split("<")[0]
            for part in ("reference", "prediction")
        ]
        assert blocks[0] == blocks[1]

    def test_labels_that_count_as_one_class(self, decathlon):
        task = {"base": "ct_liver", "class_names": ["background", "liver"]}
        task["label_classes"] = [["background", "background"], ["liver", "liver"]]
        task["label_classes"].append(["tumor", "liver"])
        write(decathlon / "predictions" / "x.nii.gz", label_map(1, 1, 1, 0))
        (decathlon / "task.json").write_text(json.dumps(task))
        arguments = [str(decathlon / "predictions"), str(decathlon / "set")]
        output = decathlon / "scores"
        arguments += ["--task", str(decathlon / "task.json"), "--output", str(output)]
        assert main([*arguments, "--report", str(decathlon / "page.html")]) == 0
        scores = json.loads((output / "scores.json").read_text())
        # 3 of 3 + 4 voxels.
        assert scores["cases"]["x"]["classes"]["liver"]["dice"] == pytest.approx(6 / 7)
        assert scores["summary"]["liver_dice_global"]["value"] == pytest.approx(6 / 7)
        content = content_of(decathlon / "page.html")
        assert "1 case by class; classes liver." in content["subtitle"]
        assert content["cases"][0]["facts"][0] == ["liver Dice", "0.8571"]
        # Of two files, the reference has the values of the task's labels.
        write(decathlon / "truth.nii.gz", label_map(1, 2, 2, 1))
        both = decathlon / "predictions" / "x.nii.gz", decathlon / "truth.nii.gz"
        rows = score_cases(*both, task=str(decathlon / "task.json")).rows
        assert rows["x"]["liver_dice"] == pytest.approx(6 / 7)

    def test_a_task_of_three_organs(self, tmp_path, capsys):
        organs = ["background", "liver", "spleen", "left kidney"]
        task = task_from_dict({"base": "ct_liver", "class_names": organs})
        for name, prediction, reference in (
            ("a", (1, 2, 3, 3), (1, 2, 2, 3)),
            ("b", (1, 1, 0, 0), (1, 0, 0, 0)),
        ):
            write(tmp_path / "predictions" / f"{name}.nii.gz", label_map(*prediction))
            write(tmp_path / "references" / f"{name}.nii.gz", label_map(*reference))
        scores = score_cases(tmp_path / "predictions", tmp_path / "references", task=task)
        dice = [[scores.rows[case][f"{organ}_dice"] for organ in organs[1:]] for case in "ab"]
        assert np.ravel(dice) == pytest.approx([1, 2 / 3, 2 / 3, 2 / 3, 1, 1])
        assert scores.rows["b"]["liver_rvd"] == pytest.approx(-1 / 2)
        assert scores.rows["b"]["liver_hd95_mm"] == pytest.approx(1)
        assert np.isnan(scores.rows["b"]["spleen_hd95_mm"])
        summary = scores.summary
        assert summary["liver_dice_per_case"]["value"] == pytest.approx((1 + 2 / 3) / 2)
        assert summary["liver_dice_global"]["value"] == pytest.approx(2 * 2 / (3 + 2))
        assert summary["spleen_hd95_mm"]["undefined"] == 1
        assert summary["spleen_voe"]["low"] == 0
        assert summary["spleen_voe"]["high"] == pytest.approx(1 / 2)
        (tmp_path / "task.json").write_text(json.dumps(task.to_dict()))
        arguments = [str(tmp_path / "predictions"), str(tmp_path / "references")]
        arguments += ["--task", str(tmp_path / "task.json")]
        assert main([*arguments, "--report", str(tmp_path / "page.html")]) == 0
        assert "left kidney surface Dice" in capsys.readouterr().out
        assert content_of(tmp_path / "page.html")["order"] == [0, 1]

    def test_masks_of_a_dicom_series(self, tmp_path, dicom):
        frames = self.IMAGE.transpose(2, 1, 0).astype(np.uint16)
        case = tmp_path / "cases" / "x"
        dicom.ct_series(case / "PATIENT_DICOM", frames)
        for name, value in (("liver", 1), ("livertumor01", 2)):
            mask = (self.PREDICTION.transpose(2, 1, 0) >= value).astype(np.uint8)
            dicom.ct_series(case / "MASKS_DICOM" / name, mask, RescaleIntercept=0)
        affine = read_dicom(case / "PATIENT_DICOM").affine
        write(tmp_path / "predictions" / "x.nii.gz", self.PREDICTION, affine)
        scores = score_cases(tmp_path / "predictions", tmp_path / "cases")
        assert scores.problems == []
        assert scores.rows["x"]["lesion_dice_per_case"] == 1

    def test_an_image_that_can_not_be_read(self, folders):
        before = score_cases(*folders)
        (folders[1] / "volume-0.nii.gz").write_bytes(b"damaged")
        assert score_cases(*folders).rows == before.rows

    def test_the_same_place_in_another_order(self, folders):
        predictions, references = folders
        turn = np.array([[0, -1.0, 0, 5], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
        stored = label_map(1, 2, 2, 2)[::-1].transpose(2, 0, 1)
        affine = np.diag([1.0, 2.0, 3.0, 1.0]) @ turn
        before = score_cases(predictions, references).rows
        write(predictions / "segmentation-0.nii.gz", stored, affine)
        assert score_cases(predictions, references).rows == before

    def test_a_lost_affine(self, folders, capsys):
        arguments = list(map(str, folders))
        write(folders[1] / "segmentation-0.nii.gz", label_map(1, 1, 2, 2), np.eye(4))
        assert main(arguments) == 1
        assert "With --allow label_geometry" in capsys.readouterr().err
        assert main([*arguments, "--allow", "label_geometry"]) == 0
        assert "volume-0" in capsys.readouterr().out
