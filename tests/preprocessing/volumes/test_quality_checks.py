"""Findings about readable cases, fingerprints of images, and duplicates."""

import itertools
import re

import attrs
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.tasks import PRESETS
from preprocessing.volumes.geometry import Volume, to_target_grid
from preprocessing.volumes.quality_checks import (
    Finding,
    check_image,
    check_labels,
    duplicate_reasons,
)

CT = PRESETS["ct_liver"]
DBT = attrs.evolve(PRESETS["dbt_lesion"], normalization="none")
AFFINE = np.diag([0.8, 0.8, 5.0, 1.0])
AXIS_CODES = [
    "".join(ends)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for ends in itertools.product(*order)
]


def ct(shape=(12, 10, 8)):
    """Returns tissue around 50 HU in a frame of air."""
    voxels = np.full(shape, -1000, np.int16)
    inside = tuple(slice(2, size - 2) for size in shape[:2])
    noise = np.random.default_rng(0).integers(-60, 120, shape, np.int16)
    voxels[inside] = noise[inside] + 50
    return voxels


def liver(shape=(12, 10, 8)):
    label = np.zeros(shape, np.uint8)
    label[4:8, 4:7, 2:6] = 1
    label[5, 5, 3:5] = 2
    return label


def found(voxels, label=None, affine=AFFINE, task=CT):
    image = Volume(voxels, affine)
    checked = check_image(image, task)
    assert checked.misfit is None
    findings = list(checked.findings)
    if label is not None:
        image_zyx, _ = to_target_grid(image, task)
        label_zyx, _ = to_target_grid(Volume(label, affine), task, label=True)
        findings += check_labels(image_zyx, label_zyx, task)[1]
    assert {finding.severity for finding in findings} <= {"warning"}
    assert not any("\n" in finding.text for finding in findings)
    return {finding.code: finding.text for finding in findings}


def test_a_good_case_has_no_findings():
    assert found(ct(), liver()) == {}
    checked = check_image(Volume(ct(), AFFINE), CT)
    assert (checked.low, checked.high) == (-1000, ct().max())
    counts, findings = check_labels(ct(), liver(), CT)
    assert counts.shape == (len(ct()), 3)
    assert counts.sum(axis=0).tolist() == [960 - 48, 46, 2]
    assert findings == ()


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda v: v + 1024, "unscaled", "smallest 24"),
        (lambda v: np.clip(v, -200, 250), "no_air", "smallest intensity -200 HU"),
        (lambda v: v.astype(float) / 20, "no_tissue", "largest intensity 8.45 HU"),
        (lambda v: np.where(v == -1000, -2000, v), "below_air", "% of the voxels"),
        (lambda v: v.astype(np.int32) * 300, "clipped", "-300000 to"),
        (lambda v: np.where(np.arange(8) == 3, 7, v), "constant_slices", "1 of 8 slices (3)"),
        (lambda v: v[:, :, [0, 1, 1, 1, 4, 5, 5, 7]], "repeated_slices", "3 of 8 slices (2, 3, 6)"),
        (lambda v: v[:, :, ::-1][:, :, [0] * 8], "repeated_slices", "7 of 8 slices (1, 2, 3, 4, 5"),
    ],
)
def test_images(change, code, words):
    assert words in found(change(ct()))[code]


def test_slices_are_counted_along_the_slice_axis_of_the_grid():
    coronal = ct((12, 8, 10)).transpose(0, 2, 1)[:, ::-1]
    coronal[:, 1] = -1000
    affine = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt("RPS"), (12, 10, 8))
    affine = np.diag([0.8, 4, 0.8, 1]) @ affine
    # The axis runs to posterior, the slice axis to anterior: index 1 of 10 becomes slice 8.
    assert "1 of 10 slices (8)" in found(coronal, affine=affine)["constant_slices"]


def test_spacing():
    assert "spacing 8 x 8 x 50 mm" in found(ct(), affine=np.diag([8, 8, 50, 1]))["spacing"]
    dbt = np.random.default_rng(0).integers(0, 900, (9, 9, 9)).astype(np.uint16)
    assert found(dbt, affine=np.diag([0.1, 0.1, 1, 1]), task=DBT) == {}
    coarse = found(dbt, affine=np.diag([1.2, 1.2, 2, 1]), task=DBT)
    assert "0.02 to 1 in the plane" in coarse["spacing"]


def boxes(values, shape=(60, 20, 9)):
    """Returns a label map: a box of each value, side by side."""
    voxels = np.zeros(shape, np.int16)
    for number, value in enumerate(values):
        voxels[5 * number : 5 * number + 5, 3:15, 2:7] = value
    return voxels


MISFITS = {
    "mask": (boxes([1]), AFFINE, "2 values from 0 to 1"),
    "mask of 255": (boxes([255]).astype(np.uint8), AFFINE, "2 values from 0 to 255"),
    "ignore": (boxes([-1, 1, 2]), AFFINE, "4 values from -1 to 2"),
    "real numbers": (boxes([1, 2]) * np.float32(1), AFFINE, "3 values from 0 to 2"),
    "organs": (boxes([10 * n + 7 for n in range(12)]), AFFINE, "13 values from 0 to 117"),
    "0 to 1": ((ct() + 1000) / 1200, AFFINE, "2 values from 0 to 1 when rounded"),
    "z-scores": ((ct() - ct().mean()) / ct().std(), AFFINE, "when rounded"),
    "metres": (ct(), np.diag([0.0008, 0.0008, 0.005, 1]), "0.0008 x 0.0008 x 0.005 mm"),
    "microns": (ct(), np.diag([800.0, 800, 5000, 1]), "xyzt_units"),
    "50 m": (np.repeat(ct(), 200, axis=2), np.diag([0.8, 0.8, 40, 1]), "8 x 6.4e+04 mm"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_misfits(name):
    voxels, affine, words = MISFITS[name]
    checked = check_image(Volume(voxels, affine), CT, where="a.nii")
    assert re.match(
        r"a\.nii: expected an image for ct_liver, found .*--allow unfit_image", str(checked.misfit)
    )
    assert words in checked.misfit.found
    assert {finding.severity for finding in checked.findings} <= {"warning"}
    allowed = check_image(Volume(voxels, affine), CT, allow=["unfit_image"])
    assert allowed.misfit is None
    assert {each.text for each in checked.findings} < {each.text for each in allowed.findings}
    assert {each.severity for each in allowed.findings} == {"warning"}


def test_further_findings_count():
    header = [Finding("error", "modality", "modality MR"), Finding("warning", "derived", "derived")]
    checked = check_image(Volume(ct(), AFFINE), CT, further=header)
    assert checked.misfit.found == "modality MR"
    assert [each.code for each in checked.findings] == ["derived"]


def test_few_slices_few_values_and_a_small_field_of_view_are_doubts():
    assert "volume of 2 slices" in found(ct()[:, :, :2])["few_slices"]
    few = np.random.default_rng(0).choice([-900, 60, 200], (12, 10, 8)).astype(np.int16)
    assert "3 values from -900 to 200" in found(few)["few_values"]
    scattered = np.random.default_rng(0).choice([0, 55, 80], (12, 10, 8)).astype(np.int16)
    assert "3 values from 0 to 80" in found(scattered)["few_values"]
    assert "2.4 x 2 x 8 mm" in found(ct(), affine=np.diag([0.2, 0.2, 1, 1]))["field_of_view"]
    # Eight bits, but neighbours differ.
    grey = np.random.default_rng(0).integers(0, 256, (12, 10, 8)).astype(np.uint8)
    assert found(grey).keys() == {"unscaled"}
    lesion = np.zeros((20, 20, 9), np.uint16)
    lesion[4:9, 4:9, 3:6] = 900
    affine = np.diag([0.1, 0.1, 1, 1])
    assert found(lesion, affine=affine, task=DBT).keys() == {
        "few_values",
        "constant_slices",
        "repeated_slices",
    }


def test_labels():
    assert found(ct(), liver() * 0).keys() == {"no_foreground"}
    # Most screened breasts have no lesion.
    counts, findings = check_labels(ct().astype(np.uint16), liver() * 0, DBT)
    assert (counts.sum(axis=0).tolist(), findings) == ([960, 0], ())
    # Two slices down; four columns to the right.
    assert "reaches the first slice" in found(ct(), np.roll(liver(), -2, 2))["label_at_border"]
    for label in (np.roll(liver(), 4, 0), np.roll(liver(), -4, 1)):
        assert found(ct(), label)["label_at_border"] == "foreground reaches the edge of 4 slices"
    halfway = found(
        ct((64, 64, 8)), np.roll(np.pad(liver(), ((0, 52), (0, 54), (0, 0))), -4, (0, 1))
    )
    assert "darker than -500 HU" in halfway["label_in_air"]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_fingerprint_ignores_orientation_dtype_and_position(data):
    shape = data.draw(st.tuples(*[st.integers(2, 6)] * 3))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    image = nib.Nifti1Image(random.integers(-999, 999, shape, np.int16), np.diag([1, 1, 5, 1.0]))
    codes = data.draw(st.sampled_from(AXIS_CODES))
    change = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )
    other = image.as_reoriented(change)
    voxels = np.asarray(other.dataobj).astype(data.draw(st.sampled_from(["i2", ">i2", "f4", "i4"])))
    affine = other.affine
    affine[:3, 3] += 7

    def fingerprint(voxels, affine):
        return check_image(Volume(voxels, affine), CT).fingerprint

    original = fingerprint(np.asarray(image.dataobj), image.affine)
    assert fingerprint(voxels, affine) == original
    changed = voxels.copy()
    changed[tuple(data.draw(st.integers(0, size - 1)) for size in voxels.shape)] += 1
    assert fingerprint(changed, affine) != original


def test_later_cases_are_the_duplicates():
    fingerprints = [("c", "1"), ("a", "2"), ("b", "1"), ("d", "2"), ("e", "3"), ("f", "1")]
    reasons = duplicate_reasons((case, f"{case}.nii", number) for case, number in fingerprints)
    text = "{}.nii: expected an image different from all others, found the voxels of case {}. Keep "
    pairs = {"b": "c", "d": "a", "f": "c"}
    assert reasons == {n: text.format(n, o) + "one of the two." for n, o in pairs.items()}
    assert duplicate_reasons([]) == {}
