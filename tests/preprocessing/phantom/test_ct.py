"""The synthetic CT: reproducible, exactly labelled, and not separable by brightness."""

import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from preprocessing.errors import SettingsError
from preprocessing.phantom.__main__ import main
from preprocessing.phantom.ct import PhantomSettings, make_case
from preprocessing.phantom.dataset import write_cases
from preprocessing.volumes.geometry import axis_codes, spacing_mm

SMALL = PhantomSettings(shape_xyz=(48, 48, 12), spacing_mm=(6.5, 6.5, 13.0))


@pytest.fixture(scope="module")
def cases():
    return [make_case(0, number) for number in range(8)]


def test_same_seed_and_number_same_voxels_for_any_count(tmp_path):
    write_cases(tmp_path / "two", 2, 5, settings=SMALL)
    write_cases(tmp_path / "one", 1, 5, first=1, settings=SMALL)
    for name in ("volume-1.nii.gz", "segmentation-1.nii.gz"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    other = make_case(6, 1, SMALL)[0].voxels
    same = make_case(5, 1, SMALL)[0].voxels
    assert other.shape != same.shape or not np.array_equal(other, same)


def test_grid_dtypes_and_values(cases):
    for image, label in cases:
        assert image.voxels.dtype == np.int16
        assert label.voxels.dtype == np.uint8
        assert image.voxels.shape == label.voxels.shape
        assert image.voxels.shape[:2] == (128, 128)
        assert 28 <= image.voxels.shape[2] <= 36
        np.testing.assert_array_equal(image.affine, label.affine)
        assert spacing_mm(image.affine) == (2.5, 2.5, 5.0)
        assert set(np.unique(label.voxels)) <= {0, 1, 2}
    assert len({axis_codes(image.affine) for image, _ in cases}) > 1


def test_liver_is_one_organ_of_human_size_on_the_patients_right(cases):
    litres = [np.count_nonzero(label.voxels) * 2.5 * 2.5 * 5 / 1e6 for _, label in cases]
    assert min(litres) > 0.4
    assert max(litres) < 2.5
    assert max(litres) > 1.15 * min(litres)
    for image, label in cases:
        pieces, count = ndimage.label(label.voxels > 0)
        largest = np.bincount(pieces.ravel())[1:].max()
        assert largest > 0.97 * np.count_nonzero(label.voxels), count
        place = image.affine @ [*np.argwhere(label.voxels > 0).mean(axis=0), 1]
        assert place[0] > 15


def test_tumours_vary_and_are_darker_than_the_liver(cases):
    sizes = [int((label.voxels == 2).sum()) for _, label in cases]
    assert 0 in sizes
    assert sum(size > 50 for size in sizes) >= 3
    for image, label in cases:
        inner = ndimage.binary_erosion(label.voxels == 2, iterations=1)
        if inner.sum() > 20:
            contrast = image.voxels[label.voxels == 1].mean() - image.voxels[inner].mean()
            assert 20 < contrast < 80


def test_brightness_alone_does_not_find_the_liver(cases):
    best = 0.0
    for image, label in cases:
        liver = label.voxels > 0
        smooth = ndimage.gaussian_filter(image.voxels.astype(np.float32), 1)
        centre = np.median(smooth[liver])
        for width in (10, 20, 30):
            band = np.abs(smooth - centre) < width
            dice = 2 * (band & liver).sum() / (band.sum() + liver.sum())
            best = max(best, dice)
    assert best < 0.85


def added_by(**lookalikes):
    """What lookalikes add to the same cases without tumours, in HU, and the cases' label maps."""
    grid = {"shape_xyz": (64, 64, 24), "spacing_mm": (2.5, 2.5, 5.0), "blur_mm": 1.0}
    grid |= {"most_tumours": 0, "tumour_radius_mm": (8.0, 14.0)}
    for number in range(6):
        image, label = make_case(3, number, PhantomSettings(**grid))
        other, other_label = make_case(3, number, PhantomSettings(**grid, **lookalikes))
        np.testing.assert_array_equal(label.voxels, other_label.voxels)
        yield other.voxels.astype(float) - image.voxels, label.voxels


def slices_touched(added):
    """The slices in which something of at least half the largest contrast was added."""
    return np.flatnonzero((added < added.min() / 2).any(axis=(0, 1)))


@pytest.mark.parametrize("slices", [1, 3])
def test_flat_lookalikes_lie_in_the_liver_and_in_so_many_slices(slices):
    for added, label in added_by(flat_lookalikes=1, flat_slices=slices):
        assert added.min() < -25
        assert len(slices_touched(added)) == slices
        far = ~ndimage.binary_dilation(label > 0, iterations=3)
        assert np.abs(added[far]).max() <= 2


def test_command_writes_lits_names_and_its_settings(tmp_path, capsys):
    out = tmp_path / "phantom"
    arguments = ["--output", str(out), "--cases", "2", "--first", "3", "--shape", "32", "32", "8"]
    assert main(arguments) == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        "phantom.json",
        *("segmentation-3.nii.gz", "segmentation-4.nii.gz"),
        *("volume-3.nii.gz", "volume-4.nii.gz"),
    ]
    content = json.loads((out / "phantom.json").read_text())
    assert content["settings"]["shape_xyz"] == [32, 32, 8]
    label = np.asarray(nib.load(out / "segmentation-3.nii.gz").dataobj)
    assert content["cases"][0] == {
        "case_id": "volume-3",
        "label_voxels": np.bincount(label.ravel(), minlength=3).tolist(),
    }
    capsys.readouterr()
    assert main(arguments) == 1
    assert capsys.readouterr().err.strip().endswith("Give --overwrite to replace.")
    assert main([*arguments, "--overwrite"]) == 0


def test_a_minimum_of_tumours_above_the_maximum_is_refused():
    with pytest.raises(SettingsError, match="fewest_tumours <= most_tumours"):
        PhantomSettings(fewest_tumours=4)


@pytest.mark.parametrize("bad", [["--cases", "0"], ["--shape", "0", "4", "4"], ["--seed", "-1"]])
def test_impossible_settings_are_one_line(tmp_path, capsys, bad):
    assert main(["--output", str(tmp_path / "out"), *bad]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: phantom: expected")
    assert "\n" not in error
    assert not (tmp_path / "out").exists()
