"""Several worker processes of one training: who they are (TF_CONFIG), and what they agree on."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from preprocessing.errors import ModelError, SettingsError

if TYPE_CHECKING:
    import tensorflow as tf

_EXAMPLE = (
    'For example {"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
    '"task": {"type": "worker", "index": 0}}, with another index on each.'
)


@dataclass(frozen=True)
class Workers:
    """The processes that train together, and which of them this one is.

    Attributes:
      count: number of processes; 1 for a training by itself.
      index: of this process; 0 is the chief, which alone writes into the run's folder.
    """

    count: int = 1
    index: int = 0

    @property
    def chief(self) -> bool:
        """Whether this process writes what the training leaves."""
        return self.index == 0


def workers_of(environment: Mapping[str, str] = os.environ) -> Workers:
    """Returns the workers that the variable TF_CONFIG describes; one where it is not set.

    Raises:
      SettingsError: TF_CONFIG is no JSON, or names no such task; parameter servers are not supported.
    """
    text = environment.get("TF_CONFIG", "")
    if not text.strip():
        return Workers()
    try:
        content = json.loads(text)
        cluster = {kind: list(tasks) for kind, tasks in content.get("cluster", {}).items()}
        task = content.get("task", {})
        kind, number = task.get("type", "worker"), int(task.get("index", 0))
    except (ValueError, AttributeError, TypeError) as error:
        raise SettingsError("TF_CONFIG", "JSON with cluster and task", error, _EXAMPLE) from None
    others = sorted(set(cluster) - {"chief", "worker"})
    if others:
        raise SettingsError("TF_CONFIG", "tasks chief and worker", ", ".join(others), _EXAMPLE)
    tasks = [(name, i) for name in ("chief", "worker") for i in range(len(cluster.get(name, ())))]
    if len(cluster.get("chief", ())) > 1:
        raise SettingsError("TF_CONFIG", "one chief at most", len(cluster["chief"]), _EXAMPLE)
    if len(tasks) < 2:
        return Workers()
    if (kind, number) not in tasks:
        expected = f"a task of its cluster ({len(tasks)} processes)"
        raise SettingsError("TF_CONFIG", expected, f"{kind} {number}", _EXAMPLE)
    return Workers(len(tasks), tasks.index((kind, number)))


def check_replicas(replicas: int) -> None:
    """Refuses a number of replicas where TF_CONFIG describes several workers.

    Raises:
      SettingsError: there are both, or TF_CONFIG is damaged.
    """
    if replicas and workers_of().count > 1:
        expected = "0 with several workers, each of which uses all its GPUs or its CPU"
        raise SettingsError("replicas", expected, replicas)


def check_alone(what: str) -> None:
    """Refuses what one process does by itself where TF_CONFIG describes several workers.

    Raises:
      SettingsError: it does, or it is damaged.
    """
    workers = workers_of()
    if workers.count > 1:
        remedy = "Do it without TF_CONFIG, in a run of its own."
        raise SettingsError(what, "one process", f"{workers.count} workers in TF_CONFIG", remedy)


def sum_over_workers(strategy: tf.distribute.Strategy, values: np.ndarray) -> np.ndarray:
    """Returns the sum over all workers of each one's `values` [...], int64; waits for them all."""
    # Settings are checked without TensorFlow.
    import tensorflow as tf

    workers = workers_of()
    values = np.asarray(values, np.int64)
    if workers.count == 1:
        return values
    local = strategy.num_replicas_in_sync // workers.count

    def contribution(context: tf.distribute.ReplicaContext) -> tf.Tensor:
        # One replica of each worker speaks for it.
        first = context.replica_id_in_sync_group % local == 0
        return tf.constant(values if first else np.zeros_like(values))

    shared = strategy.experimental_distribute_values_from_function(contribution)
    return strategy.reduce(tf.distribute.ReduceOp.SUM, shared, axis=None).numpy()


@contextlib.contextmanager
def losing_no_worker(output: Path, workers: Workers) -> Iterator[None]:
    """Turns what TensorFlow says when another worker is gone into one clear error.

    Raises:
      ModelError: the connection to another worker broke.
    """
    import tensorflow as tf

    lost = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError)
    try:
        yield
    except (*lost, tf.errors.InternalError) as error:
        if workers.count == 1:
            raise
        raise ModelError(
            f"{output}, worker {workers.index} of {workers.count}",
            "all workers at work",
            str(error.message).split("\n")[0],
            "Start all of them again: they go on from the last checkpoint.",
        ) from None
