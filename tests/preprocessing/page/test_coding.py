"""What a page carries: an invertible transform, exact labels, images within their budget."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.page import wavelet
from preprocessing.page.coding import OUTER_SLOPE, bend, code_image, code_labels

KNEES = (-200.0, 300.0)


@settings(max_examples=30, deadline=None)
@given(st.tuples(*[st.integers(1, 21)] * 3), st.integers(0, 99))
def test_transform_is_inverted(shape, seed):
    array = np.random.default_rng(seed).normal(0, 300, shape).astype(np.float32)
    restored = wavelet.inverse(wavelet.forward(array))
    np.testing.assert_allclose(restored, array, atol=0.01)


def test_smooth_volumes_have_no_detail():
    """The 9/7 wavelet has four vanishing moments: cubics leave nothing but the coarse half."""
    x = np.arange(64) / 64
    cubic = np.broadcast_to((3 * x**3 - x**2 + 2 * x)[:, None, None], (64, 4, 4))
    coefficients = wavelet.forward(cubic)
    # The first level's details, without the ends, where the mirrored signal has a corner.
    assert np.abs(coefficients[34:62]).max() < 1e-4
    assert np.abs(coefficients[:32]).max() > 1


def test_transform_is_nearly_orthonormal():
    """One step for all coefficients: noise keeps its energy, a constant that of each level."""
    noise = np.random.default_rng(0).normal(0, 1, (32, 32, 32)).astype(np.float32)
    assert np.mean(wavelet.forward(noise) ** 2) == pytest.approx(1, rel=0.15)
    # sqrt(2) along each of 3 axes and 3 levels (32, 16 and 8 are long enough).
    constant = wavelet.forward(np.ones((32, 32, 32), np.float32))
    np.testing.assert_allclose(constant[:4, :4, :4], 2**4.5, rtol=1e-4)
    assert np.abs(constant[4:]).max() < 1e-4


def test_intensities_beyond_the_knees_are_flattened():
    bent = bend(np.array([-1000, -200, 50, 300, 700], np.int16), KNEES)
    expected = [-200 - 800 * OUTER_SLOPE, -200, 50, 300, 300 + 400 * OUTER_SLOPE]
    np.testing.assert_allclose(bent, expected)


@pytest.mark.parametrize("budget", [4_000, 10_000, 25_000])
def test_budget_is_kept_and_used(budget):
    random = np.random.default_rng(0)
    z, y, x = np.indices((24, 48, 48))
    image = (100 * np.sin(x / 7) * np.cos(y / 5) + 3 * z + random.normal(0, 20, z.shape)).round()
    coded = code_image(image.astype(np.int16), KNEES, budget)
    assert 0.85 * budget < len(coded.payload) <= budget
    # Deadzone quantisation of nearly orthonormal coefficients is off by less than its step.
    assert 0 < coded.rms_error < coded.step


def test_what_fits_is_as_fine_as_eyes_can_see():
    image = np.random.default_rng(0).integers(-200, 300, (8, 16, 16)).astype(np.int16)
    coded = code_image(image, KNEES, 1_000_000)
    assert coded.step == pytest.approx((KNEES[1] - KNEES[0]) / 250)
    assert coded.rms_error < 1


def test_one_voxel_and_nothing_between_the_knees():
    coded = code_image(np.full((1, 1, 1), 3000, np.int16), KNEES, 1000)
    assert np.isnan(coded.rms_error)


def test_labels_are_exact():
    labels = np.random.default_rng(0).integers(0, 256, (5, 6, 7)).astype(np.uint8)
    changes = np.frombuffer(zlib.decompress(code_labels(labels), -15), np.uint8)
    restored = np.cumsum(changes.reshape(labels.shape), axis=0, dtype=np.uint8)
    np.testing.assert_array_equal(restored, labels)
