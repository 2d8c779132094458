"""Tables of detected lesions in BCS-DBT's columns; errors name the row, never the patient."""

import pytest

from preprocessing.datasets.detection_table import Detection, read_detections
from preprocessing.errors import InputError

HEADER = "PatientID,StudyUID,View,Score,Z,X,Y,Depth,Width,Height\n"


def table(tmp_path, *rows, header=HEADER):
    path = tmp_path / "predictions.csv"
    path.write_text(header + "".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def test_rows_by_volume(tmp_path):
    path = table(
        tmp_path,
        "P1,1.2,LCC,0.9,10,100,200,5,30,40",
        "P2,1.3,rmlo,1e-3,0,0,0,0,1.5,2",
        "P1,1.2,lcc,0.5,-1,7,8,1,2,3",
    )
    detections, places = read_detections(path)
    assert detections == {
        ("P1", "1.2", "lcc"): [
            Detection(0.9, x=100, y=200, z=10, width=30, height=40, depth=5),
            Detection(0.5, x=7, y=8, z=-1, width=2, height=3, depth=1),
        ],
        ("P2", "1.3", "rmlo"): [Detection(0.001, 0, 0, 0, 1.5, 2, 0)],
    }
    assert places[("P1", "1.2", "lcc")] == "predictions.csv, row 2"


def test_no_detections_at_all(tmp_path):
    assert read_detections(table(tmp_path)) == ({}, {})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("P77,1.2,lcc,high,1,1,1,1,1,1", "row 2: expected a finite number in Score"),
        ("P77,1.2,lcc,nan,1,1,1,1,1,1", "row 2: expected a finite number in Score"),
        ("P77,1.2,lcc,0.5,1,inf,1,1,1,1", "finite number in X"),
        ("P77,1.2,lcc,0.5,1,1,1,1,-3,1", "Width of at least 0, found -3"),
        ("P77,1.2,,0.5,1,1,1,1,1,1", "no View"),
        ("P77,1.2,lcc,0.5,1,1", "row 2: expected 10 values"),
    ],
    ids=["word", "nan", "inf", "size", "view", "short"],
)
def test_invalid_rows(tmp_path, row, message):
    with pytest.raises(InputError, match=message) as caught:
        read_detections(table(tmp_path, row))
    assert "P77" not in str(caught.value)


def test_missing_column(tmp_path):
    with pytest.raises(InputError, match="none named Depth"):
        read_detections(table(tmp_path, header=HEADER.replace("Depth", "Slices")))
