"""Folders of predictions: what is kept, replaced or deleted in them, and who may write there."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest

from ahnet_tf.inference.run_record import only_run_in
from ahnet_tf.predict import main
from preprocessing.datasets.bcs_dbt import BOX_COLUMNS, replace_rows


def write(path, seed=0):
    """Writes a small volume of air, liver and tumour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.array([-900, 60, 200], np.int16)
    voxels = np.random.default_rng(seed).choice(values, (6, 5, 4))
    nib.save(nib.Nifti1Image(voxels, np.diag([1, 1, 4, 1])), path)


def record_of(output):
    return json.loads((output / "prediction.json").read_text())


def test_input_in_a_folder_of_predictions_is_never_overwritten(threshold_model, tmp_path, capsys):
    data = tmp_path / "data"
    for name in ("volume-1", "anna", "volume-0", "segmentation-0"):
        write(data / f"{name}.nii.gz")
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    command = ["--model", str(threshold_model), "--probabilities"]
    assert main([*command, str(data / "volume-1.nii.gz"), str(data)]) == 0
    # Its own outputs may be replaced; an image and a reference may not.
    assert main([*command, str(data / "volume-1.nii.gz"), str(data)]) == 0
    for name, target in (("anna", "anna.nii.gz"), ("volume-0", "segmentation-0.nii.gz")):
        capsys.readouterr()
        assert main([*command, str(data / f"{name}.nii.gz"), str(data)]) == 1
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
        assert f"{target}, which" in line
        assert "folder of their own" in line
    assert {name: (data / name).read_bytes() for name in before} == before
    # Not even if it is one of the earlier outputs.
    label_map = data / "segmentation-1.nii.gz"
    label_map.rename(data / "volume-7.nii.gz")
    label_map.symlink_to(data / "volume-7.nii.gz")
    write(data / "volume-7.nii.gz")
    (tmp_path / "volume-1.nii.gz").symlink_to(data / "volume-7.nii.gz")
    assert main([*command, str(tmp_path / "volume-1.nii.gz"), str(data)]) == 1
    assert "segmentation-1.nii.gz, which is input" in capsys.readouterr().err


def test_a_foreign_table_is_not_overwritten(heat_map_model, tmp_path, capsys):
    write(tmp_path / "anna.nii.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "lesions.csv").write_text("mine")
    command = ["--model", str(heat_map_model), str(tmp_path / "anna.nii.gz"), str(tmp_path / "out")]
    assert main(command) == 1
    assert "lesions.csv, which would be overwritten" in capsys.readouterr().err
    assert (tmp_path / "out" / "lesions.csv").read_text() == "mine"


@pytest.mark.parametrize("options", [[], ["--resume"]])
def test_what_a_killed_run_was_writing_is_its_own(threshold_model, tmp_path, options):
    for name in "ab":
        write(tmp_path / "cases" / f"{name}.nii.gz")
    output = tmp_path / "out"
    command = ["--model", str(threshold_model), str(tmp_path / "cases"), str(output)]
    assert main(command) == 0
    # As if it had been killed between the second label map and the record of it.
    record = record_of(output)
    assert "in_progress" not in record
    record |= {"cases": record["cases"][:1], "in_progress": ["b.nii.gz"]}
    (output / "prediction.json").write_text(json.dumps(record))
    assert main([*command, *options]) == 0
    assert [entry["case_id"] for entry in record_of(output)["cases"]] == ["a", "b"]


def test_a_record_that_names_files_elsewhere_is_damaged(threshold_model, tmp_path, capsys):
    write(tmp_path / "anna.nii.gz")
    output = tmp_path / "out"
    command = ["--model", str(threshold_model), str(tmp_path / "anna.nii.gz"), str(output)]
    assert main(command) == 0
    record = record_of(output) | {"in_progress": ["../anna.nii.gz"]}
    (output / "prediction.json").write_text(json.dumps(record))
    assert main(command) == 1
    assert "an output elsewhere, ../anna.nii.gz" in capsys.readouterr().err
    assert (tmp_path / "anna.nii.gz").exists()


def test_outputs_of_an_earlier_run_do_not_stay(threshold_model, tmp_path, capsys):
    """Not where a case fails, nor where it is no longer input, nor of options that are not given."""
    cases, output = tmp_path / "cases", tmp_path / "out"
    for number in range(3):
        write(cases / f"volume-{number}.nii.gz", seed=number)
    command = ["--model", str(threshold_model), str(cases), str(output)]
    assert main([*command, "--probabilities", "--overlay"]) == 0
    (output / "notes.txt").write_text("mine")
    (cases / "volume-1.nii.gz").write_bytes(b"damaged")
    (cases / "volume-2.nii.gz").unlink()
    capsys.readouterr()
    assert main([*command, "--overlap", "0.5"]) == 1
    # 3 label maps, 9 probability maps and 3 pictures.
    assert f"removed 15 outputs of an earlier run from {output}" in capsys.readouterr().err
    files = {path.name for path in output.rglob("*") if path.is_file()}
    assert files == {"segmentation-0.nii.gz", "prediction.json", "notes.txt"}


def test_an_output_that_is_input_is_not_deleted(threshold_model, tmp_path, capsys):
    write(tmp_path / "anna.nii.gz")
    output = tmp_path / "out"
    command = ["--model", str(threshold_model), "--probabilities"]
    assert main([*command, str(tmp_path / "anna.nii.gz"), str(output)]) == 0
    # The next case is a link to what stands in the place of an output.
    write(output / "anna.nii.gz")
    (tmp_path / "berta.nii.gz").symlink_to(output / "anna.nii.gz")
    # With other settings the earlier outputs would be deleted.
    command += ["--overlap", "0.5"]
    assert main([*command, str(tmp_path / "berta.nii.gz"), str(output)]) == 1
    assert f"{output / 'anna.nii.gz'}, which is input" in capsys.readouterr().err
    assert len(list(output.rglob("*.nii.gz"))) == 4


def test_a_failed_case_has_no_outputs(threshold_model, tmp_path):
    write(tmp_path / "anna.nii.gz")
    output = tmp_path / "out"
    output.mkdir()
    # The label map can be written, probability maps can't.
    (output / "probabilities").write_text("mine")
    command = ["--model", str(threshold_model), str(tmp_path / "anna.nii.gz"), str(output)]
    assert main([*command, "--probabilities"]) == 1
    (entry,) = record_of(output)["cases"]
    assert entry["status"] == "failed"
    assert sorted(path.name for path in output.iterdir()) == ["prediction.json", "probabilities"]


def bright(path):
    """Writes a tomosynthesis with a ball that is a lesion."""
    path.parent.mkdir(exist_ok=True)
    x, y, z = np.ogrid[:20, :20, :9]
    squared = (x - 10) ** 2 + (y - 10) ** 2 + (z - 4) ** 2
    voxels = (500 * (1 - squared / 18)).clip(0).astype(np.uint16)
    nib.save(nib.Nifti1Image(voxels, np.diag([0.5, 0.5, 2, 1])), path)


@pytest.mark.parametrize("options", [[], ["--resume"]])
def test_the_finished_cases_of_other_input_are_kept(heat_map_model, tmp_path, options):
    """Both those with rows of tables, whose PatientID is in the table of lesions only, and others."""
    box = dict.fromkeys(BOX_COLUMNS, 1) | {"StudyUID": "1.2.3", "Class": "cancer"}
    box |= {"VolumeSlices": 9, "View": "lcc"}
    for patient in ("P-1", "P-2"):
        bright(tmp_path / patient / f"{patient}_lcc.nii.gz")
        table = tmp_path / patient / "boxes.csv"
        replace_rows(table, BOX_COLUMNS, "PatientID", "", [box | {"PatientID": patient}])
    bright(tmp_path / "anna.nii.gz")
    output = tmp_path / "out"
    for name in ("P-1", "anna.nii.gz", "P-2"):
        command = ["--model", str(heat_map_model), str(tmp_path / name), str(output), *options]
        assert main(command) == 0
    with open(output / "lesions.csv", encoding="utf-8") as file:
        keys = [(row["PatientID"], row["StudyUID"], row["View"]) for row in csv.DictReader(file)]
    assert keys == [("P-1", "1.2.3", "lcc"), ("anna", "-", "-"), ("P-2", "1.2.3", "lcc")]
    entries = record_of(output)["cases"]
    assert [entry["status"] for entry in entries] == ["predicted"] * 3
    assert all((output / entry["outputs"][0]).is_file() for entry in entries)
    # A case without its label map is not finished.
    (output / "anna.nii.gz").unlink()
    assert main(command) == 0
    assert len(record_of(output)["cases"]) == 2
    with open(output / "lesions.csv", encoding="utf-8") as file:
        assert [row["PatientID"] for row in csv.DictReader(file)] == ["P-1", "P-2"]


def test_one_run_at_a_time_writes_into_a_folder(threshold_model, tmp_path, capsys):
    write(tmp_path / "anna.nii.gz")
    output = tmp_path / "out"
    command = ["--model", str(threshold_model), str(tmp_path / "anna.nii.gz"), str(output)]
    with only_run_in(output):
        assert main(command) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert f"found another run in {output}" in line
    assert list(output.iterdir()) == []
    assert main(command) == 0
    assert sorted(path.name for path in output.iterdir()) == ["anna.nii.gz", "prediction.json"]
