"""Which files are paired in the layouts of data sets."""

import os
import re

import numpy as np
import pytest

from preprocessing.datasets.discovery import discover, find_cases
from preprocessing.errors import InputError
from tests.preprocessing.datasets.empty_files import touch


def found(root, need_labels=True):
    """{case id: (image, label)} with paths relative to the root."""
    return {
        case.case_id: tuple(
            path and os.path.relpath(path, root) for path in (case.image_path, case.label_path)
        )
        for case in find_cases([root], need_labels=need_labels)
        if not case.problem
    }


def problems(*roots):
    cases = find_cases(roots, need_labels=True)
    return {case.case_id: case.problem for case in cases if case.problem}


def test_lits_in_one_folder(tmp_path):
    touch(
        tmp_path, "volume-10.nii", "segmentation-10.nii", "volume-2.nii.gz", "segmentation-2.nii.gz"
    )
    assert found(tmp_path) == {
        "volume-10": ("volume-10.nii", "segmentation-10.nii"),
        "volume-2": ("volume-2.nii.gz", "segmentation-2.nii.gz"),
    }


def test_one_lits_case_keeps_its_number(tmp_path):
    assert list(found(touch(tmp_path, "volume-7.nii", "segmentation-7.nii"))) == ["volume-7"]


def test_lits_in_two_folders_and_in_batches(tmp_path):
    touch(tmp_path / "a", "volumes/volume-1.nii", "segmentations/segmentation-1.nii")
    assert found(tmp_path / "a") == {
        "volume-1": ("volumes/volume-1.nii", "segmentations/segmentation-1.nii")
    }
    touch(
        tmp_path / "b",
        *(f"batch{n}/{k}-{n}.nii" for n in (1, 2) for k in ("volume", "segmentation")),
    )
    assert found(tmp_path / "b") == {
        f"volume-{n}": (f"batch{n}/volume-{n}.nii", f"batch{n}/segmentation-{n}.nii")
        for n in (1, 2)
    }


def test_decathlon_without_its_list(tmp_path):
    touch(
        tmp_path,
        *("imagesTr/liver_0.nii.gz", "labelsTr/liver_0.nii.gz"),
        *("imagesTr/._liver_0.nii.gz", "imagesTs/liver_9.nii.gz"),
    )
    assert found(tmp_path) == {"liver_0": ("imagesTr/liver_0.nii.gz", "labelsTr/liver_0.nii.gz")}
    assert problems(tmp_path) == {}
    assert list(found(tmp_path, need_labels=False)) == ["liver_0", "liver_9"]


def test_nnunet(tmp_path):
    touch(tmp_path, "imagesTr/ct_003_0000.nii.gz", "labelsTr/ct_003.nii.gz")
    assert found(tmp_path) == {"ct_003": ("imagesTr/ct_003_0000.nii.gz", "labelsTr/ct_003.nii.gz")}


def test_folders_of_images_and_labels_with_the_same_names(tmp_path):
    touch(tmp_path, *(f"{kind}/image_{n}.nii" for kind in ("images", "labels") for n in (1, 2)))
    assert found(tmp_path) == {
        f"image_{n}": (f"images/image_{n}.nii", f"labels/image_{n}.nii") for n in (1, 2)
    }


def test_one_folder_per_case(tmp_path):
    touch(
        tmp_path,
        *("case17/ct.nii.gz", "case17/label.nii.gz"),
        *("example/ct_3mm.nii.gz", "example/liver_auto.nii.gz"),
        *("scan/volume.nii", "scan/tumour_mask.nii"),
        *("plain/patient.nii", "plain/patient_seg.nii"),
    )
    assert found(tmp_path) == {
        "case17": ("case17/ct.nii.gz", "case17/label.nii.gz"),
        "example": ("example/ct_3mm.nii.gz", "example/liver_auto.nii.gz"),
        "scan": ("scan/volume.nii", "scan/tumour_mask.nii"),
        "plain": ("plain/patient.nii", "plain/patient_seg.nii"),
    }


def test_case_folders_as_inputs(tmp_path):
    touch(tmp_path, "a/ct.nii.gz", "a/label.nii.gz", "b/ct.nii.gz", "b/liver.nii.gz")
    cases = find_cases([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "."], need_labels=True)
    assert [(case.case_id, case.source) for case in cases] == [("a", "a"), ("b", "b")]


def test_pairs_in_one_folder(tmp_path):
    touch(tmp_path, "x_ct.nii", "x_seg.nii", "y_ct.nii", "y_seg.nii", "z.nii", "z_label.nii")
    assert found(tmp_path) == {
        "x": ("x_ct.nii", "x_seg.nii"),
        "y": ("y_ct.nii", "y_seg.nii"),
        "z": ("z.nii", "z_label.nii"),
    }


def test_pairs_with_names_in_other_scripts(tmp_path):
    names = ("Иванов", "Петров", "山田", "é1", "è1")
    touch(tmp_path, *(f"{name}_{kind}.nii" for name in names for kind in ("ct", "seg")))
    # A name of two characters stands for the file's one: letters with an accent from macOS.
    (tmp_path / "é1_seg.nii").rename(tmp_path / "e\u03011_seg.nii")
    pairs = found(tmp_path)
    assert len(pairs) == 5
    assert ("Иванов_ct.nii", "Иванов_seg.nii") in pairs.values()
    assert ("é1_ct.nii", "e\u03011_seg.nii") in pairs.values()
    assert ("è1_ct.nii", "è1_seg.nii") in pairs.values()


def test_without_labels_every_image_is_a_case(tmp_path):
    touch(tmp_path, "volume-1.nii", "volume-2.nii", "segmentation-2.nii", "segmentation-3.nii")
    assert found(tmp_path, need_labels=False) == {
        "volume-1": ("volume-1.nii", None),
        "volume-2": ("volume-2.nii", "segmentation-2.nii"),
    }
    single = find_cases([tmp_path / "volume-1.nii"], need_labels=False)
    assert [(case.case_id, case.image_path) for case in single] == [
        ("volume-1", tmp_path / "volume-1.nii")
    ]


def test_files_without_a_partner_are_reported(tmp_path):
    touch(tmp_path, "volume-1.nii", "volume-2.nii", "segmentation-2.nii", "segmentation-3.nii")
    assert problems(tmp_path) == {
        "volume-1": f"{tmp_path}/volume-1.nii: expected a label map beside this image, found none",
        "volume-3": f"{tmp_path}/segmentation-3.nii: expected an image beside this label map, found none",
    }


def test_several_label_maps_for_one_image_are_reported(tmp_path):
    touch(tmp_path, "c/ct.nii", "c/liver.nii", "c/tumour.nii")
    assert problems(tmp_path) == {
        "c": f"{tmp_path}/c: expected one image and one label map, found ct.nii, liver.nii, tumour.nii"
    }
    touch(tmp_path, "d/volume-1.nii", "d/volume-1.nii.gz", "d/segmentation-1.nii")
    assert "found volume-1.nii, volume-1.nii.gz, segmentation-1.nii" in str(
        problems(tmp_path / "d")
    )


def test_equal_ids_get_the_names_of_their_data_sets(tmp_path):
    for source in ("a", "b"):
        touch(tmp_path / source, "volume-1.nii", "segmentation-1.nii")
    cases = find_cases([tmp_path / "a", tmp_path / "b"], need_labels=True)
    assert [case.case_id for case in cases] == ["a_volume-1", "b_volume-1"]
    for source in ("c", "d"):
        touch(tmp_path / source, "case/ct.nii", "case/label.nii")
    cases = find_cases([tmp_path / "c", tmp_path / "d"], need_labels=True)
    assert [case.case_id for case in cases] == ["c_case", "d_case"]


def test_equal_ids_in_one_data_set_get_the_names_of_their_folders(tmp_path):
    for batch in (1, 2):
        touch(tmp_path / f"batch{batch}", "volume-1.nii", "segmentation-1.nii")
    assert list(found(tmp_path)) == ["batch1_volume-1", "batch2_volume-1"]


def test_several_images_of_one_folder_are_predicted_one_by_one(tmp_path):
    touch(tmp_path, "ct.nii", "scan.nii", "label.nii")
    assert list(found(tmp_path, need_labels=False)) == ["ct", "scan"]
    assert list(problems(tmp_path)) == [tmp_path.name]


def test_ambiguous_ids_get_the_folder_that_differs(tmp_path):
    for parent in ("p", "q"):
        touch(tmp_path / parent / "same", "volume-1.nii", "segmentation-1.nii")
    result = discover([tmp_path / "p" / "same", tmp_path / "q" / "same"], need_labels=True)
    assert [case.case_id for case in result.cases] == ["p_volume-1", "q_volume-1"]
    assert "/p/same/volume-1.nii: case volume-1 renamed to p_volume-1" in result.renamed[0]
    (case, _) = find_cases([tmp_path / "q" / "same", tmp_path / "p" / "same"], need_labels=True)
    assert case.case_id == "q_volume-1"
    for split in ("train", "test"):
        touch(tmp_path / split / "ct", "1.nii")
        touch(tmp_path / split / "seg", "1.nii")
    found = find_cases([tmp_path / "train", tmp_path / "test"], need_labels=True)
    assert [case.case_id for case in found] == ["train_1", "test_1"]


def test_ids_that_differ_in_case_alone_get_digits_of_their_names(tmp_path):
    def ids(place):
        touch(place, "A.nii", "a.nii")
        return sorted(case.case_id for case in find_cases([place], need_labels=False))

    first, second = ids(tmp_path / "here")
    assert re.fullmatch("A-[0-9a-f]{8}", first)
    assert re.fullmatch("a-[0-9a-f]{8}", second)
    # They do not depend on where the data set lies.
    assert ids(tmp_path / "moved" / "there") == [first, second]


def test_empty_and_missing_folders(tmp_path):
    with pytest.raises(InputError, match=r"NIfTI images .* found none in this folder"):
        find_cases([tmp_path], need_labels=True)
    touch(tmp_path, "notes.txt")
    with pytest.raises(InputError, match="found none in this folder"):
        find_cases([tmp_path], need_labels=False)
    with pytest.raises(InputError, match="a file of another kind"):
        find_cases([tmp_path / "notes.txt"], need_labels=False)
    with pytest.raises(InputError, match="no such file"):
        find_cases([tmp_path / "none"], need_labels=True)


def test_links_are_followed_except_for_loops(tmp_path):
    touch(tmp_path / "data", "ct.nii", "label.nii")
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    (inputs / "linked").symlink_to(tmp_path / "data")
    (inputs / "loop").symlink_to(inputs)
    (inputs / "self.nii").symlink_to(inputs / "self.nii")
    cases = find_cases([inputs], need_labels=True)
    assert [case.label_path for case in cases if not case.problem] == [
        inputs / "linked" / "label.nii"
    ]
    assert [case.image_path.name for case in cases if case.problem] == ["self.nii"]


def test_odd_names_make_safe_ids(tmp_path):
    touch(tmp_path, "weird..\nname é/ct.nii", "weird..\nname é/label.nii")
    (case,) = find_cases([tmp_path], need_labels=True)
    assert case.case_id == "weird.._name"


def test_long_names_make_short_ids_that_differ(tmp_path):
    for end in "ab":
        touch(tmp_path, f"{'n' * 240}{end}/ct.nii", f"{'n' * 240}{end}/label.nii")
    ids = [case.case_id for case in find_cases([tmp_path], need_labels=True)]
    assert len(set(ids)) == 2
    assert {len(case_id) for case_id in ids} == {100}
    assert all(case_id.startswith("n" * 87 + "-") for case_id in ids)


def test_pipes_beside_images_do_not_block(tmp_path):
    touch(tmp_path, "a/ct.nii", "a/label.nii")
    for name in ("notes", "IM0001.dcm", "more.nii.gz"):
        os.mkfifo(tmp_path / "a" / name)
    cases = find_cases([tmp_path], need_labels=False)
    assert {case.image_path.name for case in cases} == {"ct.nii", "more.nii.gz"}


def test_names_that_are_not_text_beside_dicom(tmp_path, dicom):
    dicom.ct_series(tmp_path / "scan", np.arange(12, dtype=np.int16).reshape(3, 2, 2))
    name = os.fsdecode(b"\xff-bytes")
    touch(tmp_path, f"{name}/ct.nii", f"{name}/label.nii")
    case = next(case for case in find_cases([tmp_path], need_labels=True) if case.label_path)
    assert case.case_id == "bytes"
