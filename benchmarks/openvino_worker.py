"""This project's OpenVINO back end as a worker (see `peers`), without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ahnet_tf.inference.predictor import open_predictor
from ahnet_tf.inference.sliding_window import most_probable, predict_slabs
from benchmarks.peers import peak_memory_mib, serve, shared_memory_mib, timed

STATE = {}


def label_map(
    raw: np.ndarray, predict: Callable, window: tuple[int, int, int], classes: int, overlap: float
) -> np.ndarray:
    """Returns the label values [z, y, x] of a volume [z, y, x], predicted as the command does."""
    labels = np.empty(raw.shape, np.uint8)
    slabs = predict_slabs(raw, predict, tuple(window), classes, overlap=overlap)
    for z, probabilities in slabs:
        labels[z : z + len(probabilities)] = most_probable(probabilities)
    return labels


def load(checkpoint, precision, threads):
    """Opens a checkpoint on a number of cores: the back end takes all that its process may use."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    STATE["predictor"] = open_predictor(checkpoint, backend="openvino", precision=precision)


def prepare(shape):
    """Sets up a forward pass on noise of shape [batch, z, y, x, channel]."""
    image = np.random.default_rng(0).normal(0, 200, shape).astype(np.float32)
    STATE["step"] = lambda: STATE["predictor"].predict(image)


def prepare_prediction(volume, window, overlap, classes):
    """Sets up a whole volume's prediction from an .npy [z, y, x] to label values on the same grid."""
    raw, predict = np.load(volume), STATE["predictor"].predict
    STATE["window"] = lambda: predict(np.zeros((1, *window, 1), np.int16))
    STATE["step"] = lambda: label_map(raw, predict, window, classes, overlap)


def memory_mib() -> float:
    """Returns the peak memory of this process and of the one in which OpenVINO computes, in MiB.

    What both share, windows and probabilities, counts once.
    """
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return peak_memory_mib() + sum(map(peak_memory_mib, children)) - shared_memory_mib()


def once_window():
    """Predicts one window twice; returns as `once` does."""
    STATE["window"]()
    return timed(STATE["window"], memory_mib)


def once():
    """Runs what was prepared; returns the seconds it took and the peak memory in MiB."""
    return timed(STATE["step"], memory_mib)


if __name__ == "__main__":
    serve(
        {
            "load": load,
            "prepare": prepare,
            "prepare_prediction": prepare_prediction,
            "once_window": once_window,
            "once": once,
        }
    )
