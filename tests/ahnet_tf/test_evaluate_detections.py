"""Tables of detections against BCS-DBT's tables: the command, and what it refuses."""

import csv
import json

import nibabel
import numpy as np
import pytest

from ahnet_tf.evaluate import main
from preprocessing.datasets.bcs_dbt import dbt_case_id

BOXES = "PatientID,StudyUID,View,Subject,Slice,X,Y,Width,Height,Class,AD,VolumeSlices\n"
LABELS = "PatientID,StudyUID,View,Normal,Actionable,Benign,Cancer\n"
PREDICTIONS = "PatientID,StudyUID,View,Score,Z,X,Y,Depth,Width,Height\n"


@pytest.fixture
def tables(tmp_path):
    """Three patients: a box in one view of two of them, the third is normal."""
    folder = tmp_path / "dbt"
    folder.mkdir()
    (folder / "boxes.csv").write_text(
        BOXES
        + "ALICE,1.1,lcc,0,20,500,500,40,30,cancer,0,60\n"
        + "BERTA,1.2,rmlo,0,10,800,900,60,80,benign,0,50\n"
    )
    (folder / "labels.csv").write_text(
        LABELS
        + "ALICE,1.1,lcc,0,0,0,1\nALICE,1.1,lmlo,1,0,0,0\n"
        + "BERTA,1.2,rmlo,0,0,1,0\nCLARA,1.3,lcc,1,0,0,0\n"
    )
    predictions = tmp_path / "predictions.csv"
    predictions.write_text(
        PREDICTIONS
        + "ALICE,1.1,LCC,0.9,18,500,500,4,40,30\n"
        + "ALICE,1.1,lcc,0.8,18,510,500,4,40,30\n"
        + "BERTA,1.2,rmlo,0.7,10,100,100,4,40,30\n"
        + "BERTA,1.2,rmlo,0.6,10,100,400,4,40,30\n"
        + "BERTA,1.2,rmlo,0.5,9,800,900,2,60,80\n"
        + "CLARA,1.3,lcc,0.95,10,100,400,4,40,30\n"
    )
    return predictions, folder


def test_command(tables, tmp_path, capsys):
    predictions, folder = tables
    options = ["--input", str(predictions), "--reference", str(folder)]
    assert main([*options, "--output", str(tmp_path / "scores")]) == 0
    printed = capsys.readouterr().out
    assert "4 volumes, 1 of them without detections" in printed
    record = json.loads((tmp_path / "scores" / "scores.json").read_text())
    # Volumes with boxes: found 1 of 2 at no false positive, 2 of 2 at 2 in 2 volumes.
    summary = {name: entry["value"] for name, entry in record["summary"].items()}
    assert [summary[f"sensitivity_at_{n}_fp_volumes_with_boxes"] for n in (1, 2, 3, 4)] == [1] * 4
    assert summary["sensitivity_at_2_fp_all_volumes"] == 1
    assert record["curves"]["volumes_with_boxes"] == {
        "false_positives_per_volume": [0, 0, 0, 1, 1],
        "sensitivity": [0, 0.5, 0.5, 1, 1],
    }
    # The normal patient's comes first.
    all_volumes = record["curves"]["all_volumes"]["false_positives_per_volume"]
    assert all_volumes == [0, 0.25, 0.25, 0.75, 0.75]
    # If all patients drawn are BERTA, her box is found at 2 a volume, half of it at 1.
    entry = record["summary"]["sensitivity_at_1_fp_volumes_with_boxes"]
    assert [entry["low"], entry["high"]] == [0.5, 1]
    with open(tmp_path / "scores" / "scores.csv", newline="") as file:
        rows = {row.pop("case_id"): row for row in csv.DictReader(file)}
    assert rows[dbt_case_id("ALICE", "1.1", "lcc")] == {
        "boxes": "1",
        "boxes_hit": "1",
        "detections": "2",
        "false_positives": "0",
        "further_hits": "1",
    }
    for text in (printed, json.dumps(record), str(rows)):
        assert not any(name in text for name in ("ALICE", "BERTA", "CLARA"))


def test_unknown_volume_and_bad_box_are_named_by_row(tables, capsys):
    predictions, folder = tables
    with open(predictions, "a") as file:
        file.write("DORIS,1.4,lcc,0.9,18,500,500,4,40,30\n")
    with open(folder / "boxes.csv", "a") as file:
        file.write("CLARA,1.3,lcc,0,ten,500,500,40,30,cancer,0,60\n")
    assert main(["--input", str(predictions), "--reference", str(folder)]) == 1
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 2
    assert "boxes.csv, row 4: expected an integer in Slice" in errors[0]
    assert "predictions.csv, row 8: expected a volume of the reference tables" in errors[1]
    assert "DORIS" not in printed.err
    assert "3 volumes" in printed.out


def test_boxes_alone(tables, capsys):
    """Without labels every volume with detections counts."""
    predictions, folder = tables
    assert main([str(predictions), str(folder / "boxes.csv")]) == 0
    assert "3 volumes, 0 of them without" in capsys.readouterr().out
    files = [str(folder / name) for name in ("boxes.csv", "labels.csv")]
    assert main(["--input", str(predictions), "--reference", *files]) == 0
    assert "4 volumes, 1 of them without" in capsys.readouterr().out


def test_nothing_found_is_a_score(tables, tmp_path):
    predictions, folder = tables
    predictions.write_text(PREDICTIONS)
    assert main([str(predictions), str(folder), "--output", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "scores.json").read_text())["summary"]
    assert {(entry["value"], entry["high"]) for entry in summary.values()} == {(0, 0)}


@pytest.mark.parametrize("case", ["missing", "no boxes", "two inputs", "nothing in it"])
def test_what_can_not_be_scored(tables, tmp_path, capsys, case):
    predictions, folder = tables
    options = {
        "missing": [str(predictions), str(tmp_path / "nowhere")],
        "no boxes": [str(predictions), str(folder / "labels.csv")],
        "two inputs": ["--input", *[str(predictions)] * 2, "--reference", str(folder)],
        "nothing in it": [str(predictions), str(tmp_path / "empty")],
    }
    (tmp_path / "empty").mkdir()
    assert main(options[case]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "expected" in line


def test_hits_in_mm_use_the_spacing_of_each_image(tables, tmp_path, capsys):
    """30 pixels from the box's centre hit; of 0.1 mm they are 3 mm, of 0.5 mm 15 mm, which don't."""
    predictions, folder = tables
    away = PREDICTIONS
    for key, z, x, y, width, height in (
        ("ALICE,1.1,lcc", 18, 530, 500, 40, 30),
        ("BERTA,1.2,rmlo", 8, 830, 900, 60, 80),
    ):
        away += f"{key},0.9,{z},{x},{y},4,{width},{height}\n"
    predictions.write_text(away)
    # Half the diagonal of a box always hits, whatever the spacing: BERTA's is made small.
    boxes = (folder / "boxes.csv").read_text().replace("800,900,60,80", "825,935,10,10")
    (folder / "boxes.csv").write_text(boxes)
    rows = [("ALICE_lcc", 0.1), ("ALICE_lmlo", 0.1), ("BERTA_rmlo", 0.5)]
    for name, step_mm in rows:
        voxels = np.zeros((8, 8, 4), np.uint16)
        affine = np.diag([step_mm, step_mm, 1.0, 1.0])
        nibabel.save(nibabel.Nifti1Image(voxels, affine), folder / f"{name}.nii.gz")
    arguments = [str(predictions), str(folder), "--output", str(tmp_path)]

    def hits() -> dict[str, int]:
        with open(tmp_path / "scores.csv", newline="") as file:
            return {row["case_id"]: int(row["boxes_hit"]) for row in csv.DictReader(file)}

    alice, berta = dbt_case_id("ALICE", "1.1", "lcc"), dbt_case_id("BERTA", "1.2", "rmlo")
    assert main(arguments) == 0
    assert (hits()[alice], hits()[berta]) == (1, 1)
    assert main([*arguments, "--hits-in-mm"]) == 1
    assert (hits()[alice], hits()[berta]) == (1, 0)
    # CLARA has no image.
    (line,) = capsys.readouterr().err.splitlines()
    clara = dbt_case_id("CLARA", "1.3", "lcc")
    assert line.startswith(f"error: case {clara}: expected an image")
    assert clara not in hits()
