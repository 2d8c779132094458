"""Blocks that are computed again in the backward pass, so that a training step keeps only their inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import tensorflow as tf

from ahnet_tf.networks.ops import FeatureMap

_chosen: ContextVar[bool] = ContextVar("recompute_chosen", default=False)
_again: ContextVar[bool] = ContextVar("recompute_again", default=False)


@contextlib.contextmanager
def recompute_blocks() -> Iterator[None]:
    """Has the blocks of a network that is called inside computed again in the backward pass."""
    with _set(_chosen, True):
        yield


def computes_again() -> bool:
    """Returns whether a block is being computed for the second time: its moving averages are updated."""
    return _again.get()


def recomputed(function: Callable[[FeatureMap], FeatureMap], inputs: FeatureMap) -> FeatureMap:
    """Returns `function(inputs)`; within `recompute_blocks` its intermediate maps are not kept."""
    if not _chosen.get():
        return function(inputs)
    again = False

    def call(*pieces: tf.Tensor) -> FeatureMap:
        with _set(_chosen, False), _set(_again, again):
            return function(tf.nest.pack_sequence_as(inputs, pieces))

    outputs = tf.recompute_grad(call)(*tf.nest.flatten(inputs))
    # From now on it is the backward pass that calls.
    again = True
    return outputs


@contextlib.contextmanager
def _set(variable: ContextVar[bool], value: bool) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
