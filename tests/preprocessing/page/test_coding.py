"""Encoding of volumes: the transfer curve to 8 bits, error, exact labels."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from preprocessing.page.coding import BEND_SHARE, code_image, code_labels, to_pixels

KNEES = (-200.0, 300.0)


def smooth_image(noise):
    random = np.random.default_rng(0)
    z, y, x = np.indices((24, 48, 48))
    image = 100 * np.sin(x / 7) * np.cos(y / 5) + 3 * z + random.normal(0, noise, z.shape)
    return image.round().astype(np.int16)


def decoded(coded):
    """Decodes an image as the browser does."""
    ends = np.cumsum(coded.slice_bytes)
    slices = [
        np.asarray(Image.open(io.BytesIO(coded.payload[end - size : end])))[..., 0]
        for size, end in zip(coded.slice_bytes, ends, strict=True)
    ]
    return np.array(coded.levels)[np.array(slices)]


def test_curve_is_linear_between_the_knees_and_logarithmic_outside():
    image = np.arange(-1024, 3072, dtype=np.int16).reshape(1, 64, 64)
    pixels, levels = to_pixels(image, KNEES)
    assert (np.diff(levels) > 0).all()
    assert levels[[0, 255]] == pytest.approx([-1024, 3071], abs=0.01)
    assert (np.diff(pixels.astype(int).ravel()) >= 0).all()
    inside = levels[(levels > KNEES[0]) & (levels < KNEES[1])]
    step = inside[1] - inside[0]
    np.testing.assert_allclose(np.diff(inside), step, rtol=1e-4)
    # At a distance d the steps are 1 + d / s times as large.
    scale = BEND_SHARE * (KNEES[1] - KNEES[0])
    outside = levels[levels > KNEES[1] + 1]
    middles = (outside[1:] + outside[:-1]) / 2 - KNEES[1]
    np.testing.assert_allclose(np.diff(outside), step * (1 + middles / scale), rtol=0.01)


@pytest.mark.parametrize(("low", "high"), [(-1024, 3071), (0, 1023), (-32768, 32767)])
def test_rounding_to_8_bits_is_half_a_step_at_most(low, high):
    image = np.linspace(low, high, 4096).astype(np.int16).reshape(1, 64, 64)
    pixels, levels = to_pixels(image, KNEES)
    steps = np.maximum(np.diff(levels, prepend=levels[0]), np.diff(levels, append=levels[-1]))
    assert (np.abs(levels[pixels] - image) <= 0.51 * steps[pixels]).all()


def test_constant_image():
    pixels, levels = to_pixels(np.full((2, 3, 4), 77, np.int16), KNEES)
    np.testing.assert_allclose(levels[pixels], 77)


@pytest.mark.parametrize("noise", [0, 20])
def test_error_and_size(noise):
    image = smooth_image(noise)
    coded = code_image(image, KNEES)
    assert sum(coded.slice_bytes) == len(coded.payload) < image.size
    error = np.sqrt(np.mean(np.square(decoded(coded) - image)))
    assert coded.rms_error == pytest.approx(error, rel=0.01)
    assert error < 8


def test_one_voxel_and_nothing_between_the_knees():
    coded = code_image(np.full((1, 1, 1), 3000, np.int16), KNEES)
    assert np.isnan(coded.rms_error)
    assert decoded(coded) == pytest.approx(3000, abs=1)


def test_labels_are_exact():
    labels = np.random.default_rng(0).integers(0, 256, (5, 6, 7)).astype(np.uint8)
    restored = np.frombuffer(zlib.decompress(code_labels(labels.T), -15), np.uint8)
    np.testing.assert_array_equal(restored.reshape(7, 6, 5), labels.T)
