"""Runs of predict: resumed, ended by a full disk or a bad model; lesion tables, post-processing."""

import csv
import json
import os
import resource
import shutil

import nibabel as nib
import numpy as np
import pytest

from ahnet_tf.config import ModelConfig
from ahnet_tf.inference.predictor import ExportSettings
from ahnet_tf.predict import main
from preprocessing.datasets.bcs_dbt import BOX_COLUMNS, replace_rows
from preprocessing.datasets.detection_table import read_detections
from preprocessing.files import write_json


def write(path, voxels, affine=None):
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([1, 1, 4, 1]) if affine is None else affine), path)


def tissue(shape=(6, 5, 4), seed=0):
    random = np.random.default_rng(seed)
    return random.choice(np.array([-900, 60, 200], np.int16), shape)


def states(output):
    record = json.loads((output / "prediction.json").read_text())
    return {entry["case_id"]: entry["status"] for entry in record["cases"]}


def test_resume_predicts_what_is_missing_changed_or_failed(threshold_model, tmp_path, capsys):
    cases, output = tmp_path / "cases", tmp_path / "out"
    for number in range(4):
        write(cases / f"volume-{number}.nii.gz", tissue(seed=number))
    (cases / "volume-3.nii.gz").write_bytes(b"damaged")
    options = ["--model", str(threshold_model), str(cases), str(output)]
    assert main(options) == 1
    assert states(output)["volume-3"] == "failed"
    predicted = [output / f"segmentation-{number}.nii.gz" for number in range(4)]
    (output / "segmentation-1.nii.gz").unlink()
    for number in (2, 3):
        write(cases / f"volume-{number}.nii.gz", tissue((5, 5, 4), seed=number))
    before = predicted[0].stat()
    capsys.readouterr()
    assert main([*options, "--resume"]) == 0
    printed = capsys.readouterr().out
    assert [f"volume-{number}:" in printed for number in range(4)] == [False, True, True, True]
    assert os.path.samestat(predicted[0].stat(), before)
    assert nib.load(predicted[2]).shape == (5, 5, 4)
    assert states(output) == dict.fromkeys([f"volume-{n}" for n in range(4)], "predicted")
    # Nothing is left to do; other settings would mix predictions, other files do not.
    (cases / "segmentation-0.nii").touch()
    assert main([*options, "--resume"]) == 0
    assert capsys.readouterr().out == ""
    assert main([*options, "--resume", "--overlap", "0.5"]) == 1
    assert "other settings" in capsys.readouterr().err
    assert states(output) == dict.fromkeys([f"volume-{n}" for n in range(4)], "predicted")
    (output / "prediction.json").write_text('{"cases": 1}')
    assert main([*options, "--resume"]) == 1
    assert "record of an earlier run" in capsys.readouterr().err


def test_resume_into_an_empty_folder_predicts_all(threshold_model, tmp_path):
    write(tmp_path / "anna.nii.gz", tissue())
    options = [str(tmp_path / "anna.nii.gz"), str(tmp_path / "out")]
    assert main(["--model", str(threshold_model), *options, "--resume"]) == 0
    assert states(tmp_path / "out") == {"anna": "predicted"}


def entry_of(output):
    (entry,) = json.loads((output / "prediction.json").read_text())["cases"]
    return entry


def test_a_picture_that_fails_is_a_warning_and_no_failure(threshold_model, tmp_path, capsys):
    cases, output = tmp_path / "cases", tmp_path / "out"
    write(cases / "volume-0.nii.gz", tissue())
    write(cases / "segmentation-0.nii.gz", np.zeros((3, 3, 3), np.uint8))
    options = ["--model", str(threshold_model), str(cases), str(output), "--overlay"]
    assert main(options) == 0
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "no picture" in x]
    assert line.startswith("warning: volume-0: no picture: ")
    assert "segmentation-0.nii.gz" in line
    assert entry_of(output)["status"] == "predicted"
    assert entry_of(output)["outputs"] == ["segmentation-0.nii.gz"]
    # With a reference that fits, only the picture is made.
    write(cases / "segmentation-0.nii.gz", np.zeros((6, 5, 4), np.uint8))
    before = (output / "segmentation-0.nii.gz").stat()
    assert main([*options, "--resume"]) == 0
    assert entry_of(output)["outputs"] == ["segmentation-0.nii.gz", "overlays/volume-0.png"]
    assert os.path.samestat((output / "segmentation-0.nii.gz").stat(), before)


def test_pictures_do_not_undo_predictions(threshold_model, tmp_path):
    cases, output = tmp_path / "cases", tmp_path / "out"
    write(cases / "anna.nii.gz", tissue())
    options = ["--model", str(threshold_model), str(cases), str(output)]
    assert main([*options, "--overlay"]) == 0
    before = (output / "anna.nii.gz").stat()
    picture = output / "overlays" / "anna.png"
    pixels = picture.read_bytes()
    for change in ("deleted", "not wanted", "deleted"):
        picture.unlink(missing_ok=True)
        wanted = [] if change == "not wanted" else ["--overlay"]
        assert main([*options, *wanted, "--resume"]) == 0
        assert picture.is_file() == bool(wanted)
        assert os.path.samestat((output / "anna.nii.gz").stat(), before)
    assert picture.read_bytes() == pixels
    assert entry_of(output)["outputs"] == ["anna.nii.gz", "overlays/anna.png"]


def test_resume_sees_another_file_behind_a_link(threshold_model, tmp_path, capsys):
    for number in range(2):
        write(tmp_path / "stored" / f"{number}.nii", tissue(seed=number))
        os.utime(tmp_path / "stored" / f"{number}.nii", (1, 1))
    (tmp_path / "cases").mkdir()
    link = tmp_path / "cases" / "anna.nii"
    link.symlink_to(tmp_path / "stored" / "0.nii")
    options = ["--model", str(threshold_model), str(tmp_path / "cases"), str(tmp_path / "out")]
    assert main(options) == 0
    link.unlink()
    link.symlink_to(tmp_path / "stored" / "1.nii")
    capsys.readouterr()
    assert main([*options, "--resume"]) == 0
    assert "anna:" in capsys.readouterr().out


def test_a_full_disk_ends_the_run_and_keeps_finished_cases(threshold_model, tmp_path, capsys):
    cases, output = tmp_path / "cases", tmp_path / "out"
    write(cases / "a.nii.gz", tissue())
    write(cases / "b.nii.gz", tissue((64, 64, 64)))
    write(cases / "c.nii.gz", tissue())
    options = ["--model", str(threshold_model), str(cases), str(output)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on the size of files fails writes as a full disk does, in the middle of a file.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        assert main(options) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert "room for the predictions" in line
    assert "--resume" in line
    assert sorted(path.name for path in output.iterdir()) == ["a.nii.gz", "prediction.json"]
    assert states(output) == {"a": "predicted"}
    assert main([*options, "--resume"]) == 0
    assert states(output) == {"a": "predicted", "b": "predicted", "c": "predicted"}


def dark(shape):
    """Intensities below the threshold of a lesion."""
    return np.random.default_rng(0).integers(0, 90, shape).astype(np.uint16)


def bright_spots(shape, spots):
    """Balls of 3 voxels' radius, the intensity falling from each peak to its half at the border."""
    axes = np.ogrid[tuple(map(slice, shape))]
    voxels = np.zeros(shape)
    for peak, centre in spots:
        squared = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True))
        voxels = np.maximum(voxels, peak * (1 - squared / 18))
    return voxels.clip(0).astype(np.uint16)


@pytest.fixture(scope="module")
def failing_model(tmp_path_factory, threshold_task):
    """A SavedModel that predicts NaN wherever a voxel is 777."""
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None] * 4 + [1], tf.float32, name="image")])
    def predict_windows(image):
        answer = tf.where(image == 777, np.nan, 1 / 3)
        return {"probabilities": tf.tile(answer, [1, 1, 1, 1, 3])}

    folder = tmp_path_factory.mktemp("models") / "nan"
    tf.saved_model.save(tf.Module(), str(folder), {"predict_windows": predict_windows})
    settings = ExportSettings(threshold_task, ModelConfig(), (4, 8, 8))
    write_json(folder / "assets.extra" / "ahnet.json", settings.to_dict())
    return folder


def test_nan_from_the_model_ends_the_run_with_one_line(failing_model, tmp_path, capsys):
    """Damaged weights are wrong for every case, so the run ends. Finished cases are kept."""
    cases, output = tmp_path / "cases", tmp_path / "out"
    for number in range(3):
        write(cases / f"volume-{number}.nii.gz", tissue(seed=number))
    voxels = tissue(seed=1)
    voxels[3, 2, 1] = 777
    write(cases / "volume-1.nii.gz", voxels)
    assert main(["--model", str(failing_model), str(cases), str(output)]) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert "finite probabilities" in line
    assert states(output) == {"volume-0": "predicted"}
    assert nib.load(output / "segmentation-0.nii.gz").shape == (6, 5, 4)
    assert not (output / "segmentation-1.nii.gz").exists()


def test_a_model_with_other_channels_is_refused(threshold_model, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(threshold_model, model)
    settings = json.loads((model / "assets.extra" / "ahnet.json").read_text())
    settings["model"]["channels"] = 3
    (model / "assets.extra" / "ahnet.json").write_text(json.dumps(settings))
    write(tmp_path / "in" / "anna.nii.gz", tissue())
    assert main(["--model", str(model), str(tmp_path / "in"), str(tmp_path / "out")]) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert "channel" in line
    assert "Traceback" not in line
    assert not (tmp_path / "out").exists()


def lesion_rows(output):
    with open(output / "lesions.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_lesion_table_has_the_identifiers_of_the_data_set(heat_map_model, tmp_path, capsys):
    cases, output = tmp_path / "cases", tmp_path / "out"
    flipped = np.diag([-0.5, -0.5, 2.0, 1.0])
    voxels = bright_spots((40, 30, 20), [(900, (8, 20, 6)), (600, (30, 10, 12))])
    write(cases / "P-1_lcc.nii.gz", voxels, flipped)
    write(cases / "P-1_rmlo.nii.gz", voxels[::-1], flipped)
    write(cases / "P-2_lcc.nii.gz", dark((20, 20, 9)), flipped)
    box = dict.fromkeys(BOX_COLUMNS, 1) | {"Class": "cancer", "VolumeSlices": 20}
    rows = [
        box | {"PatientID": patient, "StudyUID": "1.2.3", "View": view}
        for patient, view in (("P-1", "lcc"), ("P-1", "rmlo"), ("P-2", "lcc"))
    ]
    replace_rows(cases / "boxes.csv", BOX_COLUMNS, "PatientID", "", rows)
    options = ["--model", str(heat_map_model), str(cases), str(output)]
    assert main(options) == 0
    found = lesion_rows(output)
    assert [(row["PatientID"], row["StudyUID"], row["View"]) for row in found] == [
        *[("P-1", "1.2.3", "lcc")] * 2,
        *[("P-1", "1.2.3", "rmlo")] * 2,
    ]
    boxes = [
        tuple(int(row[name]) for name in ("X", "Y", "Z", "Width", "Height", "Depth"))
        for row in found
    ]
    # Half the peak or more within 3 voxels of it: 7 of them along each axis.
    assert boxes[:2] == [(5, 17, 3, 7, 7, 7), (27, 7, 9, 7, 7, 7)]
    assert boxes[2:] == [(40 - 5 - 7, 17, 3, 7, 7, 7), (40 - 27 - 7, 7, 9, 7, 7, 7)]
    assert [float(row["Score"]) for row in found] == pytest.approx([0.9, 0.6] * 2)
    # The record and the messages contain case ids only.
    assert "P-1" not in (output / "prediction.json").read_text()
    assert "P-1" not in "".join(capsys.readouterr())
    table = (output / "lesions.csv").read_bytes()
    (output / "lesions.csv").unlink()
    assert main([*options, "--resume"]) == 0
    assert (output / "lesions.csv").read_bytes() == table
    assert main([*options, "--threshold", "0.7", "--most-lesions", "1"]) == 0
    assert [row["Score"] for row in lesion_rows(output)] == ["0.9", "0.9"]


def test_without_tables_the_case_id_is_the_patient_id(heat_map_model, tmp_path):
    write(tmp_path / "anna.nii.gz", bright_spots((20, 20, 9), [(500, (10, 10, 4))]))
    options = [str(tmp_path / "anna.nii.gz"), str(tmp_path / "out")]
    assert main(["--model", str(heat_map_model), *options]) == 0
    (row,) = lesion_rows(tmp_path / "out")
    assert (row["PatientID"], row["StudyUID"], row["View"]) == ("anna", "-", "-")
    assert float(row["Score"]) == pytest.approx(0.5)
    found, _ = read_detections(tmp_path / "out" / "lesions.csv")
    assert list(found) == [("anna", "-", "-")]


def test_no_lesion_gives_an_empty_table(heat_map_model, tmp_path):
    write(tmp_path / "anna.nii.gz", dark((9, 9, 9)))
    options = [str(tmp_path / "anna.nii.gz"), str(tmp_path / "out")]
    assert main(["--model", str(heat_map_model), *options]) == 0
    assert lesion_rows(tmp_path / "out") == []


def test_post_processing_by_option(threshold_model, heat_map_model, tmp_path, capsys):
    # Liver, a tumour in it, one of a voxel in it, a speck of tumour outside, a speck of liver.
    voxels = np.array([60, 200, 200, 60, 200, 60, -900, 200, -900, 60], np.int16).reshape(-1, 1, 1)
    write(tmp_path / "anna.nii.gz", voxels)
    options = [str(tmp_path / "anna.nii.gz"), str(tmp_path / "out")]
    for flags, labels in (
        ([], [1, 2, 2, 1, 2, 1, 0, 2, 0, 1]),
        (["--largest-component"], [1, 2, 2, 1, 2, 1, 0, 0, 0, 0]),
        (["--lesions-in-organ"], [1, 2, 2, 1, 2, 1, 0, 0, 0, 1]),
        # Voxels of 4 mm3.
        (["--smallest-lesion-mm3", "5"], [1, 2, 2, 1, 1, 1, 0, 0, 0, 1]),
    ):
        assert main(["--model", str(threshold_model), *options, *flags]) == 0
        written = nib.load(tmp_path / "out" / "anna.nii.gz")
        assert np.asarray(written.dataobj).ravel().tolist() == labels
    assert main(["--model", str(heat_map_model), *options, "--lesions-in-organ"]) == 1
    expected = (
        "error: lesions_in_organ: expected a task of an organ and its tumours, found the classes"
    )
    assert f"{expected} background, lesion\n" in capsys.readouterr().err
