"""The published layouts of data sets: what is a case, what is passed over, and why."""

import json
import os
import re

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from preprocessing.datasets import discovery
from preprocessing.datasets.discovery import discover, find_cases
from preprocessing.errors import InputError
from tests.preprocessing.datasets.empty_files import touch

STORED = np.arange(24, dtype=np.uint16).reshape(3, 2, 4)
NAMES = {"0": "background", "1": "liver", "2": "tumour"}


def listed(root, **content):
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps({"labels": NAMES} | content))
    return root


def entry(image, label):
    return {"image": image, "label": label}


def found(root, need_labels=True):
    """{case id: (image, label)} with paths relative to the root, and what is passed over."""
    result = discover([root], need_labels=need_labels)
    cases = {
        case.case_id: tuple(
            path and os.path.relpath(path, root) for path in (case.image_path, case.label_path)
        )
        for case in result.cases
        if not case.problem
    }
    return cases, dict(line.split(": ", 1) for line in short(result.passed_over, root))


def short(lines, root):
    return [line.replace(f"{root}{os.sep}", "") for line in lines]


def images(root):
    """{case id: image} for prediction."""
    return {name: image for name, (image, _) in found(root, need_labels=False)[0].items()}


def problems(root):
    cases = find_cases([root], need_labels=True)
    return {case.case_id: case.problem.replace(f"{root}{os.sep}", "") for case in cases}


def test_lits_with_its_test_volumes(tmp_path):
    for n in range(2):
        touch(tmp_path, f"volumes/volume-{n}.nii", f"segmentations/segmentation-{n}.nii")
        touch(tmp_path, f"test/test-volume-{n}.nii")
    cases, passed = found(tmp_path)
    assert cases == {
        f"volume-{n}": (f"volumes/volume-{n}.nii", f"segmentations/segmentation-{n}.nii")
        for n in range(2)
    }
    assert passed == {"test": "2 files: a test image without a label map"}
    assert problems(tmp_path) == {"volume-0": "", "volume-1": ""}
    assert images(tmp_path) == {
        **{f"volume-{n}": f"volumes/volume-{n}.nii" for n in range(2)},
        **{f"test-volume-{n}": f"test/test-volume-{n}.nii" for n in range(2)},
    }


def test_lits_with_its_test_volumes_in_one_folder(tmp_path):
    touch(tmp_path, "volume-0.nii", "segmentation-0.nii", "test-volume-0.nii")
    assert found(tmp_path)[0] == {"volume-0": ("volume-0.nii", "segmentation-0.nii")}
    assert images(tmp_path) == {
        "volume-0": "volume-0.nii",
        "test-volume-0": "test-volume-0.nii",
    }


def test_two_sets_of_lits_with_equal_numbers(tmp_path):
    for part in "ab":
        touch(tmp_path / part, "volumes/volume-1.nii", "segmentations/segmentation-1.nii")
    cases, _ = found(tmp_path)
    assert sorted(cases.values()) == [
        (f"{part}/volumes/volume-1.nii", f"{part}/segmentations/segmentation-1.nii")
        for part in "ab"
    ]


@pytest.mark.parametrize(
    ("image", "label", "case_id"),
    [
        ("volume-0.nii.gz", "labels-0.nii.gz", "volume-0"),  # CT-ORG
        ("img/img0001.nii.gz", "label/label0001.nii.gz", "img0001"),  # BTCV
        ("AbdomenCT-1K-ImagePart1/Case_00001_0000.nii.gz", "Mask/Case_00001.nii.gz", "Case_00001"),
        ("imagesVa/amos_0100.nii.gz", "labelsVa/amos_0100.nii.gz", "amos_0100"),  # AMOS
        ("imagesTs/c_010_0000.nii.gz", "labelsTs/c_010.nii.gz", "c_010"),  # nnU-Net
        ("imagesTr/x_0000.nii.gz", "labelsTr/x_0000.nii.gz", "x_0000"),  # numbers from 0
        ("images/volume-3.nii", "labels/volume-3.nii", "volume-3"),
        ("PatientA/CTVolume.nii", "PatientA/labels/made_by_hand.nii", "PatientA"),
        ("pA_img01.nii", "pA_mask01.nii", None),
        ("ct/p1_0000.nii", "seg/p1.nii", "p1"),
    ],
)
def test_pairs_by_words(tmp_path, image, label, case_id):
    root = touch(tmp_path / "data", image, label)
    cases, passed = found(root)
    assert cases == {case_id or "data": (image, label)}
    assert passed == {}
    # The label map is never an image, with its image or without.
    assert list(images(root).values()) == [image]
    (root / image).unlink()
    with pytest.raises(InputError, match="a label map, not an image"):
        find_cases([root], need_labels=False)


def test_numbered_folders_of_images_and_label_maps(tmp_path):
    for n in (1, 2):
        touch(tmp_path / "a", f"ct{n}/x.nii", f"seg{n}/x.nii")
        touch(tmp_path / "b", f"CT{n}/ct.nii", f"CT{n}/label.nii")
    touch(tmp_path / "b", "labels/other.nii")
    touch(tmp_path / "c", "raw_images/x.nii", "manual_labels/x.nii")
    cases, _ = found(tmp_path)
    assert set(cases.values()) == {
        *((f"a/ct{n}/x.nii", f"a/seg{n}/x.nii") for n in (1, 2)),
        *((f"b/CT{n}/ct.nii", f"b/CT{n}/label.nii") for n in (1, 2)),
        ("c/raw_images/x.nii", "c/manual_labels/x.nii"),
    }


def test_the_name_of_a_folder_that_is_more_than_its_role(tmp_path):
    for name in ("test_labels0", "Lung_Seg_Data", "test_ct_0"):
        touch(tmp_path / name, "p1.nii")
        assert images(tmp_path / name) == {"p1": "p1.nii"}
        assert "expected a label map beside this image" in problems(tmp_path / name)["p1"]


def test_several_pairs_by_words(tmp_path):
    for n in (1, 2):
        touch(tmp_path, f"img{n:04d}.nii", f"label{n:04d}.nii")
        touch(tmp_path / "x", f"ImagePart1/Case_{n}_0000.nii", f"Mask/Case_{n}.nii")
    assert found(tmp_path)[0] == {
        **{f"img{n:04d}": (f"img{n:04d}.nii", f"label{n:04d}.nii") for n in (1, 2)},
        **{
            f"Case_{n}": (f"x/ImagePart1/Case_{n}_0000.nii", f"x/Mask/Case_{n}.nii") for n in (1, 2)
        },
    }


def test_test_images_with_label_maps_and_without(tmp_path):
    touch(tmp_path / "a", "imagesTr/c_1_0000.nii.gz", "labelsTr/c_1.nii.gz")
    touch(
        tmp_path / "a",
        "imagesTs/c_1_0000.nii.gz",
        "imagesTs/c_2_0000.nii.gz",
        "labelsTs/c_1.nii.gz",
    )
    cases, passed = found(tmp_path / "a")
    assert cases == {
        f"images{s}_c_1": (f"images{s}/c_1_0000.nii.gz", f"labels{s}/c_1.nii.gz")
        for s in ("Tr", "Ts")
    }
    assert passed == {"imagesTs/c_2_0000.nii.gz": "a test image without a label map"}
    # labelsTs alone.
    touch(tmp_path / "b", "imagesTr/c_1.nii", "labelsTr/c_1.nii", "labelsTs/c_9.nii")
    cases, passed = found(tmp_path / "b")
    assert list(cases) == ["c_1"]
    assert passed == {"labelsTs/c_9.nii": "the label map of a test image that is not there"}
    # References of an evaluation.
    (case,) = find_cases([tmp_path / "b" / "labelsTs"], need_labels=True)
    assert case.label_path == tmp_path / "b" / "labelsTs" / "c_9.nii"


def test_test_images_of_btcv(tmp_path):
    touch(tmp_path, "Training/img/img0001.nii", "Training/label/label0001.nii")
    touch(tmp_path, "Testing/img/img0061.nii")
    cases, passed = found(tmp_path)
    assert list(cases) == ["img0001"]
    assert passed == {"Testing/img/img0061.nii": "a test image without a label map"}


def test_channels_of_nnunet(tmp_path):
    for n in (1, 2):
        touch(
            tmp_path, *(f"imagesTr/c_{n}_000{k}.nii.gz" for k in range(3)), f"labelsTr/c_{n}.nii.gz"
        )
    touch(tmp_path, "imagesTs/t_0000.nii.gz", "imagesTs/t_0001.nii.gz")
    cases, passed = found(tmp_path)
    assert cases == {
        f"c_{n}": (f"imagesTr/c_{n}_0000.nii.gz", f"labelsTr/c_{n}.nii.gz") for n in (1, 2)
    }
    reason = "a further channel of an image; only channel 0000 is read"
    further = [f"imagesTr/c_{n}_000{k}.nii.gz" for n in (1, 2) for k in (1, 2)]
    assert {path for path, why in passed.items() if why == reason} == {
        *further,
        "imagesTs/t_0001.nii.gz",
    }
    assert set(images(tmp_path)) == {"c_1", "c_2", "t"}


def test_numbers_that_are_no_channels(tmp_path):
    """`pancreas_0000` to `pancreas_0002` are cases, as the label maps say."""
    for n in range(3):
        touch(tmp_path, f"imagesTr/pancreas_{n:04d}.nii", f"labelsTr/pancreas_{n:04d}.nii")
    assert list(found(tmp_path)[0]) == [f"pancreas_{n:04d}" for n in range(3)]
    other = tmp_path / "other"
    touch(other, *(f"images/case_{n:04d}.nii" for n in range(3)))
    touch(other, *(f"labels/case_{n:04d}_seg.nii" for n in range(3)))
    assert found(other)[0] == {
        f"case_{n:04d}": (f"images/case_{n:04d}.nii", f"labels/case_{n:04d}_seg.nii")
        for n in range(3)
    }
    touch(tmp_path / "plain", *(f"scan_{n:04d}.nii" for n in range(3)))
    assert len(images(tmp_path / "plain")) == 3


def test_totalsegmentator(tmp_path):
    for n in range(2):
        organs = (f"s000{n}/segmentations/{organ}.nii.gz" for organ in ("aorta", "liver", "spleen"))
        touch(tmp_path, f"s000{n}/ct.nii.gz", *organs)
    cases, passed = found(tmp_path)
    assert cases == {f"s000{n}": (f"s000{n}/ct.nii.gz", f"s000{n}/segmentations") for n in range(2)}
    assert passed == {}
    assert images(tmp_path) == {f"s000{n}": f"s000{n}/ct.nii.gz" for n in range(2)}
    assert found(tmp_path, need_labels=False)[1] == {
        f"s000{n}/segmentations": "a label map, not an image" for n in range(2)
    }
    (tmp_path / "s0000" / "ct.nii.gz").unlink()
    assert list(images(tmp_path)) == ["s0001"]


def test_label_maps_without_images_are_never_predicted(tmp_path):
    touch(
        tmp_path, "scan.nii", "labelsVa/a.nii", "Mask/b.nii", "x/segmentations/c.nii", "x/seg-7.nii"
    )
    touch(tmp_path, "liver_masks_v2/d.nii", "x/mask3.nii", "manual labels/e.nii")
    cases, passed = found(tmp_path, need_labels=False)
    assert [image for image, _ in cases.values()] == ["scan.nii"]
    assert len(passed) == 6
    assert passed["x"] == "2 files: a label map, not an image"


class TestDatasetJson:
    def test_nnunet_v1_lists_names_without_channels(self, tmp_path):
        names = ["pancreas_0001", "pancreas_0002"]
        for name in names:
            touch(tmp_path, f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz")
        training = [entry(f"./imagesTr/{n}.nii.gz", f"./labelsTr/{n}.nii.gz") for n in names]
        listed(tmp_path, training=training, test=[])
        cases, passed = found(tmp_path)
        assert cases == {n: (f"imagesTr/{n}_0000.nii.gz", f"labelsTr/{n}.nii.gz") for n in names}
        assert passed == {}
        assert list(images(tmp_path)) == names

    def test_unpacked_files(self, tmp_path):
        touch(tmp_path, "imagesTr/liver_0.nii", "labelsTr/liver_0.nii", "imagesTs/liver_5.nii")
        training = [entry("./imagesTr/liver_0.nii.gz", "./labelsTr/liver_0.nii.gz")]
        listed(tmp_path, training=training, test=["./imagesTs/liver_5.nii.gz"])
        assert found(tmp_path)[0] == {"liver_0": ("imagesTr/liver_0.nii", "labelsTr/liver_0.nii")}
        assert list(images(tmp_path)) == ["liver_0", "liver_5"]

    def test_missing_files(self, tmp_path):
        touch(tmp_path, "imagesTr/a.nii", "imagesTr/b.nii", "labelsTr/b.nii")
        training = [entry(f"imagesTr/{n}.nii", f"labelsTr/{n}.nii") for n in "abc"]
        training.append(entry("x" * 5000, "labelsTr/c.nii"))
        listed(tmp_path, training=training, test=["imagesTs/d.nii", "x" * 5000])
        missing = "listed in dataset.json, file missing"
        found_problems = problems(tmp_path)
        assert found_problems.pop(next(name for name in found_problems if "xxx" in name))
        assert found_problems == {
            "a": f"labelsTr/a.nii: {missing}",
            "b": "",
            "c": f"imagesTr/c.nii: {missing}",
        }
        assert images(tmp_path) == {"a": "imagesTr/a.nii", "b": "imagesTr/b.nii"}
        passed = found(tmp_path, need_labels=False)[1]
        assert passed["imagesTr/c.nii"] == passed["imagesTs/d.nii"] == missing

    def test_absolute_paths(self, tmp_path):
        """Of this folder, of another machine, and outside."""
        root = touch(
            tmp_path / "x", *(f"{k}Tr/{n}.nii" for k in ("images", "labels") for n in "abc")
        )
        training = [
            entry(f"{root}/imagesTr/a.nii", f"{root}/labelsTr/a.nii"),
            entry("/home/me/x/imagesTr/b.nii", "D:\\me\\x\\labelsTr\\b.nii"),
            entry("/etc/passwd", f"{root}/labelsTr/c.nii"),
        ]
        listed(root, training=training)
        assert found(root)[0] == {n: (f"imagesTr/{n}.nii", f"labelsTr/{n}.nii") for n in "ab"}
        assert "expected files below its folder in each entry" in problems(root)["x_entry-1"]

    def test_dataset_of_nnunet_v2(self, tmp_path):
        touch(tmp_path, "ct/1.nii.gz", "ct/1pet.nii.gz", "truth/one.nii.gz")
        cases = {
            "case A": {"images": ["ct/1.nii.gz", "ct/1pet.nii.gz"], "label": "truth/one.nii.gz"}
        }
        listed(tmp_path, labels={"background": 0, "liver": 1}, dataset=cases, file_ending=".nii.gz")
        cases, passed = found(tmp_path)
        assert cases == {"case_A": ("ct/1.nii.gz", "truth/one.nii.gz")}
        assert list(passed) == ["ct/1pet.nii.gz"]

    def test_lists_of_amos(self, tmp_path):
        for split in ("Tr", "Va"):
            touch(tmp_path, f"images{split}/amos_{split}.nii", f"labels{split}/amos_{split}.nii")
        lists = {
            kind: [entry(f"images{s}/amos_{s}.nii", f"labels{s}/amos_{s}.nii")]
            for kind, s in (("training", "Tr"), ("validation", "Va"))
        }
        touch(tmp_path, "imagesTs/t.nii")
        listed(tmp_path, **lists, test=[{"image": "imagesTs/t.nii"}])
        cases, passed = found(tmp_path)
        assert list(cases) == ["amos_Tr", "amos_Va"]
        assert passed == {"imagesTs/t.nii": "a test image without a label map"}

    def test_further_channels_and_test_data_that_are_not_listed(self, tmp_path):
        touch(tmp_path, "imagesTr/a_0000.nii", "imagesTr/a_0001.nii", "labelsTr/a.nii")
        touch(tmp_path, "imagesTs/b_0000.nii", "labelsTs/b.nii")
        listed(tmp_path, training=[entry("imagesTr/a.nii", "labelsTr/a.nii")])
        cases, passed = found(tmp_path)
        assert list(cases) == ["a"]
        assert problems(tmp_path) == {"a": ""}
        assert set(passed) == {"imagesTr/a_0001.nii", "imagesTs/b_0000.nii", "labelsTs/b.nii"}

    @pytest.mark.parametrize(
        ("labels", "names"),
        [
            # The smallest region of a value is its name.
            (
                {"background": 0, "liver": [1, 2], "tumour": 2, "ignore": 3},
                ((0, "background"), (1, "liver"), (2, "tumour"), (3, "ignore")),
            ),
            (
                {"whole": [1, 2, 3], "core": [2, 3], "part": [3]},
                ((1, "whole"), (2, "core"), (3, "part")),
            ),
            ({"a": [1, 2], "b": 3}, ((1, "a"), (2, "a"), (3, "b"))),
            ({"background": "0", "liver": "1"}, ((0, "background"), (1, "liver"))),
            # Two regions of the same size, a value that is no integer.
            ({"background": 0, "a": [1, 2], "b": [1, 3]}, None),
            ({"background": 0, "a": 1.5}, None),
            ({"background": 0, "a": True}, None),
            ({"background": 0, "a": []}, None),
        ],
    )
    def test_regions(self, tmp_path, labels, names):
        touch(tmp_path, "imagesTr/a_0000.nii", "labelsTr/a.nii")
        listed(tmp_path, labels=labels)
        (case,) = find_cases([tmp_path], need_labels=True)
        if names is None:
            assert "dataset.json: expected labels such as" in case.problem
        else:
            assert (case.label_names, case.problem) == (names, "")
        # Predictions need no labels.
        (case,) = find_cases([tmp_path], need_labels=False)
        assert (case.case_id, case.problem) == ("a", "")

    def test_a_damaged_list_concerns_its_own_folder(self, tmp_path):
        for name in ("bad", "good"):
            touch(tmp_path / name, "imagesTr/a_0000.nii", f"labelsTr/{'a'}.nii")
        (tmp_path / "bad" / "dataset.json").write_text("{")
        listed(tmp_path / "good")
        result = discover([tmp_path], need_labels=True)
        assert [bool(case.problem) for case in result.cases] == [False, True]
        assert "bad/dataset.json: expected JSON" in result.cases[1].problem
        assert short(result.passed_over, tmp_path) == [
            "bad/dataset.json: expected JSON, found JSONDecodeError"
        ]
        assert len(find_cases([tmp_path], need_labels=False)) == 2


class TestTables:
    def test_a_damaged_table_concerns_its_own_folder(self, tmp_path):
        touch(tmp_path, "dbt/DBT-P00013.nii.gz", "ct/volume-1.nii", "ct/segmentation-1.nii")
        (tmp_path / "dbt" / "boxes.csv").write_text("PatientID\n1\n")
        result = discover([tmp_path], need_labels=True)
        broken, good = sorted(result.cases, key=lambda case: case.case_id)
        assert "boxes.csv, row 1: expected columns" in broken.problem
        assert broken.case_id.startswith("dbt-")
        assert (good.case_id, good.problem) == ("volume-1", "")
        assert "P00013" not in "".join((broken.problem, *result.passed_over))

    def test_tables_of_a_folder_below(self, tmp_path):
        header = "PatientID,StudyUID,View,Slice,X,Y,Width,Height,Class,VolumeSlices"
        touch(tmp_path, "dbt/P0001_lcc.nii.gz", "dbt/P0001/1.dcm", "ct/volume-1.nii")
        (tmp_path / "dbt" / "boxes.csv").write_text(f"{header}\nP0001,S1,lcc,1,1,1,1,1,cancer,4\n")
        cases, passed = found(tmp_path, need_labels=False)
        assert len(cases) == 2
        assert list(passed.values()) == ["no image of a row of the tables"]
        assert "P0001" not in "".join(passed)


class TestDicom:
    def test_a_slice_as_input_is_no_series(self, tmp_path, dicom):
        dicom.ct_series(tmp_path / "CT", STORED)
        (case,) = find_cases([tmp_path / "CT" / "IM0001.dcm"], need_labels=False)
        assert case.image_path == tmp_path / "CT" / "IM0001.dcm"

    def segmentation(self, dicom, path, kind="4", refers_to=None):
        """Writes a DICOM SEG (1.2.840.10008.5.1.4.1.1.66.4), or a label map SEG (7)."""
        dataset = dicom.multi_frame(STORED)
        dataset.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.66.{kind}"
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.Modality, dataset.SeriesInstanceUID = "SEG", "1.2.3.77"
        if refers_to:
            item = Dataset()
            item.SeriesInstanceUID = refers_to
            dataset.ReferencedSeriesSequence = Sequence([item])
        return dicom.save(dataset, path)

    @pytest.mark.parametrize("kind", ["4", "7"])
    @pytest.mark.parametrize("place", ["CT/seg.dcm", "CT/0.dcm", "SEG/seg.dcm", "seg.dcm"])
    def test_segmentations_are_label_maps(self, tmp_path, dicom, kind, place):
        dicom.ct_series(tmp_path / "p" / "CT", STORED)
        self.segmentation(dicom, tmp_path / "p" / place, kind)
        assert found(tmp_path) == ({"p": ("p/CT", f"p/{place}")}, {})
        cases, passed = found(tmp_path, need_labels=False)
        assert [image for image, _ in cases.values()] == ["p/CT"]
        assert list(passed) == ([] if place.startswith("CT") else [f"p/{place}"])

    def test_segmentations_belong_to_the_series_they_refer_to(self, tmp_path, dicom):
        for n in (1, 2):
            dicom.ct_series(tmp_path / f"ct{n}", STORED, SeriesInstanceUID=f"1.2.3.{n}")
        self.segmentation(dicom, tmp_path / "elsewhere" / "s" / "a.dcm", refers_to="1.2.3.2")
        self.segmentation(dicom, tmp_path / "elsewhere" / "s" / "b.dcm", refers_to="1.2.3.9")
        cases, passed = found(tmp_path)
        assert cases == {"ct2": ("ct2", "elsewhere/s/a.dcm")}
        assert passed == {"elsewhere/s/b.dcm": "a DICOM segmentation of none of the images here"}

    def test_several_segmentations_of_a_series(self, tmp_path, dicom):
        dicom.ct_series(tmp_path / "CT", STORED)
        for name in "ab":
            self.segmentation(dicom, tmp_path / "SEG" / f"{name}.dcm")
        assert "expected one label map, found 2 DICOM segmentations" in "".join(
            problems(tmp_path).values()
        )

    def test_segmentations_alone(self, tmp_path, dicom):
        path = self.segmentation(dicom, tmp_path / "refs" / "a.dcm")
        (case,) = find_cases([tmp_path], need_labels=True)
        assert (case.case_id, case.label_path) == ("a", path)
        with pytest.raises(InputError, match="a DICOM segmentation"):
            find_cases([tmp_path], need_labels=False)

    def test_3d_ircadb_as_published(self, tmp_path, dicom):
        case = tmp_path / "3Dircadb1.1"
        dicom.ct_series(case / "PATIENT_DICOM" / "PATIENT_DICOM", STORED)
        dicom.ct_series(case / "MASKS_DICOM" / "MASKS_DICOM" / "liver", STORED)
        dicom.ct_series(case / "LABELLED_DICOM", STORED)
        touch(case, "MESHES_VTK/liver.vtk")
        cases, passed = found(tmp_path)
        assert cases == {
            "3Dircadb1.1": (
                "3Dircadb1.1/PATIENT_DICOM/PATIENT_DICOM",
                "3Dircadb1.1/MASKS_DICOM/MASKS_DICOM",
            )
        }
        assert set(passed) == {"3Dircadb1.1/LABELLED_DICOM", "3Dircadb1.1/MESHES_VTK"}

    @pytest.mark.parametrize("packed", ["PATIENT_DICOM", "MASKS_DICOM"])
    def test_3d_ircadb_with_a_part_still_packed(self, tmp_path, dicom, packed):
        case = tmp_path / "3Dircadb1.1"
        for name in {"PATIENT_DICOM", "MASKS_DICOM"} - {packed}:
            dicom.ct_series(case / name / "liver", STORED)
        touch(case, f"{packed}.zip")
        result = discover([tmp_path], need_labels=True)
        assert [bool(each.problem) for each in result.cases] == [True]
        assert short(result.passed_over, tmp_path) == [
            f"3Dircadb1.1/{packed}.zip: an archive; unpack it to use what it holds"
        ]
        if packed == "PATIENT_DICOM":
            with pytest.raises(InputError, match="masks, not images"):
                find_cases([tmp_path], need_labels=False)

    def test_masks_of_totalsegmentator_beside_a_series(self, tmp_path, dicom):
        dicom.ct_series(tmp_path / "p1" / "CT", STORED)
        touch(tmp_path, "p1/segmentations/liver.nii.gz", "p1/segmentations/spleen.nii.gz")
        assert found(tmp_path) == ({"p1": ("p1/CT", "p1/segmentations")}, {})

    def test_masks_in_dicom_are_no_images(self, tmp_path, dicom):
        dicom.ct_series(tmp_path / "p1", STORED)
        dicom.ct_series(tmp_path / "masks" / "liver", STORED)
        assert list(images(tmp_path)) == ["p1"]

    def test_other_objects_are_named(self, tmp_path, dicom):
        dicom.ct_series(tmp_path / "scan", STORED)
        report = dicom.ct_slice(STORED[0], (0, 0, 0))
        report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
        report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID
        dicom.save(report, tmp_path / "PID7748123" / "report.dcm")
        touch(tmp_path, "more/ct.nrrd")
        result = discover([tmp_path], need_labels=False)
        assert short(result.passed_over, tmp_path) == [
            "#1/report.dcm: a DICOM object without an image",
            "more/ct.nrrd: neither NIfTI nor DICOM",
        ]


class TestIds:
    def test_names_that_differ_in_case_or_as_predictions(self, tmp_path):
        touch(tmp_path, *(f"{n}/{kind}.nii" for n in ("A", "a") for kind in ("ct", "label")))
        touch(tmp_path, "volume-3.nii", "segmentation-3.nii", "x/i.nii", "x/l.nii")
        own = {"segmentation-3": {"images": ["i.nii"], "label": "l.nii"}}
        listed(tmp_path / "x", dataset=own)
        touch(tmp_path, "ü/ct.nii", "ü/seg.nii", "ö/ct.nii", "ö/seg.nii")
        result = discover([tmp_path], need_labels=True)
        # As `ahnet_tf.predict` names files: volume-3 gives segmentation-3.nii.gz.
        names = [
            re.sub(r"^volume-(\d+)$", r"segmentation-\1", case.case_id.lower())
            for case in result.cases
        ]
        assert len(set(names)) == len(names) == 6
        assert len(result.renamed) == 6
        again = discover([tmp_path], need_labels=True)
        assert again == result
        line = next(line for line in result.renamed if "case A renamed" in line)
        new = line.rpartition(" ")[2]
        assert new in [case.case_id for case in result.cases]
        # Another folder changes none of them.
        touch(tmp_path / "b" / "c", "ct.nii", "label.nii")
        more = {case.case_id for case in find_cases([tmp_path], need_labels=True)}
        assert more == {case.case_id for case in result.cases} | {"c"}

    def test_inputs_inside_one_another(self, tmp_path):
        touch(tmp_path, "a/volume-1.nii", "a/segmentation-1.nii")
        cases = find_cases([tmp_path, tmp_path / "a"], need_labels=True)
        assert [case.case_id for case in cases] == ["volume-1"]


class TestDefects:
    def test_an_input_without_cases_is_named(self, tmp_path):
        touch(tmp_path, "a/volume-1.nii", "b/notes.txt")
        result = discover([tmp_path / "b", tmp_path / "a"], need_labels=False)
        assert [case.case_id for case in result.cases] == ["volume-1"]
        (line,) = result.passed_over
        assert line.startswith(f"{tmp_path}/b: expected NIfTI images")
        with pytest.raises(InputError, match="no such file"):
            discover([tmp_path / "a", tmp_path / "c"], need_labels=False)

    def test_unreadable_folders(self, tmp_path, monkeypatch):
        touch(tmp_path, "a/ct.nii", "locked/ct.nii")
        scan = os.scandir

        def scandir(path):
            if str(path).endswith("locked"):
                raise PermissionError(13, "Permission denied", path)
            return scan(path)

        monkeypatch.setattr(discovery.os, "scandir", scandir)
        cases, passed = found(tmp_path, need_labels=False)
        assert list(cases) == ["a"]
        assert passed == {"locked": "can't be read: Permission denied"}

    def test_odd_names(self, tmp_path):
        name = os.fsdecode(b"seg_\xff\n.nii")
        touch(tmp_path, name, "a.nii", "n" * 240 + ".nii")
        result = discover([tmp_path], need_labels=False)
        assert len(result.cases) == 2
        assert short(result.passed_over, tmp_path) == [
            "seg_\\udcff .nii: a label map, not an image"
        ]
