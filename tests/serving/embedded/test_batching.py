"""Requests that wait together run together, and each gets its own answer."""

from __future__ import annotations

import concurrent.futures
import threading
import time
import weakref

import grpc
import numpy as np
import pytest

from serving.embedded.batching import Batcher, BatchSettings
from serving.embedded.loaded_model import CheckedRequest, load_model
from serving.protocol import RefusedError


@pytest.fixture(scope="module")
def model(models):
    return load_model(models / "1", 1)


def call(array, signature="predict_windows", windows=None):
    outputs = ["label"] if signature.startswith("segment") else ["probabilities"]
    return CheckedRequest(signature, {"image": array}, outputs, windows or len(array))


def ask(batcher, model, one, timeout_s=300.0, is_wanted=lambda: True):
    return batcher.run(model, one, timeout_s=timeout_s, is_wanted=is_wanted)


class Blocker:
    """Holds the batcher's only thread until it is released."""

    def __init__(self, batcher, model):
        self.released = threading.Event()
        self.held = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        array = np.zeros((1, 1, 1, 1, 1), np.float32)
        self.future = self._pool.submit(
            ask, batcher, model, call(array, "segment"), 300.0, self._wait
        )
        assert self.held.wait(300)

    def _wait(self):
        self.held.set()
        return self.released.wait(300)


def test_waiting_requests_are_merged_and_taken_apart(model, linear_probabilities):
    sizes = []
    batcher = Batcher(BatchSettings(max_windows=4), sizes.append)
    blocker = Blocker(batcher, model)
    generator = np.random.default_rng(0)
    arrays = [
        generator.integers(-1000, 1000, (count, 2, 3, x, 1)).astype(np.float32)
        for count, x in ((1, 4), (2, 4), (1, 5), (1, 4), (3, 4))
    ]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        futures = []
        for array in arrays:
            futures.append(pool.submit(ask, batcher, model, call(array)))
            while batcher.depth < len(futures):
                time.sleep(0.001)
        blocker.released.set()
        for array, future in zip(arrays, futures, strict=True):
            expected = linear_probabilities(array, 1.0)
            np.testing.assert_allclose(future.result()["probabilities"], expected, atol=1e-5)
    batcher.close()
    # 1 + 2 + 1 windows of one size; the other size; the 3 that found no room.
    assert sizes == [1, 3, 1, 1]


def test_one_request_does_not_spoil_the_others(model, linear_probabilities):
    batcher = Batcher(BatchSettings(max_windows=8))
    blocker = Blocker(batcher, model)
    good = np.zeros((1, 1, 2, 2, 1), np.float32)

    def examples(content):
        array = np.array([content], object)
        return CheckedRequest("serialized_examples", {"examples": array}, ["counts"], 1)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        bad = [pool.submit(ask, batcher, model, examples(b"no example")) for _ in range(2)]
        fine = pool.submit(ask, batcher, model, call(good))
        while batcher.depth < 3:
            time.sleep(0.001)
        blocker.released.set()
        for future in bad:
            with pytest.raises(RefusedError) as caught:
                future.result()
            assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
        np.testing.assert_allclose(
            fine.result()["probabilities"], linear_probabilities(good, 1.0), atol=1e-6
        )
    batcher.close()


def test_requests_nobody_waits_for_are_not_run(model):
    sizes = []
    batcher = Batcher(BatchSettings(), sizes.append)
    blocker = Blocker(batcher, model)
    array = np.zeros((1, 1, 2, 2, 1), np.float32)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        gone = pool.submit(ask, batcher, model, call(array), 300.0, lambda: False)
        late = pool.submit(ask, batcher, model, call(array, "segment"), 0.05)
        with pytest.raises(RefusedError) as caught:
            late.result()
        assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
        blocker.released.set()
        with pytest.raises(RefusedError) as caught:
            gone.result()
        assert caught.value.code == grpc.StatusCode.CANCELLED
    batcher.close()
    assert sizes == [1]


def test_queue_is_bounded_whatever_the_deadlines(model):
    """Calls whose deadlines pass while a prediction runs leave nothing behind in the queue."""
    batcher = Batcher(BatchSettings(running=1, waiting=2))
    blocker = Blocker(batcher, model)
    depths, arrays = [], []

    def ask_in_vain():
        array = np.zeros((1, 1, 2, 2, 1), np.float32)
        arrays.append(weakref.ref(array))
        with batcher.place():
            ask(batcher, model, call(array), 0.005)

    threads = threading.active_count()
    for _ in range(300):
        with pytest.raises(RefusedError) as caught:
            ask_in_vain()
        assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
        del caught
        depths.append(batcher.depth)
    assert max(depths) <= 2
    assert threading.active_count() <= threads
    # Nor are the requests kept anywhere else.
    assert sum(reference() is not None for reference in arrays) <= 1
    blocker.released.set()
    array = np.zeros((1, 1, 2, 2, 1), np.float32)
    assert ask(batcher, model, call(array, "segment"))["label"].shape == (1, 1, 2, 2)
    batcher.close()


def test_closing_refuses_what_waits(model):
    batcher = Batcher(BatchSettings())
    blocker = Blocker(batcher, model)
    array = np.zeros((1, 1, 2, 2, 1), np.float32)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(ask, batcher, model, call(array))
        while batcher.depth < 1:
            time.sleep(0.001)
        closing = pool.submit(batcher.close)
        time.sleep(0.05)
        blocker.released.set()
        closing.result(300)
        with pytest.raises(RefusedError) as caught:
            waiting.result()
        assert caught.value.code == grpc.StatusCode.UNAVAILABLE
    assert blocker.future.result()["label"].shape == (1, 1, 1, 1)
