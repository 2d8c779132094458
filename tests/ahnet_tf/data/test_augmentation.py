"""Augmentation: labels follow their voxels, magnitudes stay in bounds, seeds reproduce."""

import functools

import attrs
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import center_of_mass

from ahnet_tf.config import AugmentationConfig
from ahnet_tf.data.augmentation import augment_patch
from preprocessing.errors import SettingsError
from preprocessing.tasks import Task

TASK = Task("toy", ("background", "liver", "tumour"), (-200.0, 250.0), patch_shape_zyx=(2, 4, 6))
ZEROS = {field.name: 0.0 for field in attrs.fields(AugmentationConfig)}
NOTHING = AugmentationConfig(**ZEROS | {"elastic_grid_mm": 32.0})
EVERYTHING = AugmentationConfig(
    flip_z_probability=0.5,
    warp_probability=1.0,
    rotation_degrees=30,
    zoom=0.3,
    elastic_mm=6,
    translation_mm=5,
    zoom_z=0.3,
    translation_slices=1,
)

# All that moves voxels, and nothing that changes intensities.
SHARP = attrs.evolve(
    EVERYTHING,
    **dict.fromkeys([name for name in ZEROS if name.startswith("intensity")], 0.0),
)


def only(**magnitudes):
    return attrs.evolve(NOTHING, **magnitudes)


def patch(shape=(2, 4, 6), seed=0):
    """A patch of distinct intensities, with label and weight computed from them."""
    rng = np.random.default_rng(seed)
    image = rng.permutation(np.prod(shape)).reshape(shape).astype(np.float32)
    return {
        "image": image[..., None],
        "label": (image % 3).astype(np.uint8),
        "weight": (image % 7 > 0).astype(np.float32),
        "heat_map": image / 100,
    }


@functools.cache
def compiled(config):
    """The augmentation as a graph, as in a data set: many times as fast for many seeds."""
    return tf.function(
        lambda arrays, spacing, seed: augment_patch(arrays, spacing, seed, config, TASK)
    )


def augment(arrays, seed, config, spacing=(1.0, 1.0)):
    arrays = {name: tf.constant(values) for name, values in arrays.items()}
    found = compiled(config)(arrays, tf.constant(spacing), tf.constant(seed))
    return {name: values.numpy() for name, values in found.items()}


def disc(shape=(3, 48, 40), radius=11.0):
    """A patch whose image equals its label: 100 in a disc, -100 around it."""
    y, x = np.ogrid[: shape[1], : shape[2]]
    label = ((y - 22) ** 2 + (x - 17) ** 2 < radius**2).astype(np.uint8)
    label = np.broadcast_to(label, shape).copy()
    return {
        "image": np.where(label, 100, -100).astype(np.float32)[..., None],
        "label": label,
        "weight": np.ones(shape, np.float32),
        "heat_map": label.astype(np.float32),
    }


@pytest.mark.parametrize(
    "config",
    [
        NOTHING,
        only(warp_probability=1.0),
        only(rotation_degrees=90, zoom=1, elastic_mm=5, translation_mm=9),
        only(zoom_z=1, translation_slices=1),
    ],
)
def test_magnitude_zero_or_chance_zero_changes_no_byte(config):
    arrays = patch()
    for seed in range(5):
        for name, values in augment(arrays, (seed, 0), config).items():
            assert values.tobytes() == arrays[name].tobytes()


def test_flips_move_all_arrays_together_and_happen_by_their_chances():
    arrays, seen = patch(), set()
    config = only(flip_probability=0.5, flip_z_probability=0.5)
    for seed in range(60):
        found = augment(arrays, (seed, 1), config)
        ways = [
            way
            for way in np.ndindex(2, 2, 2)
            if all(
                np.array_equal(
                    found[name], values[tuple(slice(None, None, 1 - 2 * w) for w in way)]
                )
                for name, values in arrays.items()
            )
        ]
        assert len(ways) == 1
        seen.add(ways[0])
    assert len(seen) == 8
    never = {augment(arrays, (s, 1), only(flip_probability=1))["image"].tobytes() for s in range(5)}
    assert never == {arrays["image"][:, ::-1, ::-1].tobytes()}


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31 - 1), st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)))
def test_labels_follow_the_image_up_to_their_boundary(seed, spacing):
    found = augment(disc(), (seed, 0), SHARP, spacing)
    kept = found["weight"] > 0
    image, label = found["image"][kept][..., 0], found["label"][kept] == 1
    # Where all voxels that an intensity is mixed from agree, so does the label.
    sure = np.abs(image) > 99.9
    assert np.array_equal(image[sure] > 0, label[sure])
    # Elsewhere the nearest voxel weighs at least a quarter of the mixture.
    assert (image[label] > -51).all()
    assert (image[~label] < 51).all()
    np.testing.assert_allclose(found["heat_map"][kept], (image + 100) / 200, atol=1e-3)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_kinds_shapes_and_label_values_are_kept_and_outside_has_no_weight(seed):
    arrays = disc()
    found = augment(arrays, (seed, 3), EVERYTHING, (0.8, 0.6))
    for name, values in arrays.items():
        assert found[name].dtype == values.dtype
        assert found[name].shape == values.shape
    assert set(np.unique(found["label"])) <= {0, 1}
    assert set(np.unique(found["weight"])) <= {0, 1}
    outside = found["weight"] == 0
    assert (found["image"][outside] == TASK.outside_value).all()
    assert (found["label"][outside] == 0).all()
    assert (found["heat_map"][outside] == 0).all()
    assert np.isfinite(found["image"]).all()


def test_all_slices_of_a_patch_move_alike():
    config = attrs.evolve(SHARP, padding_probability=0.0, zoom_z=0.0, translation_slices=0.0)
    for seed in range(4):
        for values in augment(disc(), (seed, 0), config).values():
            assert np.array_equal(values[0], values[1])
            assert np.array_equal(values[0], values[2])


def test_translations_move_the_content_by_at_most_their_millimetres():
    """A shift moves the centre of a heat map as it stands; linear interpolation leaves it exact."""
    config, moves = only(warp_probability=1.0, translation_mm=6), []
    for seed in range(30):
        found = augment(disc(), (seed, 0), config, spacing=(2.0, 1.0))
        y, x = center_of_mass(found["heat_map"])[1:]
        moves.append((2 * (y - 22), x - 17))
        np.testing.assert_allclose(found["heat_map"].sum(), disc()["heat_map"].sum(), rtol=1e-4)
    y_mm, x_mm = np.transpose(moves)
    for moved_mm in (y_mm, x_mm):
        assert np.abs(moved_mm).max() <= 6 + 1e-3
        # Even: 30 draws all within two thirds have a chance of 5e-6 for either sign.
        assert moved_mm.min() < -2
        assert moved_mm.max() > 2
    assert abs(np.corrcoef(y_mm, x_mm)[0, 1]) < 0.9


def test_slices_move_and_stretch_within_their_bounds():
    """Two lit slices: their mean says the shift, their distance the magnification."""
    lit = np.zeros((21, 2, 3), np.float32)
    lit[[7, 13]] = 1.0
    arrays = {
        "image": lit[..., None],
        "label": lit.astype(np.uint8),
        "weight": np.ones(lit.shape, np.float32),
        "heat_map": lit,
    }
    config = only(warp_probability=1.0, zoom_z=0.5, translation_slices=3)
    shifts, factors = [], []
    for seed in range(30):
        found = augment(arrays, (seed, 0), config)["heat_map"]
        np.testing.assert_array_equal(found, np.broadcast_to(found[:, :1, :1], found.shape))
        centre = center_of_mass(found[:, 0, 0])[0]
        below = np.where(np.arange(21) < centre, found[:, 0, 0], 0)
        above = found[:, 0, 0] - below
        shifts.append(centre - 10)
        factors.append((center_of_mass(above)[0] - center_of_mass(below)[0]) / 6)
    # A slice's place is known to half a slice: of a lit one that shrinks, one sample may be left.
    assert max(np.abs(shifts)) <= 3 + 0.5
    assert min(shifts) < -1
    assert max(shifts) > 1
    assert 1 / 1.5 - 1 / 6 <= min(factors) < 0.9
    assert 1.1 < max(factors) <= 1.5 + 1 / 6


def test_a_seed_repeats_itself_and_others_differ():
    arrays = disc()
    first, again, other = (augment(arrays, seed, EVERYTHING) for seed in ((1, 2), (1, 2), (1, 3)))
    for name in arrays:
        assert first[name].tobytes() == again[name].tobytes()
        assert first[name].tobytes() != other[name].tobytes()


def test_a_share_of_the_patches_is_warped_by_the_chance():
    config = only(warp_probability=0.3, rotation_degrees=20, zoom=0.2, elastic_mm=4)
    arrays = disc()
    moved = [
        augment(arrays, (seed, 0), config)["image"].tobytes() != arrays["image"].tobytes()
        for seed in range(200)
    ]
    # Binomial: 0.3 +- three standard deviations of 0.032.
    assert 0.2 < np.mean(moved) < 0.4


def test_intensities_change_within_their_bounds_and_labels_stay():
    arrays = patch() | {"image": np.linspace(-200, 250, 48, dtype=np.float32).reshape(2, 4, 6, 1)}
    arrays["weight"] = np.ones((2, 4, 6), np.float32)
    slopes = []
    for seed in range(20):
        found = augment(arrays, (seed, 0), only(intensity_shift=0.1, intensity_scale=0.2))
        slope, offset = np.polyfit(arrays["image"].ravel() - 25, found["image"].ravel() - 25, 1)
        assert 0.8 - 1e-4 <= slope <= 1.2 + 1e-4
        assert abs(offset) <= 45 + 1e-2
        assert np.array_equal(found["label"], arrays["label"])
        slopes.append(slope)
    assert np.std(slopes) > 0.05


def test_noise_is_scaled_in_hounsfield_units_and_spares_padding():
    shape = (4, 64, 64)
    weight = np.ones(shape, np.float32)
    weight[3] = 0
    arrays = {
        "image": np.where(weight, 40, -1024).astype(np.float32)[..., None],
        "label": np.zeros(shape, np.uint8),
        "weight": weight,
    }
    deviations = []
    for seed in range(30):
        found = augment(arrays, (seed, 0), only(intensity_noise=0.1))["image"][..., 0]
        assert (found[3] == -1024).all()
        assert abs(found[:3].mean() - 40) < 2
        deviations.append(found[:3].std())
    # Uniform from 0 to a tenth of the 450 HU wide window.
    assert 0 <= min(deviations) < 10
    assert 35 < max(deviations) < 45.5


def test_gamma_keeps_the_ends_and_the_outside_of_the_window():
    values = np.array([-1024, -200, -87.5, 25, 137.5, 250, 3000], np.float32)
    arrays = patch() | {"image": np.resize(values, (2, 4, 6, 1))}
    arrays["weight"] = np.ones((2, 4, 6), np.float32)
    exponents = []
    for seed in range(20):
        found = augment(arrays, (seed, 0), only(intensity_gamma=0.5))["image"].ravel()[:7]
        np.testing.assert_allclose(found[[0, 1, 5, 6]], values[[0, 1, 5, 6]], atol=0.01)
        exponent = np.log((found[3] + 200) / 450) / np.log(0.5)
        np.testing.assert_allclose(
            found[[2, 4]], -200 + 450 * np.array([0.25, 0.75]) ** exponent, rtol=1e-4
        )
        exponents.append(exponent)
    assert 1 / 1.5 - 1e-4 <= min(exponents) < 0.8
    assert 1.2 < max(exponents) <= 1.5 + 1e-4


def test_curve_bends_at_sixths_and_keeps_the_ends_and_the_outside_of_the_window():
    knots = np.linspace(-200, 250, 7)
    values = np.array([-1024, *knots, *(knots[:-1] + knots[1:]) / 2, 3000], np.float32)
    arrays = patch() | {"image": np.resize(values, (2, 4, 6, 1))}
    arrays["weight"] = np.ones((2, 4, 6), np.float32)
    displacements, swapped = [], 0
    for seed in range(40):
        found = augment(arrays, (seed, 0), only(intensity_curve=0.2))["image"].ravel()[:15]
        moved = found - values
        np.testing.assert_allclose(moved[[0, 1, 7, 14]], 0, atol=1e-4)
        np.testing.assert_allclose(moved[8:14], (moved[1:7] + moved[2:8]) / 2, atol=0.01)
        displacements.append(moved[2:7])
        swapped += (np.diff(found[1:8]) < 0).any()
    # Uniform within a fifth of the window, each knot by itself.
    assert 80 < np.abs(displacements).max() <= 90 + 1e-3
    assert 45 < np.std(displacements) < 58
    assert np.abs(np.corrcoef(np.transpose(displacements)) - np.eye(5)).max() < 0.5
    assert 0 < swapped < 40


def test_padding_ends_patches_early_like_short_volumes():
    arrays = {
        "image": np.zeros((2, 4, 6, 1), np.float32),
        "label": np.ones((2, 4, 6), np.uint8),
        "weight": np.ones((2, 4, 6), np.float32),
        "heat_map": np.ones((2, 4, 6), np.float32),
    }
    kept = set()
    for seed in range(30):
        found = augment(arrays, (seed, 0), only(padding_probability=0.5))
        assert np.array_equal(found["image"][..., 0] == TASK.outside_value, found["weight"] == 0)
        assert np.array_equal(found["label"], found["weight"])
        assert np.array_equal(found["heat_map"], found["weight"])
        kept.add(tuple(found["weight"][:, 0, 0]))
    assert kept == {(1, 1), (1, 0)}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("flip_probability", 1.5),
        ("warp_probability", -0.1),
        ("rotation_degrees", -1),
        ("rotation_degrees", float("nan")),
        ("zoom", True),
        ("elastic_mm", 8.0),
        ("translation_mm", -1.0),
        ("zoom_z", float("inf")),
        ("translation_slices", "some"),
        ("elastic_grid_mm", 16.0),
        ("intensity_gamma", "much"),
        ("intensity_curve", -0.1),
        ("intensity_scale", 1.1),
    ],
)
def test_impossible_magnitudes_are_refused_by_name(setting, value):
    with pytest.raises(SettingsError, match=setting):
        AugmentationConfig(**{setting: value})
