"""Sliding window: exact cover, blending against a plain reference, memory, refused settings."""

import itertools
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ahnet_tf.inference.sliding_window import most_probable, predict_slabs, window_starts
from preprocessing.errors import ModelError, SettingsError

sizes = st.tuples(*[st.integers(1, 13)] * 3)
windows = st.tuples(*[st.integers(1, 6)] * 3)
overlaps = st.floats(0, 0.95)


def stitched(array, predict, window, classes, **options):
    slabs = [
        (start, slab.copy())
        for start, slab in predict_slabs(array, predict, window, classes, **options)
    ]
    ends = [0] + [start + len(slab) for start, slab in slabs]
    assert [start for start, _ in slabs] == ends[:-1]
    return np.concatenate([slab for _, slab in slabs])


@given(sizes, windows, overlaps)
@settings(deadline=None, max_examples=60)
def test_windows_cover_every_voxel_and_stay_inside(shape, window, overlap):
    axes = window_starts(shape, window, overlap)
    for size, length, starts in zip(shape, window, axes, strict=True):
        assert starts[0] == 0
        assert starts[-1] == max(0, size - length)
        steps = np.diff(starts)
        assert (steps >= 1).all()
        assert (steps <= max(1, length * (1 - overlap) + 1e-6)).all()


def test_window_starts_by_hand():
    # 10 voxels by windows of 4 at 50 %: steps of 2 from 0 to 6.
    assert window_starts((10, 4, 3), (4, 4, 4), 0.5) == [(0, 2, 4, 6), (0,), (0,)]
    # Without overlap 10 voxels need three windows of 4, evenly spaced.
    assert window_starts((10, 8, 1), (4, 4, 4), 0.0) == [(0, 3, 6), (0, 4), (0,)]


@given(sizes, windows, overlaps, st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_constant_predictor_gives_constant_volume(shape, window, overlap, batch_size):
    answer = np.array([0.1, 0.7, 0.2], np.float32)

    def predict(batch):
        assert batch.shape[1:] == (*window, 1)
        assert len(batch) <= batch_size
        return np.broadcast_to(answer, (*batch.shape[:-1], 3))

    volume = np.zeros(shape, np.int16)
    result = stitched(volume, predict, window, 3, overlap=overlap, batch_size=batch_size)
    assert result.dtype == np.float32
    assert result.shape == (*shape, 3)
    np.testing.assert_allclose(result, np.broadcast_to(answer, result.shape), rtol=2e-6)


@given(sizes, windows, overlaps)
@settings(deadline=None, max_examples=30)
def test_voxelwise_predictor_is_reproduced_at_its_voxel(shape, window, overlap):
    volume = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def predict(batch):
        return np.concatenate([batch, 1 - batch], axis=-1)

    result = stitched(volume, predict, window, 2, overlap=overlap, outside_value=0)
    np.testing.assert_allclose(result[..., 0], volume, rtol=1e-5, atol=1e-6)


def test_blending_equals_a_plain_weighted_mean():
    """Every window is predicted as its own random field; compared with float64 sums over volumes."""
    shape, window = (9, 7, 8), (4, 3, 5)
    corners = list(itertools.product(*window_starts(shape, window, 0.4)))
    fields = np.random.default_rng(1).random((len(corners), *window, 2)).astype(np.float32)
    axes = [np.arange(n) - (n - 1) / 2 for n in window]
    z, y, x = (np.exp(-(a**2) / (2 * (n / 8) ** 2)) for a, n in zip(axes, window, strict=True))
    weight = z[:, None, None] * y[:, None] * x
    top, bottom = np.zeros((*shape, 2)), np.zeros((*shape, 1))
    for field, (z, y, x) in zip(fields, corners, strict=True):
        box = (slice(z, z + 4), slice(y, y + 3), slice(x, x + 5))
        top[box] += field * weight[..., None]
        bottom[box] += weight[..., None]
    answers = iter(fields)

    def predict(batch):
        return np.stack([next(answers) for _ in batch])

    seen = []
    result = stitched(
        np.zeros(shape), predict, window, 2,
        overlap=0.4, batch_size=7, progress=lambda *windows: seen.append(windows),
    )  # fmt: skip
    np.testing.assert_allclose(result, top / bottom, rtol=1e-5)
    assert sum(done for done, _ in seen) == len(corners)
    assert max(done for done, _ in seen) == 7
    assert {total for _, total in seen} == {len(corners)}


def test_voxels_beyond_the_volume_have_the_outside_value():
    batches = []

    def predict(batch):
        batches.append(batch.copy())
        return np.ones((*batch.shape[:-1], 2), np.float32)

    volume = np.full((2, 3, 2), 40, np.int16)
    assert stitched(volume, predict, (4, 4, 4), 2).shape == (2, 3, 2, 2)
    (batch,) = batches
    assert batch.dtype == np.int16
    assert (batch[0, :2, :3, :2] == 40).all()
    assert (batch == -1024).sum() == 64 - 12


def test_slabs_bound_the_memory():
    """No slab of a long volume is deeper than a window."""
    volume = np.zeros((200, 4, 4), np.int16)

    def predict(batch):
        return np.ones((*batch.shape[:-1], 2), np.float32)

    depths = [len(slab) for _, slab in predict_slabs(volume, predict, (8, 4, 4), 2, overlap=0.5)]
    assert sum(depths) == 200
    assert max(depths) <= 8


@pytest.mark.slow
def test_memory_is_a_slab_and_not_the_volume():
    """Ten times the slices take no more; the slab has 16 MiB, a window 1 MiB."""
    peaks = []
    for slices in (64, 640):
        volume = np.zeros((slices, 128, 128), np.int16)
        answer = np.full((1, 32, 32, 32, 8), 0.125, np.float32)
        tracemalloc.start()
        for _ in predict_slabs(volume, lambda batch, a=answer: a, (32, 32, 32), 8, overlap=0.5):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    assert peaks[0] < 16 + 4
    assert abs(peaks[1] - peaks[0]) < 1


def test_channels_are_passed_on():
    volume = np.random.default_rng(2).random((5, 4, 3, 2)).astype(np.float32)
    result = stitched(volume, lambda batch: batch, (2, 2, 2), 2, overlap=0.5)
    np.testing.assert_allclose(result, volume, rtol=1e-5)


def test_labels_are_the_most_probable_class():
    probabilities = np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2], [0.1, 0.2, 0.7]])
    np.testing.assert_array_equal(most_probable(probabilities[None, None]), [[[1, 0, 2]]])
    volume = np.array([[[0, 1, 2, 1, 0]]], np.int16)
    labels = most_probable(stitched(volume, lambda b: np.eye(3)[b[..., 0]], (1, 1, 2), 3))
    np.testing.assert_array_equal(labels, volume)
    assert labels.dtype == np.uint8


def test_refusals():
    volume = np.zeros((4, 4, 4), np.int16)

    def run(predict=lambda b: np.repeat(b, 2, -1), window=(2, 2, 2), **options):
        return list(predict_slabs(volume, predict, window, 2, **options))

    for options in (
        {"overlap": 1.0},
        {"overlap": -0.1},
        {"batch_size": 0},
        {"window": (0, 2, 2)},
    ):
        with pytest.raises(SettingsError):
            run(**options)
    with pytest.raises(ModelError, match="shape"):
        run(predict=lambda batch: batch)
    with pytest.raises(ModelError, match="NaN"):
        run(predict=lambda batch: np.full((*batch.shape[:-1], 2), np.nan))


def test_the_next_window_is_computed_while_one_is_blended():
    begun = [threading.Event() for _ in range(3)]
    order = iter(begun)

    def predict(batch):
        next(order).set()
        return np.ones((*batch.shape[:-1], 2), np.float32)

    # Called once a window is blended: the next one must be in progress by then.
    blended = iter([*begun[1:], begun[-1]])

    def progress(*_):
        assert next(blended).wait(10)

    stitched(np.zeros((6, 2, 2)), predict, (2, 2, 2), 2, overlap=0, progress=progress)
    assert all(event.is_set() for event in begun)


def test_a_failing_predictor_is_not_called_again():
    asked = []

    def predict(batch):
        asked.append(len(batch))
        raise ModelError("the server", "an answer", "none")

    with pytest.raises(ModelError, match="answer"):
        stitched(np.zeros((6, 2, 2)), predict, (2, 2, 2), 2)
    assert asked == [1]
