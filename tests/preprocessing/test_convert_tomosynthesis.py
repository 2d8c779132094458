"""Conversion of tomosynthesis: records that depend on no scaling, and cases rejected by name."""

import numpy as np
import pytest
import tensorflow as tf

from preprocessing.datasets.discovery import find_cases
from preprocessing.page.coding import to_pixels
from preprocessing.page.dataset_page import write_verify_page
from preprocessing.records.case_conversion import ConversionSettings, convert_case
from preprocessing.records.schema import parse_example
from preprocessing.tasks import PRESETS
from preprocessing.verify import verify
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.nifti import write_image

TASK = PRESETS["dbt_lesion_small"]


@pytest.fixture(scope="module")
def stored(breast_14_bits):
    """A synthetic breast of 14 bits as frames [z, row, column]."""
    return np.ascontiguousarray(breast_14_bits.voxels.T)


def converted(folder, stored, dicom=None, **tags):
    """Converts one case; returns its entry in the manifest and its patches [patch, z, y, x]."""
    folder.mkdir()
    lesion = np.zeros(stored.shape[::-1], np.uint8)
    lesion[20:28, 40:50, 5:9] = 1
    affine = np.diag([-0.4, -0.4, 1.0, 1.0])
    if dicom:
        tags = {"ImagerPixelSpacing": [0.4, 0.4], "SliceThickness": 1} | tags
        dicom.save(dicom.multi_frame(stored, **tags), folder / "image.dcm")
    else:
        write_image(folder / "image.nii", Volume(stored.T, affine))
    write_image(folder / "label.nii", Volume(lesion, affine))
    (case,) = find_cases([folder.parent / folder.name], need_labels=True)
    output = folder / "records"
    (output / "eval").mkdir(parents=True)
    entry = convert_case(case, "eval", ConversionSettings(TASK), str(output))
    records = tf.data.TFRecordDataset([str(path) for path in (output / "eval").iterdir()])
    images = [parse_example(each, TASK)["image"].numpy()[..., 0] for each in records]
    return entry, np.array(images, np.int64)


NIFTI = {
    "int16": (lambda v: (v.astype(np.int32) - 9000).astype(np.int16), 1),
    "float32": (lambda v: v.astype(np.float32) / 16383, 1),
    "gain": (lambda v: v * 3 + 500, 1),
    # Rounding by half of 16 steps of 14 bits.
    "10 bits": (lambda v: np.rint(v / 16).astype(np.uint16), 20),
}


def test_scaled_volumes_give_the_same_records(tmp_path, stored):
    entry, expected = converted(tmp_path / "original", stored)
    assert entry["status"] == "converted", entry
    assert entry["warnings"] == []
    assert expected.size
    # The 98th percentile of the breast, 80 % of the window, is near its maximum.
    assert expected.min() == 0
    assert 0.8 * 16383 < expected.max() <= 16383
    for name, (change, steps) in NIFTI.items():
        entry, found = converted(tmp_path / name, change(stored))
        assert entry["warnings"] == []
        assert np.abs(found - expected).max() <= steps, name


def test_dicom_bits_photometry_and_windows_do_not_matter(tmp_path, stored, dicom):
    _, expected = converted(tmp_path / "breast", stored, dicom, BitsStored=14)
    for bits, steps in ((10, 20), (12, 8), (14, 1), (16, 1)):
        scaled = np.minimum(np.rint(stored * 2.0 ** (bits - 14)), 2**bits - 1).astype(np.uint16)
        window = {"WindowCenter": 2 ** (bits - 2), "WindowWidth": 2 ** (bits - 1)}
        entry, found = converted(tmp_path / f"{bits}", scaled, dicom, BitsStored=bits, **window)
        assert entry["status"] == "converted", entry
        assert np.abs(found - expected).max() <= steps, bits
        inverted = (2**bits - 1 - scaled.astype(np.int64)).astype(np.uint16)
        tags = {"BitsStored": bits, "PhotometricInterpretation": "MONOCHROME1"} | window
        _, other = converted(tmp_path / f"{bits} inverted", inverted, dicom, **tags)
        np.testing.assert_array_equal(other, found)


def block(shape):
    voxels = np.random.default_rng(0).normal(100, 10, shape)
    voxels[2:14, 20:80, 5:50] += 500
    return voxels.astype(np.uint16)


BAD = {
    "noise": (
        lambda v: np.random.default_rng(0).integers(0, 1000, v.shape).astype(np.uint16),
        "expected a breast that a threshold tells from air, found a separability of 0.75",
    ),
    "test object": (lambda v: block(v.shape), "found a uniform block"),
    "empty": (lambda v: np.full_like(v, 7), "expected an image with contrast"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_volumes_are_rejected_by_name(tmp_path, stored, name):
    change, words = BAD[name]
    entry, found = converted(tmp_path / "bad", change(stored))
    assert (entry["status"], found.size) == ("rejected", 0)
    assert "image.nii: expected" in entry["reason"]
    assert words in entry["reason"]
    assert "\n" not in entry["reason"]
    if name == "empty":
        return
    # The page of the data set says so in place of the volume.
    report = verify([str(tmp_path / "bad")], TASK, progress=False)
    (entry,) = report["cases"]
    assert [finding["code"] for finding in entry["findings"]] == ["unfit"]
    assert words in entry["findings"][0]["text"]
    write_verify_page(tmp_path / "page.html", [str(tmp_path / "bad")], report, TASK, volumes=1)
    assert words in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_pages_show_the_window(tmp_path, stored, monkeypatch):
    shown = []

    def spy(image_zyx, knees):
        shown.append(image_zyx)
        return to_pixels(image_zyx, knees)

    monkeypatch.setattr("preprocessing.page.coding.to_pixels", spy)
    for name, voxels in (("a", stored), ("b", stored.astype(np.float32) / 16383)):
        converted(tmp_path / name, voxels)
        report = verify([str(tmp_path / name)], TASK, progress=False)
        write_verify_page(
            tmp_path / f"{name}.html", [str(tmp_path / name)], report, TASK, volumes=1
        )
    first, second = (image.astype(int) for image in shown)
    assert first.min() == 0
    assert 0.8 * 16383 < first.max() <= 16383
    assert np.abs(first - second).max() <= 1
