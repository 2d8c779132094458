"""Normalisation of tomosynthesis: by hand, its law under any scaling, real volumes, and bad input."""

import attrs
import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from preprocessing.errors import InputError, SettingsError
from preprocessing.phantom.dbt import DBTSettings, make_case
from preprocessing.tasks import PRESETS, task_from_dict
from preprocessing.volumes.geometry import Volume, to_target_grid
from preprocessing.volumes.intensities import breast_range, normalized
from preprocessing.volumes.quality_checks import check_image

TASK = PRESETS["dbt_lesion"]
WINDOW = TASK.intensity_window


def ramp():
    """Air of 100 beside a breast with as many voxels of each of 500, 510, ..., 890."""
    voxels = np.full((40, 40, 8), 100, np.int16)
    voxels[20:] = (500 + 10 * np.arange(40))[:, np.newaxis]
    return voxels


@pytest.fixture(scope="module")
def breast(breast_14_bits):
    return breast_14_bits.voxels


def test_percentiles_by_hand():
    # Each of 40 intensities has 160 of 6400 voxels; the k-th one's middle rank is 160 k + 80.
    # 2 % is rank 128: 3/10 of a step after the first. 98 % is rank 6272: 3/10 before the last.
    assert breast_range(ramp()) == pytest.approx((503, 887))
    found = normalized(ramp(), (0, 1000))
    assert found.dtype == np.uint16
    # 503 becomes 200 and 887 becomes 800: 600 / 384 a unit.
    assert np.unique(found[:20]).tolist() == [0]
    expected = [round(200 + (500 + 10 * k - 503) * 600 / 384) for k in range(40)]
    assert found[20, :, 0].tolist() == expected
    assert (expected[0], expected[-1]) == (195, 805)
    # A window in which air and the brightest voxels are clipped.
    narrow = normalized(ramp(), (1000, 1010))
    assert (narrow.min(), narrow.max()) == (1000, 1008)


SCALINGS = {
    "gain": lambda v: v * 3 + 1000,
    "12 bits": lambda v: np.rint(v / 4).astype(np.uint16),
    "10 bits": lambda v: np.rint(v / 16).astype(np.uint16),
    "negative": lambda v: (v.astype(np.int32) - 9000).astype(np.int16),
    "16 bits": lambda v: v * 4,
    "float32": lambda v: v.astype(np.float32) / 20000 - 0.1,
    "float64": lambda v: v * 1e-9 + 5e-6,
    "int32": lambda v: v.astype(np.int32) * 1001 - 10**6,
    "byte order": lambda v: v.astype(">u2"),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_volumes_are_equal(breast, name):
    found = normalized(SCALINGS[name](breast), WINDOW).astype(int)
    # Rounding moves a voxel by half a step, and the two percentiles by at most a quarter of one, which
    # 0.8 / 0.6 of the range between them makes a third of a step at the window's ends.
    steps = {"10 bits": 16, "12 bits": 4}.get(name, 0)
    low, high = breast_range(breast)
    tolerance = 0.6 * (WINDOW[1] - WINDOW[0]) / (high - low) * steps * (1 / 2 + 1 / 3) + 2
    assert np.abs(found - normalized(breast, WINDOW)).max() <= tolerance


@given(st.floats(1e-3, 1e3), st.floats(-1e4, 1e4), st.sampled_from([np.float32, np.float64]))
@settings(max_examples=30, deadline=None)
def test_gain_and_offset_cancel(breast_or, gain, offset, dtype):
    # As many steps as a real dtype has, at least a thousand across the breast.
    scaled = (breast_or * gain + offset * gain).astype(dtype)
    difference = normalized(scaled, WINDOW).astype(int) - normalized(breast_or, WINDOW)
    assert np.abs(difference).max() <= 4


@pytest.fixture(scope="module")
def breast_or(breast):
    return breast[:, :, 6:14]


def test_axis_order_and_memory_do_not_matter(breast):
    expected = normalized(breast, WINDOW)
    other = normalized(np.ascontiguousarray(breast.transpose(2, 1, 0)), WINDOW)
    np.testing.assert_array_equal(other.transpose(2, 1, 0), expected)
    np.testing.assert_array_equal(
        normalized(breast[::-1, :, ::-1], WINDOW)[::-1, :, ::-1], expected
    )
    np.testing.assert_array_equal(normalized(np.asfortranarray(breast), WINDOW), expected)
    # A single slice, cut from the middle.
    one = breast[:, :, 9:10]
    np.testing.assert_array_equal(
        normalized(np.asfortranarray(one), WINDOW), normalized(one.copy(order="C"), WINDOW)
    )
    np.testing.assert_array_equal(normalized(one, WINDOW), normalized(one.copy(order="C"), WINDOW))


def test_metal_and_a_few_dark_voxels_do_not_move_the_breast(breast):
    low, high = breast_range(breast)
    metal = breast.astype(np.int32)
    metal[20:23, 40:43, 9:11] = 60000
    metal[0, 0, :] = -60000
    assert breast_range(metal) == pytest.approx((low, high), rel=0.01)


def test_simulated_volumes(real_data):
    """Filtered back-projection: air lies at a quarter of the range, and undershoots to 0."""
    folder = real_data / "victre_dbt_insilico"
    ranges = []
    for name in ("negative", "positive"):
        voxels = np.asarray(nib.load(folder / f"dbt_{name}.nii.gz").dataobj)
        ranges.append(breast_range(voxels))
        found = normalized(voxels, WINDOW)
        # All that is below the middle of the histogram's two peaks, at 250 and 760, is air.
        air, tissue = found[voxels < 300], found[voxels > 600]
        assert air.max() == 0
        assert np.quantile(tissue, [0.01, 0.99]) == pytest.approx([5088, 13602], rel=0.01)
        coarse = normalized((voxels // 4).astype(np.uint8), WINDOW).astype(int)
        assert np.abs(coarse - found).max() <= 0.01 * WINDOW[1]
    # The same phantom with and without a mass.
    np.testing.assert_allclose(*ranges, rtol=0.005)


def noise(kind):
    random, shape = np.random.default_rng(0), (48, 64, 16)
    return {
        "uniform": random.integers(0, 1024, shape),
        "normal": random.normal(500, 50, shape),
        "exponential": random.exponential(100, shape),
        "two values": random.choice([0, 1000], shape),
        "correlated": ndimage.gaussian_filter(random.normal(0, 1, shape), 3),
    }[kind]


def slab(noise_share, blur=1.0):
    """A block of 500 above air of 100, with noise of a share of that contrast."""
    voxels = np.full((96, 112, 32), 100.0)
    voxels[:60, 10:100, 4:28] = 600
    voxels = ndimage.gaussian_filter(voxels, blur)
    return voxels + 500 * noise_share * np.random.default_rng(0).standard_normal(voxels.shape)


def speck():
    voxels = np.random.default_rng(0).normal(100, 5, (60, 80, 20))
    voxels[20:28, 20:28, 4:12] = 900
    return voxels


BAD = {
    "empty": (np.full((40, 40, 8), 7, np.uint16), "expected an image with contrast.*equal to 7"),
    "nan": (np.where(ramp() == 700, np.nan, ramp()), "expected finite voxels"),
    "speck": (speck(), r"tells from air, found .* with 1 % of the voxels \(2 to 95 %\)"),
    "all breast": (noise("correlated"), "tells from air, found a separability of 0.6"),
    "mask": (slab(0, 0) > 300, "fat and glandular tissue, found a uniform block"),
    **{
        f"{kind} noise": (noise(kind), "a breast that a threshold tells from air, found")
        for kind in ("uniform", "normal", "exponential", "two values")
    },
    **{
        f"slab, noise {share}": (slab(share), "found a uniform block.* Leave out images of test")
        for share in (0, 0.02, 0.1, 0.15)
    },
    "blurred slab": (slab(0.02, blur=2.0), "found a uniform block"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_volumes_are_refused_by_name(name):
    voxels, words = BAD[name]
    voxels = voxels.astype(np.float32) if voxels.dtype == bool else voxels
    with pytest.raises(
        InputError, match=f"^a.nii: {'expected ' * ('expected' not in words)}.*{words}"
    ):
        normalized(voxels, WINDOW, "a.nii")
    if name in ("empty", "nan"):
        return  # readers refuse them
    volume = Volume(voxels, np.diag([0.2, 0.2, 1, 1]))
    checked = check_image(volume, TASK, where="a.nii", allow=["unfit_image"])
    assert str(checked.misfit).startswith("a.nii: expected a breast ")
    with pytest.raises(InputError, match="expected a breast "):
        to_target_grid(volume, TASK)


def test_breasts_pass_by_a_wide_margin(monkeypatch):
    monkeypatch.setattr("preprocessing.volumes.intensities.LEAST_SPREAD", 0.18)
    monkeypatch.setattr("preprocessing.volumes.intensities.LEAST_SEPARABILITY", 0.77)
    for seed in range(6):
        breast_range(make_case(seed, 0, DBTSettings(shape_xyz=(64, 96, 24))).image.voxels)


@pytest.mark.parametrize("dtype", ["int16", "float32", "uint8", "uint16"])
def test_checks_accept_any_scale(breast, dtype):
    voxels = breast.astype(np.float64) / breast.max()
    scale = {"int16": 4000, "float32": 1, "uint8": 255, "uint16": 65535}[dtype]
    voxels = (np.rint(voxels * scale) if dtype != "float32" else voxels).astype(dtype)
    voxels = voxels - np.int16(2000) if dtype == "int16" else voxels
    image = Volume(voxels, np.diag([0.2, 0.2, 1, 1]))
    checked = check_image(image, TASK)
    assert (checked.misfit, checked.findings) == (None, ())
    assert (checked.low, checked.high) == (voxels.min(), voxels.max())
    # Fingerprints see what rounding to uint16 would lose.
    changed = voxels.copy()
    changed[0, 0, 0] += (dtype == "float32" and 1e-3) or 1
    assert check_image(Volume(changed, image.affine), TASK).fingerprint != checked.fingerprint


def test_normalised_before_resampling(breast):
    task = PRESETS["dbt_lesion_small"]
    affine = np.diag([0.4, 0.4, 1, 1])
    fine, _ = to_target_grid(Volume(breast, affine), task)
    scaled, _ = to_target_grid(Volume(breast.astype(np.float32) * 0.01 - 7, affine), task)
    assert fine.shape == (breast.shape[2], *(round(n / 2) for n in breast.shape[1::-1]))
    assert np.abs(fine.astype(int) - scaled).max() <= 1
    ready = Volume(normalized(breast, WINDOW), affine)
    expected, _ = to_target_grid(ready, attrs.evolve(task, normalization="none"))
    np.testing.assert_array_equal(fine, expected)


def test_settings_of_tasks():
    assert {name: task.normalization for name, task in PRESETS.items()} == {
        "ct_liver": "none",
        "ct_liver_small": "none",
        "dbt_lesion": "breast",
        "dbt_lesion_small": "breast",
    }
    # A stored task of before the attribute.
    stored = TASK.to_dict() | {"intensity_window": [0.0, 1023.0]}
    del stored["normalization"]
    assert task_from_dict(stored).normalization == "none"
    raw = Volume(ramp().astype(np.uint16), np.eye(4))
    np.testing.assert_array_equal(to_target_grid(raw, task_from_dict(stored))[0].T, ramp())
    for wrong, words in (
        ({"normalization": "lungs"}, "one of none, breast"),
        ({"image_dtype": "int16"}, "uint16, which normalised"),
        ({"intensity_window": [-1, 100]}, "numbers from 0 to 65535"),
        ({"intensity_window": [0, 65536]}, "numbers from 0 to 65535"),
    ):
        with pytest.raises(SettingsError, match=words):
            task_from_dict({"base": "dbt_lesion"} | wrong)
