"""The synthetic DBT: reproducible, exactly labelled, and misleading where one slice is looked at."""

import json

import nibabel as nib
import numpy as np
import pytest

from preprocessing.datasets.discovery import find_cases
from preprocessing.phantom.__main__ import main
from preprocessing.phantom.dataset import write_cases
from preprocessing.phantom.dbt import DBTSettings, make_case
from preprocessing.volumes.geometry import axis_codes, spacing_mm

SMALL = DBTSettings(shape_xyz=(64, 96, 24), spacing_mm=(1.0, 1.0, 1.6))


@pytest.fixture(scope="module")
def cases():
    return [make_case(0, number) for number in range(8)]


def test_same_seed_and_number_same_bytes_for_any_count(tmp_path):
    write_cases(tmp_path / "two", 2, 5, settings=SMALL)
    write_cases(tmp_path / "one", 1, 5, first=1, settings=SMALL)
    names = [path.name for path in (tmp_path / "one").glob("*.nii.gz")]
    assert len(names) == 2
    for name in names:
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    images = [make_case(seed, 1, SMALL).image.voxels for seed in (5, 6)]
    assert images[0].shape != images[1].shape or not np.array_equal(*images)


def test_grid_and_ten_bits(cases):
    for case in cases:
        assert case.image.voxels.dtype == np.uint16
        assert case.image.voxels.max() <= 1023
        assert case.image.voxels.shape == case.label.voxels.shape
        assert case.image.voxels.shape[:2] == (160, 288)
        assert 35 <= case.image.voxels.shape[2] <= 45
        np.testing.assert_array_equal(case.image.affine, case.label.affine)
        assert spacing_mm(case.image.affine) == pytest.approx((0.4, 0.4, 1.0))
    assert {axis_codes(case.image.affine) for case in cases} == {"RAS", "LPS"}
    assert len({case.view for case in cases}) > 2


def test_chest_wall_lies_on_the_views_side(cases):
    for case in cases:
        edges = case.image.voxels[[0, -1]].astype(float).sum(axis=(1, 2))
        assert ("l" if edges[0] > edges[1] else "r") == case.view[0]
        # Nothing but air at the other side.
        assert edges.min() < 0.1 * edges.max()


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


@pytest.mark.parametrize(
    "settings",
    [{"most_masses": 2}, {"clutter": 4}, {"flat_masses": 2}],
    ids=["masses", "clutter", "flat masses"],
)
def test_masses_span_slices_and_lookalikes_do_not(settings):
    """What each adds to the same breast, in the slice where it is brightest and around it."""
    none = {"most_masses": 0, "clutter": 0}
    grid = {"shape_xyz": (96, 144, 40), "spacing_mm": (0.7, 0.8, 1.0), "noise": 0.0}
    ratios, peaks = [], []
    for number in range(5):
        without = make_case(2, number, DBTSettings(**grid, **none))
        case = make_case(2, number, DBTSettings(**grid, **none | settings))
        added = case.image.voxels.astype(float) - without.image.voxels
        x, y, z = np.unravel_index(np.argmax(added), added.shape)
        if added.max() > 60 and 4 < z < added.shape[2] - 4:
            profile = added[x - 2 : x + 3, y - 2 : y + 3].mean(axis=(0, 1))
            peaks.append(added.max())
            ratios.append((profile[z - 3] + profile[z + 3]) / 2 / profile[z])
    assert len(ratios) >= 2
    # In one slice all of them are as bright.
    assert 150 < np.median(peaks) < 400
    if "most_masses" in settings:
        assert np.median(ratios) > 0.6
    else:
        # A Gaussian of 1.5 mm has 0.14 left three slices on.
        assert max(ratios) < 0.3


def test_flat_masses_change_nothing_else():
    grid = {"shape_xyz": (64, 96, 24), "spacing_mm": (1.0, 1.0, 1.0), "fewest_masses": 1}
    for number in range(3):
        plain = make_case(4, number, DBTSettings(**grid))
        case = make_case(4, number, DBTSettings(**grid, flat_masses=4))
        assert case.boxes == plain.boxes
        assert case.boxes
        np.testing.assert_array_equal(case.label.voxels, plain.label.voxels)
        added = case.image.voxels.astype(float) - plain.image.voxels
        assert added.max() > 60
        assert np.median(np.abs(added)) == 0


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
