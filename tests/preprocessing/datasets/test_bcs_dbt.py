"""BCS-DBT's tables: finding volumes, reading boxes, errors, and no identifiers in outputs."""

import hashlib
import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from preprocessing.convert import main as convert_main
from preprocessing.datasets.bcs_dbt import (
    BOX_COLUMNS,
    LABEL_COLUMNS,
    OUTCOMES,
    dbt_case_id,
    read_tables,
    rows_of_volume,
)
from preprocessing.datasets.discovery import discover, find_cases
from preprocessing.datasets.reading import read_case_image
from preprocessing.files import write_csv
from preprocessing.records.schema import parse_example
from preprocessing.tasks import load_task
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.lesions import LesionBox
from preprocessing.volumes.nifti import write_image

BOXES = "PatientID,StudyUID,View,Subject,Slice,X,Y,Width,Height,Class,AD,VolumeSlices"
LABELS = "PatientID,StudyUID,View,Normal,Actionable,Benign,Cancer"
PATHS = "PatientID,StudyUID,View,descriptive_path,classic_path"
CANCER = "DBT-P00013,DBT-S00163,rcc,3,5,10,12,8,6,cancer,0,12"
SHAPE = (40, 48, 12)


def breast(seed=0):
    """Returns stripes of tissue beside air [x, y, z], with noise."""
    voxels = np.random.default_rng(seed).integers(0, 60, SHAPE).astype(np.uint16)
    voxels[:28] += (500 + 300 * (np.arange(48) % 16 < 8)).astype(np.uint16)[:, np.newaxis]
    return voxels


def write_volume(path, seed=0):
    voxels = breast(seed)
    write_image(path, Volume(np.asfortranarray(voxels), np.diag([0.5, 0.5, 1.0, 1.0])))


def write_tables(folder, boxes=(CANCER,), labels=None, paths=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "boxes.csv").write_text("\n".join([BOXES, *boxes]) + "\n")
    if labels is not None:
        (folder / "labels.csv").write_text("\n".join([LABELS, *labels]) + "\n")
    if paths is not None:
        (folder / "paths.csv").write_text("\n".join([PATHS, *paths]) + "\n")


def the_problem(folder):
    (case,) = find_cases([folder], need_labels=True)
    return case.problem


def test_case_id_by_hand():
    digest = hashlib.sha256(b"DBT-P00013/DBT-S00163/rcc").hexdigest()
    assert dbt_case_id("DBT-P00013", "DBT-S00163", "RCC ") == f"dbt-{digest[:12]}"


def test_sample_of_real_layout(real_data):
    cases = find_cases([real_data / "victre_dbt_insilico"], need_labels=True)
    positive, negative = cases
    assert positive.case_id == dbt_case_id("VICTRE-00001", "1.2.3.1", "lcc")
    assert positive.image_path.name == "dbt_positive.nii.gz"
    assert positive.boxes == (
        LesionBox(146, 318, 41, 52, 29, 52, "cancer", where="boxes.csv, row 2"),
    )
    assert negative.image_path.name == "dbt_negative.nii.gz"
    assert negative.boxes == ()
    assert not positive.problem + negative.problem
    assert positive.view == negative.view == "lcc"


@pytest.mark.parametrize(
    "name",
    [
        "DBT-P00013_rcc.nii.gz",
        "dbt_p00013-DBT-S00163-RCC.nii",
        "DBT-P00013/rcc.nii.gz",
        "{case_id}.nii.gz",
    ],
)
def test_volumes_are_found_by_their_names(tmp_path, name):
    other = CANCER.replace("rcc", "lcc")
    write_tables(tmp_path, [CANCER, other])
    path = tmp_path / name.format(case_id=dbt_case_id("DBT-P00013", "DBT-S00163", "rcc"))
    write_volume(path)
    found, missing = find_cases([tmp_path], need_labels=True)
    assert found.image_path == path
    assert not found.problem
    assert missing.problem == "boxes.csv, row 3: expected a volume for this row, found none"


def test_a_part_of_another_patient_id_does_not_match(tmp_path):
    write_tables(tmp_path, labels=["DBT-P00013,DBT-S00163,rcc,0,0,0,1"])
    write_volume(tmp_path / "DBT-P000131_rcc.nii.gz")
    row, file = find_cases([tmp_path], need_labels=True)
    assert "expected a volume for this row" in row.problem
    assert "expected a row of the tables that names it" in file.problem


def test_paths_table_replaces_names_and_stays_inside(tmp_path):
    folder = tmp_path / "set"
    paths = ["DBT-P00013,DBT-S00163,rcc,deep/1-1.nii.gz,x/1-1.nii.gz"]
    write_tables(folder, paths=paths)
    write_volume(folder / "x" / "1-1.nii.gz")
    (case,) = find_cases([folder], need_labels=True)
    assert case.image_path == folder / "x" / "1-1.nii.gz"
    write_volume(tmp_path / "outside.nii.gz")
    os.mkfifo(folder / "more-boxes.csv")
    for outside in ("../outside.nii.gz", str(tmp_path / "outside.nii.gz"), "x" * 5000):
        write_tables(folder, paths=[f"DBT-P00013,DBT-S00163,rcc,{outside},"])
        cases = find_cases([folder], need_labels=True)
        assert cases[0].image_path is None
        assert "expected a volume for this row, found none" in cases[0].problem


def test_public_file_names_and_byte_order_marks(tmp_path):
    text = f"\ufeff{BOXES}\r\n{CANCER}\r\n"
    (tmp_path / "BCS-DBT-boxes-train-v2.csv").write_text(text, encoding="utf-8")
    tables = read_tables(tmp_path)
    (row,) = tables.rows.values()
    assert row.boxes == [
        LesionBox(10, 12, 8, 6, 5, 12, "cancer", "BCS-DBT-boxes-train-v2.csv, row 2")
    ]
    (tmp_path / "BCS-DBT-boxes-train-v2.csv").unlink()
    assert read_tables(tmp_path) is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (CANCER.replace("cancer", "mass"), "a Class among benign, cancer, found 'mass'"),
        (CANCER.replace(",10,12,", ",ten,12,"), "an integer in X, found 'ten'"),
        (CANCER.replace(",5,10,", ",12,10,"), "a Slice from 0 to below VolumeSlices 12, found 12"),
    ],
)
def test_a_wrong_box_rejects_only_its_case(tmp_path, row, message):
    write_tables(tmp_path, [row, CANCER.replace("P00013", "P00014")])
    write_volume(tmp_path / "DBT-P00013.nii.gz")
    write_volume(tmp_path / "DBT-P00014.nii.gz")
    wrong, right = find_cases([tmp_path], need_labels=True)
    assert wrong.problem == f"boxes.csv, row 2: expected {message}"
    assert not right.problem


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            f"{BOXES[:-13]}\n",
            r"boxes.csv, row 1: expected columns .* found none named VolumeSlices",
        ),
        (f"{BOXES}\n{CANCER},1\n", r"boxes.csv, row 2: expected 12 values, found more or fewer"),
        (f"{BOXES}\n{CANCER[10:]}\n", r"boxes.csv, row 2: expected a PatientID and a StudyUID"),
        (f'{BOXES}\n"a', "boxes.csv: expected a CSV table in UTF-8"),
        ("", "row 1: expected columns PatientID"),
    ],
)
def test_an_invalid_table_is_a_problem_of_its_volumes(tmp_path, content, message):
    (tmp_path / "boxes.csv").write_text(content)
    write_volume(tmp_path / "DBT-P00013.nii.gz")
    assert re.search(message, the_problem(tmp_path))
    # Predictions need no boxes.
    result = discover([tmp_path], need_labels=False)
    assert [case.problem for case in result.cases] == [""]
    assert re.search(message, result.passed_over[0])


def test_labels_and_boxes_must_agree(tmp_path):
    write_volume(tmp_path / "DBT-P00013.nii.gz")
    place = "DBT-P00013,DBT-S00163,rcc"
    write_tables(tmp_path, [], [f"{place},0,0,1,0"])
    assert "expected a box for a volume labelled Benign or Cancer" in the_problem(tmp_path)
    write_tables(tmp_path, labels=[f"{place},1,0,0,0"])
    assert "boxes.csv, row 2: expected no box in a volume of labels.csv, row 2" in the_problem(
        tmp_path
    )
    write_tables(tmp_path, labels=[f"{place},0,yes,0,0"])
    assert "labels.csv, row 2: expected 0 or 1" in the_problem(tmp_path)
    write_tables(tmp_path, [], [f"{place},0,1,0,0"])
    assert the_problem(tmp_path) == ""


def test_without_labels_volumes_without_a_box_are_normal(tmp_path):
    write_tables(tmp_path)
    write_volume(tmp_path / "DBT-P00013.nii.gz")
    write_volume(tmp_path / "another.nii.gz")
    boxed, normal = find_cases([tmp_path], need_labels=True)
    assert (len(boxed.boxes), normal.boxes) == (1, ())
    assert not boxed.problem + normal.problem
    assert normal.case_id.startswith("dbt-")


def test_two_volumes_for_one_row_are_a_problem(tmp_path):
    write_tables(tmp_path)
    write_volume(tmp_path / "DBT-P00013_a.nii.gz")
    write_volume(tmp_path / "DBT-P00013_b.nii.gz")
    assert "expected one volume, found 2 with this row's names" in the_problem(tmp_path)


def test_a_file_of_another_view_or_study_is_not_that_of_a_row(tmp_path):
    """The only row of a patient is that of rcc; the other views of a positive case are normal."""
    write_tables(tmp_path)
    views = ("lcc", "rcc", "lmlo", "rmlo")
    for seed, view in enumerate(views):
        write_volume(tmp_path / f"DBT-P00013_{view}.nii.gz", seed)
    write_volume(tmp_path / "DBT-P00013_DBT-S00999_rcc.nii.gz", 4)
    cases = find_cases([tmp_path], need_labels=True)
    boxes = {case.image_path.name: len(case.boxes) for case in cases}
    assert boxes == {
        **{f"DBT-P00013_{view}.nii.gz": int(view == "rcc") for view in views},
        "DBT-P00013_DBT-S00999_rcc.nii.gz": 0,
    }
    assert not any(case.problem for case in cases)
    assert len({case.patient for case in cases}) == 1
    (tmp_path / "DBT-P00013_rcc.nii.gz").unlink()
    problems = [case.problem for case in find_cases([tmp_path], need_labels=True) if case.problem]
    assert len(problems) == 1
    assert "expected a volume for this row, found none" in problems[0]


def test_a_volume_without_a_row_is_told_without_its_patient(tmp_path):
    labels = ["DBT-P00013,DBT-S00163,rcc,0,0,0,1"]
    write_tables(tmp_path, labels=labels)
    write_volume(tmp_path / "DBT-P00013_rcc.nii.gz")
    write_volume(tmp_path / "DBT-P00013_lmlo.nii.gz", 1)
    problems = [case.problem for case in find_cases([tmp_path], need_labels=True) if case.problem]
    assert problems == ["#_lmlo.nii.gz: expected a row of the tables that names it, found none"]
    # Of thousands of patients each case is compared with its own only.
    known = [case.identifiers for case in find_cases([tmp_path], need_labels=True)]
    assert sorted(known) == [("DBT-P00013",), ("DBT-P00013", "DBT-S00163")]


def test_all_views_of_a_patient_are_in_one_split(tmp_path):
    rows = [f"DBT-P{n},DBT-S{n},{view},0,0,0,0" for n in range(4) for view in ("lcc", "rcc")]
    box = CANCER.replace("P00013", "P0").replace("S00163", "S0")
    write_tables(tmp_path / "d", [box], labels=[row[:-7] + "1,0,0,0" for row in rows])
    labels = (
        (tmp_path / "d" / "labels.csv")
        .read_text()
        .replace("P0,DBT-S0,rcc,1,0,0,0", "P0,DBT-S0,rcc,0,0,0,1")
    )
    (tmp_path / "d" / "labels.csv").write_text(labels)
    for seed, row in enumerate(rows):
        patient, _, view, *_ = row.split(",")
        write_volume(tmp_path / "d" / f"{patient}_{view}.nii.gz", seed)
    options = ["--task", "dbt_lesion", "--patch-shape", "8", "32", "32", "--patches-per-case", "1"]
    options += ["--input", str(tmp_path / "d"), "--output", str(tmp_path / "out")]
    assert convert_main([*options, "--eval-fraction", "0.5"]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    split = {entry["case_id"]: entry["split"] for entry in manifest["cases"]}
    assert set(split.values()) == {"train", "eval"}
    for n in range(4):
        own = {split[dbt_case_id(f"DBT-P{n}", f"DBT-S{n}", view)] for view in ("lcc", "rcc")}
        assert len(own) == 1


def test_without_need_for_labels_every_volume_is_a_case(tmp_path):
    write_tables(tmp_path, [CANCER.replace("cancer", "mass"), CANCER.replace("P00013", "P9")])
    write_volume(tmp_path / "DBT-P00013.nii.gz")
    (case,) = find_cases([tmp_path], need_labels=False)
    assert case.case_id == dbt_case_id("DBT-P00013", "DBT-S00163", "rcc")
    assert not case.problem


def test_conversion_reports_errors_without_identifiers(tmp_path, capsys):
    rows = [
        CANCER,
        CANCER.replace("P00013", "P00014").replace(",10,12,8,", ",36,12,8,"),
        CANCER.replace("P00013", "P00015").replace("cancer", "mass"),
        CANCER.replace("P00013", "P00016"),
    ]
    folder, output = tmp_path / "set", tmp_path / "records"
    write_tables(folder, rows)
    for patient in (13, 14, 15):
        write_volume(folder / f"DBT-P000{patient}_rcc.nii.gz", patient)
    write_volume(folder / "DBT-P00017_rcc.nii.gz", 17)
    (folder / "DBT-P00016_rcc.nii.gz").write_bytes(b"no volume")
    options = ["--task", "dbt_lesion", "--patch-shape", "8", "16", "16", "--patches-per-case", "4"]
    assert convert_main(["--input", str(folder), "--output", str(output), *options]) == 1
    manifest = json.loads((output / "manifest.json").read_text())
    assert (manifest["converted"], manifest["rejected"]) == (2, 3)
    reasons = [case.get("reason", "") for case in manifest["cases"]]
    assert "boxes.csv, row 3: expected a box within the image's 40 columns" in reasons[1]
    assert "boxes.csv, row 4: expected a Class" in reasons[2]
    assert "NIfTI header" in reasons[3]
    said = capsys.readouterr()
    written = [path.read_bytes() for path in output.rglob("*") if path.is_file()]
    written += [said.out.encode(), said.err.encode()]
    written += [str(path.relative_to(output)).encode() for path in output.rglob("*")]
    for content in written:
        for identifier in (b"P00013", b"P00014", b"P00015", b"P00016", b"S00163"):
            assert identifier not in content.upper()


def test_public_layout_in_dicom_is_rotated_to_its_view(tmp_path, dicom):
    """Two breasts in the layout of the archive, one stored upside down."""
    stored = breast().transpose(2, 1, 0)
    folder, output = tmp_path / "set", tmp_path / "records"
    series = "set/DBT-P00013/01-01-2000-DBT-S00163-MAMMO/1-1.dcm"
    other = "set/DBT-P00014/01-01-2000-DBT-S00164-MAMMO/1-1.dcm"
    dicom.save(dicom.multi_frame(stored, PatientID="DBT-P00013"), folder / series)
    dicom.save(dicom.multi_frame(stored[:, ::-1, ::-1], PatientID="DBT-P00014"), folder / other)
    boxes = [
        f"{patient},lcc,{row},5,10,12,8,6,cancer,0,12"
        for row, patient in enumerate(("DBT-P00013,DBT-S00163", "DBT-P00014,DBT-S00164"))
    ]
    paths = [f"DBT-P00013,DBT-S00163,lcc,{series},", f"DBT-P00014,DBT-S00164,lcc,x/1.dcm,{other}"]
    write_tables(folder, boxes, paths=paths)
    options = ["--task", "dbt_lesion", "--patch-shape", "12", "48", "40", "--patches-per-case", "1"]
    # The same voxels twice, once rotated.
    first, second = find_cases([folder], need_labels=True)
    images = [read_case_image(case).voxels for case in (first, second)]
    np.testing.assert_array_equal(*images)
    np.testing.assert_array_equal(images[0], stored.transpose(2, 1, 0))
    (folder / other).unlink()
    options += ["--input", str(folder), "--output", str(output)]
    assert convert_main([*options, "--allow-rejected"]) == 0
    records = next((output / "train").glob("*.tfrecord"))
    task = load_task(str(output / "task.json"))
    record = next(tf.data.TFRecordDataset(str(records)).as_numpy_iterator())
    example = parse_example(tf.constant(record), task)
    # Without a position, columns run to the left and rows to posterior: both are flipped.
    found = example["heat_map"].numpy()[:, ::-1, ::-1]
    centre = found[5, 14:16, 13:15]
    # Sides of 8 and 6 voxels: half a voxel from the centre in both.
    np.testing.assert_allclose(centre, 1 - (0.5**2 / 16 + 0.5**2 / 9) / 2, atol=1 / 255)
    lesion = found[5] >= 0.5
    assert np.flatnonzero(lesion.any(axis=0)).tolist() == list(range(10, 18))
    assert np.flatnonzero(lesion.any(axis=1)).tolist() == list(range(12, 18))
    content = b"".join(path.read_bytes() for path in output.rglob("*") if path.is_file())
    for identifier in (b"P00013", b"S00163", *(v.encode() for v in dicom.identifiers)):
        assert identifier not in content


def test_rows_of_a_volume_are_read_back(tmp_path):
    boxes = (LesionBox(3, 4, 5, 6, 7, 20, "benign"), LesionBox(13, 14, 5, 6, 8, 20, "cancer"))
    key = ("P-1", "1.2.3", "lcc")
    rows, label = rows_of_volume(key, boxes, subject=9)
    assert [row["Subject"] for row in rows] == [9, 9]
    assert {name: label[name] for name in OUTCOMES} == {
        **{"Normal": 0, "Actionable": 0},
        **{"Benign": 0, "Cancer": 1},
    }
    assert rows_of_volume(key, (), 9)[1]["Normal"] == 1
    write_csv(tmp_path / "boxes.csv", BOX_COLUMNS, rows)
    write_csv(tmp_path / "labels.csv", LABEL_COLUMNS, [label])
    read = read_tables(tmp_path).rows[key]
    assert [replace(box, where="box") for box in read.boxes] == list(boxes)
    assert not read.problem
