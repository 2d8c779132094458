"""Folders of predictions: what is kept, replaced or deleted in them, and who may write there."""

import json

import nibabel as nib
import numpy as np
import pytest

from ahnet_tf.predict import main


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
