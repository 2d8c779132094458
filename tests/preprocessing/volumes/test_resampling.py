"""Resampling: agreement with SciPy, independence of slab sizes, and memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from preprocessing.volumes import resampling
from preprocessing.volumes.resampling import linear, nearest, to_dtype

FLOAT = np.dtype(np.float32)


def by_scipy(array, spacing, new_shape, new_spacing, order):
    """Resamples the whole volume at once, at the position of each new voxel."""
    steps = np.divide(new_spacing, spacing)
    if order == 1:
        sigma = np.maximum(0, (steps - 1) / 2)
        array = ndimage.gaussian_filter(array.astype(float), sigma, mode="nearest", truncate=3.0)
    places = [
        (np.arange(new) - (new - 1) / 2) * step + (old - 1) / 2
        for new, step, old in zip(new_shape, steps, array.shape, strict=True)
    ]
    grid = np.meshgrid(*places, indexing="ij")
    return ndimage.map_coordinates(array, grid, order=order, mode="nearest")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_agrees_with_scipy_on_the_whole_volume(data):
    sizes, spacings = st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.floats(0.3, 5.0)] * 3)
    grid = (data.draw(spacings), data.draw(sizes), data.draw(spacings))
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    array = random.integers(-1000, 1000, data.draw(sizes), np.int16)
    np.testing.assert_allclose(linear(array, *grid, FLOAT), by_scipy(array, *grid, 1), atol=2e-3)
    picked = nearest(array, *grid)
    assert picked.dtype == array.dtype
    places = [
        np.abs(((np.arange(new) - (new - 1) / 2) * b / a + (old - 1) / 2) % 1 - 0.5).min()
        for old, a, new, b in zip(array.shape, *grid, strict=True)
    ]
    if min(places) > 1e-6:  # halfway between two voxels either is nearest
        assert np.array_equal(picked, by_scipy(array, *grid, 0))


def test_same_size_at_another_spacing_is_resampled():
    ramp = np.arange(9, dtype=np.int16).reshape(1, 1, 9) * 100
    result = linear(ramp, (1, 1, 1), (1, 1, 9), (1, 1, 0.95), FLOAT)
    assert result[0, 0].tolist() == pytest.approx([20, 115, 210, 305, 400, 495, 590, 685, 780])


def test_result_does_not_depend_on_slabs(monkeypatch):
    array = np.random.default_rng(0).integers(-1000, 1000, (17, 8, 9), np.int16)
    for shape, spacing in (
        ((40, 12, 12), (1, 1, 1)),
        ((5, 4, 4), (7, 5, 5)),
        ((17, 4, 4), (2, 4, 4)),
    ):
        grid = ((2.0, 2.0, 2.0), shape, spacing)
        results = []
        for voxels in (2**22, 60, 1):
            monkeypatch.setattr(resampling, "SLAB_VOXELS", voxels)
            results.append(linear(array, *grid, np.dtype(np.int16)))
        assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()


def test_memory_is_the_result_and_some_slabs(monkeypatch):
    monkeypatch.setattr(resampling, "SLAB_VOXELS", 2**16)

    def beside_result(slices, new_slices):
        array = np.ones((slices, 64, 64), np.int16)
        tracemalloc.start()
        result = linear(
            array, (5, 1, 1), (new_slices, 128, 128), (2.5, 0.5, 0.5), np.dtype(np.int16)
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak - result.nbytes

    few, many = beside_result(30, 60), beside_result(300, 600)
    # Ten times the volume, 20 MB: only the operators' 600 x 300 numbers are added.
    assert many - few < 4e6
    assert few < 12 * 2**16 * 4


def test_rounding_and_clipping_without_a_copy_where_none_is_needed():
    array = np.array([[[-40000.0, -0.6, 2.5, 40000.0]]])
    assert to_dtype(array, np.dtype(np.int16)).ravel().tolist() == [-32768, -1, 2, 32767]
    stored = np.zeros((2, 2, 2), np.int16)
    assert to_dtype(stored, np.dtype(np.int16)) is stored
    assert linear(stored, (1, 1, 1), (2, 2, 2), (1, 1, 1), np.dtype(np.int16)) is stored
    assert nearest(stored, (1, 1, 1), (2, 2, 2), (1, 1, 1)) is stored
