"""The synthetic DBT: reproducible, exactly labelled, physical, and not to be solved by brightness."""

import json
import time

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from preprocessing.datasets.discovery import find_cases
from preprocessing.datasets.reading import read_case_image
from preprocessing.errors import SettingsError
from preprocessing.phantom.__main__ import main
from preprocessing.phantom.breast import DENSITIES, FAT, GLAND, make_breast
from preprocessing.phantom.breast_lesions import Painter, paint_calcifications, paint_mass
from preprocessing.phantom.dataset import write_cases
from preprocessing.phantom.dbt import DBTSettings, make_case
from preprocessing.volumes.geometry import axis_codes, spacing_mm

SMALL = DBTSettings(shape_xyz=(64, 96, 24), spacing_mm=(1.0, 1.0, 1.6))
AXES = np.ix_(np.arange(80) * 0.8, np.arange(144) * 0.8 - 57.2, np.arange(80) * 0.5 - 19.75)


@pytest.fixture(scope="module")
def cases():
    """Of both arcs, bits and orientations, three views, and with none, one or two masses."""
    return [make_case(0, number) for number in (0, 2, 3, 4, 6)]


def test_same_seed_and_number_same_bytes_for_any_count(tmp_path):
    write_cases(tmp_path / "two", 2, 5, settings=SMALL)
    write_cases(tmp_path / "one", 1, 5, first=1, settings=SMALL)
    names = [path.name for path in (tmp_path / "one").glob("*.nii.gz")]
    assert len(names) == 2
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    images = [make_case(seed, 1, SMALL).image.voxels for seed in (5, 6)]
    assert images[0].shape != images[1].shape or not np.array_equal(*images)


@pytest.mark.slow
def test_grid_and_bits(cases):
    for case in cases:
        assert case.image.voxels.dtype == np.uint16
        assert case.image.voxels.max() < 2**case.bits
        # Not ten bits in sixteen.
        assert case.image.voxels.max() > 2 ** (case.bits - 2)
        assert case.image.voxels.shape == case.label.voxels.shape
        assert case.image.voxels.shape[:2] == (160, 288)
        assert 35 <= case.image.voxels.shape[2] <= 45
        np.testing.assert_array_equal(case.image.affine, case.label.affine)
        assert spacing_mm(case.image.affine) == pytest.approx((0.4, 0.4, 1.0))
    assert {axis_codes(case.image.affine) for case in cases} == {"RAS", "LPS"}
    assert len({case.view for case in cases}) > 2
    assert {case.bits for case in cases} == {10, 14}
    assert {case.arc for case in cases} == {"wide", "narrow"}
    assert len({case.density for case in cases}) > 1


def test_chest_wall_lies_on_the_views_side(cases):
    for case in cases:
        edges = case.image.voxels[[0, -1]].astype(float).sum(axis=(1, 2))
        assert ("l" if edges[0] > edges[1] else "r") == case.view[0]
        # Nothing but air at the other side, in the middle slice.
        far = case.image.voxels[
            0 if edges[0] < edges[1] else -1, :, case.image.voxels.shape[2] // 2
        ]
        assert np.ptp(far[10:-10].astype(float)) < 0.3 * case.image.voxels.max()


def test_boxes_are_those_of_the_masks(cases):
    assert {len(case.boxes) for case in cases} == {0, 1, 2}
    assert {box.lesion_class for case in cases for box in case.boxes} == {"benign", "cancer"}
    for case in cases:
        label = case.label.voxels.copy()
        for box in case.boxes:
            part = np.zeros_like(label)
            area = (slice(box.x, box.x + box.width), slice(box.y, box.y + box.height))
            part[area] = label[area]
            filled = [np.flatnonzero(part.any(axis=axes)) for axes in ((1, 2), (0, 2))]
            assert (filled[0][0], filled[0][-1]) == (box.x, box.x + box.width - 1)
            assert (filled[1][0], filled[1][-1]) == (box.y, box.y + box.height - 1)
            voxels = part.sum(axis=(0, 1))
            assert voxels[box.slice_index] == voxels.max()
            assert box.volume_slices == label.shape[2]
            label[area] = 0
        assert not label.any()


@pytest.mark.slow
def test_without_masses_the_breast_is_the_same():
    """The difference is the masses: bright in their slices, fading along z, nothing far from them."""
    settings = {"shape_xyz": (96, 144, 40), "spacing_mm": (0.7, 0.8, 1.0), "arc": "wide"}
    settings |= {"mass_contrast": (1.15, 1.15)}
    found = 0
    for number in range(4):
        without = make_case(2, number, DBTSettings(**settings, most_masses=0))
        case = make_case(2, number, DBTSettings(**settings, fewest_masses=1, most_masses=1))
        assert not without.label.voxels.any()
        assert without.boxes == ()
        assert (without.view, without.density, without.bits) == (case.view, case.density, case.bits)
        if not case.boxes:
            continue
        found += 1
        mass = case.label.voxels > 0
        scale = np.ptp(without.image.voxels.astype(float))
        added = (case.image.voxels - without.image.voxels.astype(float)) / scale
        z_index = case.boxes[0].slice_index
        area = mass[:, :, z_index]
        profile = [float(added[:, :, z][area].mean()) for z in range(mass.shape[2])]
        assert max(profile) == pytest.approx(profile[z_index], rel=0.25)
        assert profile[z_index] > 0.02
        outside = ~ndimage.binary_dilation(mass.any(axis=2), iterations=25)
        assert abs(added[outside].mean()) < 0.1 * profile[z_index]
    assert found >= 3


@pytest.mark.parametrize("spiculated", [False, True])
def test_a_mass_has_its_contrast_to_glandular_tissue(spiculated):
    breast = make_breast(np.random.default_rng(1), AXES, "b", mlo=False)
    before = breast.attenuation.copy()
    painter = Painter(breast, AXES, np.random.default_rng(2), [])
    mask = paint_mass(painter, 7.0, 1.1, spiculated)
    core = ndimage.binary_erosion(mask, iterations=2)
    assert core.sum() > 50
    np.testing.assert_allclose(breast.attenuation[core], 1.1 * GLAND, rtol=0.01)
    # About as large as a ball of its radius, and in one piece.
    volume_mm3 = mask.sum() * 0.8 * 0.8 * 0.5
    assert 0.15 * 4.19 * 7**3 < volume_mm3 < 1.3 * 4.19 * 7**3
    assert ndimage.label(mask)[1] == 1
    changed = np.abs(breast.attenuation - before) > 1e-4
    beyond = changed & ~ndimage.binary_dilation(mask, iterations=3)
    # Spicules reach further than the mask.
    assert (beyond.sum() > 500) == spiculated


def test_denser_classes_have_more_glandular_tissue():
    shares = []
    for density in DENSITIES:
        breasts = [make_breast(np.random.default_rng(n), AXES, density, False) for n in range(3)]
        shares.append(np.mean([b.gland[b.depth_mm > 4].mean() for b in breasts]))
        for breast in breasts:
            fat = (breast.depth_mm > 3) & (breast.gland < 0.01)
            assert np.median(breast.attenuation[fat]) == pytest.approx(FAT, rel=0.1)
            assert not breast.attenuation[breast.depth_mm < -1].any()
    assert shares == sorted(shares)
    for share, (least, most) in zip(shares, DENSITIES.values(), strict=True):
        assert 0.6 * least < share < 1.3 * most


def test_calcifications_are_bright_specks():
    breast = make_breast(np.random.default_rng(1), AXES, "c", mlo=False)
    before = breast.attenuation.copy()
    paint_calcifications(Painter(breast, AXES, np.random.default_rng(3), []))
    added = breast.attenuation - before
    assert 1 <= (added > 0).sum() <= 15
    assert added.min() >= 0
    assert added.max() > 0.1 * GLAND


def test_a_case_of_four_tenths_of_a_millimetre_takes_seconds():
    start = time.process_time()
    make_case(0, 3)
    assert time.process_time() - start < 15


def test_settings_are_checked():
    wrong = [
        ({"mass_diameter_mm": (9.0, 5.0)}, "mass_diameter_mm"),
        ({"mass_contrast": (0.0, 1.0)}, "mass_contrast"),
        ({"arc": "full"}, "wide, narrow"),
        ({"density": "e"}, "a, b, c, d"),
        ({"lookalikes": -1}, "lookalikes"),
        ({"fewest_masses": 3}, "most_masses"),
    ]
    for settings, message in wrong:
        with pytest.raises(SettingsError, match=message):
            DBTSettings(**settings)


def test_brightness_alone_does_not_find_the_masses(cases):
    best = 0.0
    for case in cases:
        mass = case.label.voxels > 0
        if mass.any():
            for level in np.percentile(case.image.voxels[mass], (10, 30, 50)):
                bright = case.image.voxels >= level
                best = max(best, 2 * (bright & mass).sum() / (bright.sum() + mass.sum()))
    assert best < 0.5


def test_command_adds_to_the_tables_of_a_folder(tmp_path, capsys):
    out = tmp_path / "breasts"
    options = ["--kind", "dbt", "--output", str(out), "--shape", "48", "64", "16"]
    options += ["--spacing-mm", "1.3", "1.4", "2.5", "--cases", "2"]
    assert main([*options]) == 0
    assert main([*options, "--first", "2"]) == 0
    cases = find_cases([out], need_labels=True)
    assert len(cases) == 4
    assert not any(case.problem for case in cases)
    for case in cases:
        label = np.asarray(nib.load(case.label_path).dataobj)
        assert (label.max() > 0) == bool(case.boxes)
        assert all(box.volume_slices == label.shape[2] for box in case.boxes)
    content = json.loads((out / "phantom.json").read_text())
    assert [entry["case_id"] for entry in content["cases"]] == [c.case_id for c in cases[2:]]
    assert content["settings"]["shape_xyz"] == [48, 64, 16]
    capsys.readouterr()
    assert main([*options]) == 1
    assert capsys.readouterr().err.strip().endswith("Give --overwrite to replace.")
    assert main([*options, "--overwrite", "--seed", "9"]) == 0
    again = find_cases([out], need_labels=True)
    assert len(again) == 4
    assert not any(case.problem for case in again)


def test_dicom_holds_the_same_voxels_in_the_same_place(tmp_path, capsys):
    options = ["--kind", "dbt", "--shape", "48", "64", "16", "--spacing-mm", "1.3", "1.4", "2.5"]
    options += ["--cases", "4"]
    assert main([*options, "--output", str(tmp_path / "nifti")]) == 0
    assert main([*options, "--output", str(tmp_path / "dicom"), "--format", "dicom"]) == 0
    nifti = {case.case_id: case for case in find_cases([tmp_path / "nifti"], need_labels=True)}
    dicom = {case.case_id: case for case in find_cases([tmp_path / "dicom"], need_labels=True)}
    assert nifti.keys() == dicom.keys()
    assert len(dicom) == 4
    for name, case in dicom.items():
        assert not case.problem
        assert case.boxes == nifti[name].boxes
        ours, theirs = read_case_image(case), read_case_image(nifti[name])
        np.testing.assert_array_equal(ours.voxels, theirs.voxels)
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)
    capsys.readouterr()
    assert main(["--output", str(tmp_path / "ct"), "--format", "dicom"]) == 1
    assert "--kind dbt" in capsys.readouterr().err


def test_contrast_of_masses_is_an_option(tmp_path, capsys):
    options = [
        "--output",
        str(tmp_path),
        "--shape",
        "48",
        "64",
        "16",
        "--mass-contrast",
        "1.3",
        "1.4",
    ]
    assert (
        main([*options, "--kind", "dbt", "--cases", "1", "--spacing-mm", "1.3", "1.4", "2.5"]) == 0
    )
    settings = json.loads((tmp_path / "phantom.json").read_text())["settings"]
    assert settings["mass_contrast"] == [1.3, 1.4]
    assert main(options) == 1
    assert "--kind dbt" in capsys.readouterr().err
