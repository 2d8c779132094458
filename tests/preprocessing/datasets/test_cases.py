"""Data sets with DICOM from folder to records, and that no output contains an identifier."""

import json
import re
import shutil
from pathlib import Path

import attrs
import numpy as np
import pytest
import tensorflow as tf
from pydicom import dcmread
from pydicom.data import get_testdata_file

from preprocessing import verify
from preprocessing.convert import main
from preprocessing.datasets import discovery
from preprocessing.datasets.case import Case
from preprocessing.datasets.discovery import find_cases
from preprocessing.datasets.reading import read_case_image, read_case_label
from preprocessing.dicom.deidentify import (
    header_identifiers,
    is_identifying,
    pseudonym,
    redact_path,
    redact_text,
)
from preprocessing.dicom.multiframe import read_dicom
from preprocessing.dicom.series import ReadOptions
from preprocessing.errors import InputError
from preprocessing.records.schema import parse_example
from preprocessing.tasks import load_task
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.nifti import write_image

TASK = load_task("ct_liver")
TUMOURS_ARE_LIVER = (("background", "background"), ("liver", "liver"), ("tumour", "liver"))
RNG = np.random.default_rng(3)
STORED = RNG.integers(900, 1200, (6, 20, 24)).astype(np.uint16)
LIVER = np.zeros(STORED.shape, np.uint8)
LIVER[1:5, 4:16, 3:20] = 1
TUMOUR = np.zeros_like(LIVER)
TUMOUR[2:4, 6:9, 5:9] = 1
LABELS = np.where(TUMOUR, 2, LIVER)
PATCHES = ["--patch-shape", "4", "16", "16", "--patches-per-case", "3"]


def with_classes(*names, **settings):
    return attrs.evolve(TASK, class_names=names, **settings)


def found(root, need_labels=True):
    cases = find_cases([root], need_labels=need_labels)
    return {
        case.case_id: tuple(
            path and str(path.relative_to(root)) for path in (case.image_path, case.label_path)
        )
        for case in cases
        if not case.problem
    }


def write_labels(path, like, labels=LABELS):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, Volume(labels.transpose(2, 1, 0), read_dicom(like).affine))


def ircadb(dicom, root, **tags):
    """Writes a case in 3D-IRCADb's layout; masks of 255, with files in another order than the scan."""
    dicom.ct_series(root / "PATIENT_DICOM", STORED, **tags)
    dicom.ct_series(root / "LABELLED_DICOM", STORED, **tags)
    tags = tags | {"RescaleIntercept": 0}
    for name, mask in (
        ("liver", LIVER | TUMOUR),
        ("livertumor01", np.where(np.arange(24) < 7, TUMOUR, 0)),
        ("livertumor02", np.where(np.arange(24) >= 7, TUMOUR, 0)),
        ("venacava", 1 - LIVER),
    ):
        folder = root / "MASKS_DICOM" / name
        dicom.ct_series(folder, mask.astype(np.uint8) * 255, seed=len(name), **tags)
    return root


class TestFinding:
    def test_series_in_archives_of_any_names(self, tmp_path, dicom):
        dicom.ct_series(tmp_path / "one" / "CT", STORED)
        dicom.ct_series(tmp_path / "two", STORED)
        for path in (tmp_path / "two").iterdir():
            path.rename(path.with_suffix(""))
        (tmp_path / "two" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
        (tmp_path / "notes.txt").write_text("no image")
        assert found(tmp_path, need_labels=False) == {"one": ("one/CT", None), "two": ("two", None)}
        (case,) = find_cases([tmp_path / "two"], need_labels=False)
        assert case.case_id == "two"
        assert np.array_equal(
            read_case_image(case).voxels, STORED.transpose(2, 1, 0).astype(int) - 1024
        )

    def test_each_multi_frame_file_is_a_case(self, tmp_path, dicom):
        for name in ("lcc", "rcc"):
            dicom.save(dicom.multi_frame(STORED), tmp_path / "views" / f"{name}.dcm")
        assert found(tmp_path, need_labels=False) == {
            "lcc": ("views/lcc.dcm", None),
            "rcc": ("views/rcc.dcm", None),
        }
        (case,) = find_cases([tmp_path / "views" / "lcc.dcm"], need_labels=False)
        assert case.case_id == "lcc"
        assert np.array_equal(read_case_image(case).voxels, STORED.transpose(2, 1, 0))

    @pytest.mark.parametrize(
        ("image", "label", "case_id"),
        [
            ("case7/dicom", "case7/label.nii.gz", "case7"),  # beside
            ("case7", "case7/liver_seg.nii.gz", "case7"),  # within
            ("a/case7", "a/case7_seg.nii.gz", "a"),  # one of each in a folder
            ("images/case7", "labels/case7.nii.gz", "case7"),  # in two folders
            ("case7/some/where", "case7/label.nii.gz", "case7"),  # further up
            ("volume-7", "segmentation-7.nii", "volume-7"),  # LiTS
        ],
    )
    def test_a_series_with_a_nifti_label_map(self, tmp_path, dicom, image, label, case_id):
        dicom.ct_series(tmp_path / image, STORED)
        write_labels(tmp_path / label, tmp_path / image)
        assert found(tmp_path) == {case_id: (image, label)}

    def test_several_series_and_label_maps_in_one_folder(self, tmp_path, dicom):
        for name in ("p1", "p2"):
            dicom.ct_series(tmp_path / name, STORED)
            write_labels(tmp_path / f"{name}_mask.nii.gz", tmp_path / name)
        dicom.ct_series(tmp_path / "p3", STORED)
        assert found(tmp_path) == {n: (n, f"{n}_mask.nii.gz") for n in ("p1", "p2")}
        (problem,) = [c.problem for c in find_cases([tmp_path], need_labels=True) if c.problem]
        assert problem.endswith("p3: expected a label map beside this image, found none")

    def test_3d_ircadb(self, tmp_path, dicom):
        ircadb(dicom, tmp_path / "3Dircadb1.1")
        ircadb(dicom, tmp_path / "3Dircadb1.2")
        assert found(tmp_path) == {
            f"3Dircadb1.{n}": (f"3Dircadb1.{n}/PATIENT_DICOM", f"3Dircadb1.{n}/MASKS_DICOM")
            for n in (1, 2)
        }

    def test_finding_reads_one_header_per_series(self, tmp_path, dicom, monkeypatch):
        dicom.ct_series(tmp_path / "a", STORED)
        dicom.ct_series(tmp_path / "b", STORED)
        seen = []
        read = discovery.read_header
        monkeypatch.setattr(discovery, "read_header", lambda p: seen.append(p) or read(p))
        find_cases([tmp_path], need_labels=False)
        assert len(seen) == 2

    def test_only_images_are_cases(self, tmp_path, dicom):
        dicom.ct_series(tmp_path / "case7", STORED)
        for name in ("rtdose.dcm", "test-SR.dcm", "rtplan.dcm", "liver_1frame.dcm"):
            (tmp_path / name).mkdir()
            shutil.copy(get_testdata_file(name), tmp_path / name / "1.dcm")
        assert list(found(tmp_path, need_labels=False)) == ["case7"]

    def test_damaged_files_are_cases_too(self, tmp_path, dicom):
        dicom.ct_series(tmp_path / "good", STORED)
        good = next((tmp_path / "good").iterdir()).read_bytes()
        for name, content in (("empty", b""), ("short", good[:140]), ("text", b"no DICOM at all")):
            (tmp_path / name).mkdir()
            (tmp_path / name / "a.dcm").write_bytes(content)
        cases = find_cases([tmp_path], need_labels=False)
        assert len(cases) == 4
        for case in cases:
            if case.case_id == "good":
                continue
            assert re.fullmatch("dicom-[0-9a-f]{12}", case.case_id)
            with pytest.raises(InputError, match="expected a DICOM"):
                read_case_image(case)

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_implicit.dcm", "MR_small_RLE.dcm"])
    def test_altered_files_are_read_or_refused(self, tmp_path, name):
        content = Path(get_testdata_file(name)).read_bytes()
        rng = np.random.default_rng(0)
        refused = 0
        for number in range(80):
            damaged = bytearray(content)
            for place in rng.integers(0, min(len(content), 2500), rng.integers(1, 12)):
                damaged[place] = rng.integers(0, 256)
            if number % 6 == 0:
                del damaged[rng.integers(1, len(damaged)) :]
            (tmp_path / "a.dcm").write_bytes(damaged)
            (case,) = find_cases([tmp_path], need_labels=False)
            try:
                assert read_case_image(case).voxels.nbytes <= 4 * len(content)
            except InputError:
                refused += 1
        assert refused > 20


class TestMasks:
    def test_classes_from_the_folders_names(self, tmp_path, dicom):
        ircadb(dicom, tmp_path / "x")
        (case,) = find_cases([tmp_path], need_labels=True)
        label, image = read_case_label(case, TASK), read_case_image(case)
        assert label.voxels.dtype == np.uint8
        # Tumours replace the liver around them; the vena cava is not a class.
        assert np.array_equal(label.voxels, LABELS.transpose(2, 1, 0))
        np.testing.assert_array_equal(label.affine, image.affine)

    def test_a_class_without_masks(self, tmp_path, dicom):
        ircadb(dicom, tmp_path / "x")
        (case,) = find_cases([tmp_path], need_labels=True)
        with pytest.raises(InputError, match="a folder of masks for spleen, found liver, livert"):
            read_case_label(case, with_classes("background", "liver", "spleen"))
        # Tumours are ignored if they are not a class.
        label = read_case_label(case, with_classes("background", "liver"))
        assert np.array_equal(label.voxels, (LABELS > 0).transpose(2, 1, 0))

    def test_labels_that_count_as_one_class(self, tmp_path, dicom):
        ircadb(dicom, tmp_path / "x")
        (case,) = find_cases([tmp_path], need_labels=True)
        liver = with_classes("background", "liver", label_classes=TUMOURS_ARE_LIVER)
        label = read_case_label(case, liver).voxels
        assert label.dtype == np.uint8
        assert np.array_equal(label, (LABELS > 0).transpose(2, 1, 0))

    def test_masks_on_another_grid(self, tmp_path, dicom):
        ircadb(dicom, tmp_path / "x")
        folder = tmp_path / "x" / "MASKS_DICOM" / "livertumor02"
        for path in folder.iterdir():
            path.unlink()
        dicom.ct_series(folder, TUMOUR, step=(0, 0, 3))
        (case,) = find_cases([tmp_path], need_labels=True)
        with pytest.raises(InputError, match=r"corners up to 2\.5 mm apart"):
            read_case_label(case, TASK)

    def nifti_case(self, root, **masks):
        """Writes a case with a NIfTI mask of each structure, as TotalSegmentator does."""
        affine = np.diag([1.0, 1, 2, 1])
        image = Volume(STORED.transpose(2, 1, 0).astype(np.int16), affine)
        write_image(root / "ct.nii.gz", image)
        for name, mask in masks.items():
            volume = Volume(mask.transpose(2, 1, 0).astype(np.uint8), affine)
            write_image(root / "segmentations" / f"{name}.nii.gz", volume)
        return Case("x", root / "ct.nii.gz", root / "segmentations", "set"), image

    def test_a_nifti_file_of_each_structure(self, tmp_path):
        masks = {"spleen": 1 - LIVER, "tumor": 255 * TUMOUR, "liver": LIVER}
        case, image = self.nifti_case(tmp_path, **masks)
        label = read_case_label(case, TASK, image)
        # The liver comes later by name, the tumour by the task.
        assert np.array_equal(label.voxels, LABELS.transpose(2, 1, 0))
        np.testing.assert_array_equal(label.affine, image.affine)
        with pytest.raises(InputError, match="a mask for kidney, found liver, spleen, tumor"):
            read_case_label(case, with_classes("background", "liver", "kidney"), image)

    def test_nifti_masks_that_are_none(self, tmp_path):
        case, image = self.nifti_case(tmp_path, liver=LABELS, tumor=TUMOUR)
        with pytest.raises(InputError, match=r"segmentations/liver\.nii\.gz.*found values 2"):
            read_case_label(case, TASK, image)
        cut = Volume(image.voxels[:, :, 1:], image.affine)
        with pytest.raises(InputError, match="image's shape"):
            read_case_label(case, with_classes("background", "tumour"), cut)


class TestDecathlon:
    def write(self, root, **content):
        volume = Volume((STORED.transpose(2, 1, 0).astype(np.int16)), np.diag([1.0, 1, 2, 1]))
        for name in ("liver_0", "liver_1", "liver_2"):
            for kind, voxels in (("images", volume.voxels), ("labels", LABELS.transpose(2, 1, 0))):
                write_image(root / f"{kind}Tr" / f"{name}.nii.gz", Volume(voxels, volume.affine))
        write_image(root / "imagesTs" / "liver_9.nii.gz", volume)
        listed = [
            {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"}
            for n in ("liver_0", "liver_1")
        ]
        content = {
            "name": "Liver",
            "labels": {"0": "background", "1": "liver", "2": "cancer"},
            "training": listed,
            "test": ["./imagesTs/liver_9.nii.gz"],
        } | content
        (root / "dataset.json").write_text(json.dumps(content))
        return root

    def test_dataset_json_determines_the_cases(self, tmp_path):
        root = self.write(tmp_path / "Task03_Liver")
        pairs = {
            f"liver_{n}": tuple(f"{k}Tr/liver_{n}.nii.gz" for k in ("images", "labels"))
            for n in (0, 1)
        }
        assert found(root) == pairs
        (other,) = [case for case in find_cases([root], need_labels=True) if case.problem]
        assert (other.case_id, "dataset.json, found none" in other.problem) == ("liver_2", True)
        assert list(found(root, need_labels=False)) == ["liver_0", "liver_1", "liver_9", "liver_2"]
        # Also from a folder above, with other data sets.
        assert len(find_cases([tmp_path], need_labels=True)) == 3

    def test_labels_are_mapped_to_classes_by_name(self, tmp_path):
        root = self.write(tmp_path, labels={"0": "background", "1": "cancer", "2": "liver"})
        case = find_cases([root], need_labels=True)[0]
        label = read_case_label(case, TASK).voxels
        assert np.array_equal(label, np.array([0, 2, 1], np.uint8)[LABELS.transpose(2, 1, 0)])

    def test_labels_that_count_as_one_class(self, tmp_path):
        root = self.write(tmp_path, labels={"0": "background", "1": "cancer", "2": "liver"})
        case = find_cases([root], need_labels=True)[0]
        for classes in (TUMOURS_ARE_LIVER, (*TUMOURS_ARE_LIVER[:2], ("tumour", "background"))):
            task = with_classes("background", "liver", label_classes=classes)
            label = read_case_label(case, task).voxels
            values = np.array([0, task.class_values[2], 1], np.uint8)
            assert np.array_equal(label, values[LABELS.transpose(2, 1, 0)])

    def test_dataset_json_of_nnunet(self, tmp_path):
        root = self.write(tmp_path, labels={"background": 0, "liver": 1, "tumor": 2}, training=None)
        cases = find_cases([root], need_labels=True)
        assert [case.case_id for case in cases] == ["liver_0", "liver_1", "liver_2"]
        assert np.array_equal(read_case_label(cases[0], TASK).voxels, LABELS.transpose(2, 1, 0))

    def test_labels_of_another_task(self, tmp_path):
        root = self.write(tmp_path, labels={"0": "background", "1": "spleen"})
        case = find_cases([root], need_labels=True)[0]
        with pytest.raises(
            InputError, match=r"\(background, liver, tumour\), found 0 back.*spleen"
        ):
            read_case_label(case, TASK)

    def test_values_without_a_name(self, tmp_path):
        root = self.write(tmp_path, labels={"0": "background", "1": "liver", "3": "cancer"})
        case = find_cases([root], need_labels=True)[0]
        with pytest.raises(InputError, match=r"0 background, 1 liver, 3 cancer, found values 2$"):
            read_case_label(case, TASK)

    def test_voxels_to_ignore(self, tmp_path):
        names = {"background": 0, "liver": 1, "tumor": 2, "ignore": 3}
        root = self.write(tmp_path, labels=names, training=None)
        case = find_cases([root], need_labels=True)[0]
        label = read_case_label(case, TASK)
        assert np.array_equal(label.voxels, LABELS.transpose(2, 1, 0))
        voxels = np.where(label.voxels == 2, 3, label.voxels)
        write_image(case.label_path, Volume(voxels, label.affine))
        with pytest.raises(
            InputError,
            match=r"no voxels of the label 3 ignore, found 24\. .*label_classes map ignore",
        ):
            read_case_label(case, TASK)
        pairs = (*TUMOURS_ARE_LIVER, ("ignore", "background"))
        task = with_classes("background", "liver", label_classes=pairs)
        assert np.array_equal(read_case_label(case, task).voxels, voxels == 1)

    @pytest.mark.parametrize(
        "labels", [[], {}, {"0": "a", "zero": "b"}, {"0": "a", "300": "b"}, {"a": 0, "b": 0}, "x"]
    )
    def test_invalid_labels(self, tmp_path, labels):
        cases = find_cases([self.write(tmp_path, labels=labels)], need_labels=True)
        problems = {case.case_id: case.problem for case in cases}
        assert all(
            "dataset.json: expected labels such as" in problems[f"liver_{n}"] for n in (0, 1)
        )
        assert "expected this case in" in problems["liver_2"]

    def test_files_outside_the_folder_and_missing_files(self, tmp_path):
        listed = [
            {"image": "../secret.nii.gz", "label": "labelsTr/liver_0.nii.gz"},
            {"image": "/etc/passwd", "label": "labelsTr/liver_0.nii.gz"},
            {"image": "imagesTr/liver_7.nii.gz", "label": "labelsTr/liver_7.nii.gz"},
            "imagesTr/liver_0.nii.gz",
        ]
        cases = find_cases([self.write(tmp_path, training=listed)], need_labels=True)
        assert sum("below its folder" in case.problem for case in cases) == 3
        (missing,) = [case for case in cases if case.case_id == "liver_7"]
        with pytest.raises(InputError, match="no such file"):
            read_case_image(missing)

    def test_invalid_json(self, tmp_path):
        (tmp_path / "dataset.json").write_text("{")
        with pytest.raises(InputError, match="expected JSON"):
            find_cases([tmp_path], need_labels=True)


class TestIdentity:
    def test_identifying_names(self, dicom):
        header = dicom.ct_slice(STORED[0], (0, 0, 0))
        known = header_identifiers(header)
        for name in (
            *("PID7748123", "pid-7748123_ct", "Doehring", "scan of XAVERIA", "Doehring_Xaveria"),
            *("1956-03-07", "OPI3302.nii.gz", dicom.series_uid, "1.3.6.1.4.1.99.5"),
        ):
            assert is_identifying(name, known), name
        for name in ("case7", "CT", "volume-12", "2018", "PATIENT_DICOM"):
            assert not is_identifying(name, known), name

    @pytest.mark.parametrize(
        ("name", "folder"),
        [
            ("Li^Na", "Na_Li"),
            ("Li^Na", "li na"),
            ("Wang^XiaoDong=王^小东", "王小东"),
            ("Yamada^Tarou=山田^太郎=やまだ^たろう", "山田太郎"),
            ("Yamada^Tarou=山田^太郎=やまだ^たろう", "太郎_ct"),
        ],
    )
    def test_short_names_and_names_in_several_scripts(self, dicom, tmp_path, name, folder):
        tags = {"PatientName": name, "SpecificCharacterSet": "ISO_IR 192"}
        dicom.ct_series(tmp_path / folder, STORED, **tags)
        (case,) = find_cases([tmp_path], need_labels=True)
        assert case.problem.startswith(f"{tmp_path}/#1: expected a label map")
        assert case.case_id in (pseudonym("ct", dicom.series_uid), "case", "ct")

    def test_texts_without_identifiers(self):
        text = "Doehring: found Doehring_seg.nii.gz, XAVERIA-2.nii; Maximum of 12 for pid 7748123"
        shown = redact_text(text, ["Doehring", "xaveria", "Max", "12", "PID7748123"])
        assert shown == "#: found #_seg.nii.gz, #-2.nii; Maximum of 12 for #"

    def test_problems_of_cases_have_no_names(self, tmp_path, dicom):
        label = Volume(LABELS.transpose(2, 1, 0), np.diag([-0.7, -0.8, 2.5, 1]) + shift())
        dicom.ct_series(tmp_path / "Doehring" / "ct", STORED)
        for kind in ("seg", "label"):
            write_image(tmp_path / "Doehring" / f"Doehring_{kind}.nii.gz", label)
        dicom.ct_series(tmp_path / "Doehring  Xaveria", STORED + 1, SeriesInstanceUID="1.2.3.4.5.6")
        dicom.ct_series(tmp_path / "c" / "ct", STORED + 2, SeriesInstanceUID="1.2.3.4.5.7")
        for organ in ("liver", "tumour"):
            write_image(tmp_path / "c" / "segmentations" / f"Xaveria_{organ}.nii.gz", label)
        cases = find_cases([tmp_path], need_labels=True)
        assert sum(bool(case.problem) for case in cases) >= 2
        for case in cases:
            assert leaks((case.case_id + case.problem).encode(), dicom) == []

    def test_label_maps_among_slices_are_named(self, tmp_path, dicom):
        folder = dicom.ct_series(tmp_path / "case7", STORED)
        for organ in ("liver", "tumour"):
            write_image(folder / f"{organ}.nii.gz", Volume(LABELS.transpose(2, 1, 0), np.eye(4)))
        (case,) = find_cases([tmp_path], need_labels=True)
        expected = (
            "expected one image and one label map, found the slices, liver.nii.gz, tumour.nii.gz"
        )
        assert expected in case.problem

    def test_patients_by_their_header(self, tmp_path, dicom):
        for number, patient in enumerate(("A1", "A1", "B2", "", "anonymous")):
            uid = f"1.2.3.4.5.{number}"
            tags = {"SeriesInstanceUID": uid, "PatientID": patient}
            dicom.ct_series(tmp_path / f"case-{number}", STORED + number, **tags)
        patients = [case.patient for case in find_cases([tmp_path], need_labels=False)]
        assert patients[0] == patients[1] == pseudonym("patient", "a1")
        assert patients[2] == pseudonym("patient", "b2")
        assert patients[3:] == ["", ""]

    def test_short_values_only_count_as_words(self):
        assert is_identifying("scan_7", ["7"])
        assert not is_identifying("scan77", ["7"])

    def test_position_replaces_an_identifying_name(self, tmp_path):
        for name in ("a", "Doehring", "z"):
            (tmp_path / name).mkdir()
        shown = redact_path(tmp_path / "Doehring" / "CT", ["doehring"])
        assert shown == str(tmp_path / "#1" / "CT")

    def test_other_names_are_kept(self, tmp_path, dicom):
        dicom.ct_series(tmp_path / "case7", STORED)
        assert list(found(tmp_path, need_labels=False)) == ["case7"]

    def test_identifying_names_become_pseudonyms(self, tmp_path, dicom):
        dicom.ct_series(tmp_path / "Xaveria Doehring" / "CT", STORED)
        dicom.save(dicom.multi_frame(STORED), tmp_path / "PID7748123_lcc.dcm")
        ids = set(found(tmp_path, need_labels=False))
        assert pseudonym("ct", dicom.series_uid) in ids
        assert all(re.fullmatch("(ct|dbt)-[0-9a-f]{12}", each) for each in ids)
        # A hand-computed SHA-256: printf abc | sha256sum
        assert pseudonym("ct", "abc") == "ct-ba7816bf8f01"


def archive(dicom, root):
    """Writes PATIENT/STUDY/SERIES/UID.dcm: valid cases, and one of each irregular or damaged kind."""
    places = {}

    def place(number):
        patient = f"PID7748123-{number}"
        uid = f"{dicom.series_uid}.{number}"
        folder = root / patient / dicom.study_uid / uid
        places[number] = folder
        return folder, {"SeriesInstanceUID": uid, "PatientID": patient}

    for number in range(8):
        folder, tags = place(number)
        step = (0, 1.5, 2.5) if number == 3 else (0, 0, 2.5)
        dicom.ct_series(folder, STORED + number, step=step, **tags)
        if number != 2:
            label = root / f"PID7748123-{number}" / f"PID7748123-{number}_liver.nii.gz"
            write_image(
                label,
                Volume(LABELS.transpose(2, 1, 0), np.diag([-0.7, -0.8, 2.5, 1]) + shift()),
            )
        files = sorted(folder.iterdir())
        if number == 4:
            files[3].write_bytes(files[3].read_bytes()[:-100])
        if number == 5:
            files[2].unlink()
        if number == 6:
            files[0].write_bytes(b"PID7748123")
        if number == 7:
            damaged = dcmread(files[0])
            damaged.PixelSpacing = None
            damaged.save_as(files[0])
        for path in files:
            if path.exists():
                path.rename(
                    path.with_name(f"{dicom.study_uid}.{path.stem[2:].lstrip('0') or 0}.dcm")
                )
    masks = ircadb(dicom, root / "Doehring", PatientID="Doehring")
    (masks / "MASKS_DICOM" / "liver" / "IM0000.dcm").write_bytes(b"")
    return root


def shift():
    """Returns the position of the first voxel of `dicom.ct_series`, RAS+."""
    matrix = np.zeros((4, 4))
    matrix[:3, 3] = 20, 30, 40
    return matrix


def leaks(content, dicom):
    """Returns the identifiers of headers in some bytes, in upper or lower case."""
    return [each for each in dicom.identifiers if each.lower().encode() in content.lower()]


def test_conversion_outputs_no_identifier(tmp_path, dicom, capfd):
    root = archive(dicom, tmp_path / "hospital")
    output = tmp_path / "records"
    options = ["--task", "ct_liver", "--input", str(root), "--output", str(output)]
    assert main([*options, *PATCHES, "--eval-fraction", "0.4"]) == 1
    told = "".join(capfd.readouterr())
    manifest = json.loads((output / "manifest.json").read_text())
    reasons = [case["reason"] for case in manifest["cases"] if case["status"] == "rejected"]
    assert manifest["converted"] == 2, reasons
    assert len(reasons) == 7
    for expected in (
        "expected a label map beside this image",
        "gantry tilt",
        "truncated",
        "slices are missing",
        "a file of another kind",
        "acquisitions that differ in",
    ):
        assert any(expected in reason for reason in reasons), (expected, reasons)
    assert "2 of 9 cases converted" in told
    assert leaks(told.encode(), dicom) == []
    # Redacted paths still lead to the files.
    assert any(re.search(r"hospital/#\d/#\d/#\d", reason) for reason in reasons), reasons
    files = [path for path in output.rglob("*") if path.is_file()]
    assert any(path.suffix == ".tfrecord" for path in files)
    for path in files:
        assert leaks(str(path.relative_to(output)).encode() + path.read_bytes(), dicom) == []


def test_verification_outputs_no_identifier(tmp_path, dicom, capfd):
    root = archive(dicom, tmp_path / "hospital")
    assert verify.main([str(root), "--output", str(tmp_path / "found.json")]) == 1
    told = "".join(capfd.readouterr()) + (tmp_path / "found.json").read_text()
    assert "gantry tilt" in told
    assert leaks(told.encode(), dicom) == []


def test_inputs_contain_all_identifiers(tmp_path, dicom):
    """The search of the tests above finds identifiers in the inputs."""
    folder = dicom.ct_series(tmp_path / "x", STORED)
    content = b"".join(path.read_bytes() for path in folder.iterdir())
    assert set(leaks(content, dicom)) == set(dicom.identifiers)


def test_dicom_and_nifti_give_equal_records(tmp_path, dicom):
    """One volume as a DICOM series and as NIfTI gives the same records, also with allowances."""
    folder = dicom.ct_series(tmp_path / "dicom" / "a" / "ct", STORED, step=(0, 0.3, 2.5))
    volume = read_dicom(folder, ReadOptions(allow=["gantry_tilt"]))
    label = Volume(LABELS.transpose(2, 1, 0), volume.affine)
    for kind in ("dicom", "nifti"):
        write_image(tmp_path / kind / "a" / "label.nii.gz", label)
    write_image(tmp_path / "nifti" / "a" / "ct.nii.gz", volume)
    records = {}
    for kind in ("dicom", "nifti"):
        output = tmp_path / f"{kind}_records"
        options = ["--input", str(tmp_path / kind), "--output", str(output), "--eval-fraction", "0"]
        assert main([*options, *PATCHES, "--allow", "gantry_tilt"]) == 0
        task = load_task(str(output / "task.json"))
        files = sorted(map(str, output.glob("train/*.tfrecord")))
        records[kind] = [parse_example(each, task) for each in tf.data.TFRecordDataset(files)]
        settings = json.loads((output / "manifest.json").read_text())["settings"]
        assert settings["allow"] == ["gantry_tilt"]
    assert len(records["dicom"]) == 3
    for one, other in zip(records["dicom"], records["nifti"], strict=True):
        for name in ("image", "label", "origin_z", "origin_y", "origin_x"):
            np.testing.assert_array_equal(one[name], other[name])


def test_unknown_allowances_are_refused(tmp_path, dicom, capsys):
    dicom.ct_series(tmp_path / "a", STORED)
    options = ["--input", str(tmp_path), "--output", str(tmp_path / "out"), "--allow", "holes"]
    assert main(options) == 1
    assert "expected names among gantry_tilt, gaps" in capsys.readouterr().err


def test_views_rotate_tomosynthesis(tmp_path, dicom):
    stored = STORED.copy()
    stored[0, :, -1] += 5000
    path = dicom.save(dicom.multi_frame(stored), tmp_path / "a.dcm")
    case = Case("a", path, None, "x", view="lmlo")
    assert np.array_equal(read_case_image(case).voxels, np.flip(stored, (1, 2)).transpose(2, 1, 0))
