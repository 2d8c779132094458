"""Devices and worker processes that share a training step: TF_CONFIG, threads, the strategy."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from preprocessing.errors import ModelError, SettingsError

# Holds nvidia0, nvidia1 and so on, one for each GPU of the driver.
DEVICE_FILES = Path("/dev")
# The parameter of glibc's mallopt.
_M_ARENA_MAX = -8

_EXAMPLE = (
    'For example {"cluster": {"worker": ["host1:2222", "host2:2222"]}, '
    '"task": {"type": "worker", "index": 0}}, with another index on each.'
)


@dataclass(frozen=True)
class Workers:
    """Number of the processes that train together, 1 without TF_CONFIG, and the index of this one."""

    count: int = 1
    index: int = 0

    @property
    def chief(self) -> bool:
        """Whether this process is the one that writes into the run's folder."""
        return self.index == 0


def workers_of(environment: Mapping[str, str] = os.environ) -> Workers:
    """Returns the workers that the variable TF_CONFIG describes; one if it is not set.

    Raises SettingsError if it is not JSON or names no such task; parameter servers are not
    supported.
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


def check_alone(what: str) -> None:
    """Raises SettingsError if TF_CONFIG describes several workers, or is damaged; `what` needs one."""
    workers = workers_of()
    if workers.count > 1:
        remedy = "Run it without TF_CONFIG."
        raise SettingsError(what, "one process", f"{workers.count} workers in TF_CONFIG", remedy)


def set_up_devices(replicas: int) -> None:
    """Sets logical CPU devices and threads; call before TensorFlow computes anything.

    Without a GPU the CPU is split into `replicas` logical devices (see `TrainingConfig`).
    With several workers in TF_CONFIG it waits for all of them. GPUs that TensorFlow can't use are
    reported on standard error. Raises SettingsError if TensorFlow is initialised already with fewer
    CPU devices, if TF_CONFIG is damaged, or for several workers and replicas.
    """
    several = workers_of().count > 1
    if several and replicas:
        expected = "0 with several workers, each of which uses all its GPUs or its CPU"
        raise SettingsError("replicas", expected, replicas)
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        _warn_of_unused_gpus()
    count = 1 if gpus else max(1, replicas)
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        # On a CPU two threads are fastest for one replica, and collectives of several replicas wait on
        # threads of their own. With GPUs the threads of all cores read and augment.
        if not gpus:
            share_one_arena()
            tf.config.threading.set_inter_op_parallelism_threads(2 if count == 1 else 4 * count)
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * count
        )
    except RuntimeError:
        found = len(tf.config.list_logical_devices("CPU"))
        if not gpus and found < count:
            raise SettingsError(
                "replicas",
                f"at most the {found} CPU devices that this process began with",
                replicas,
                "Call set_up_devices before TensorFlow computes anything.",
            ) from None
    if several:
        _multi_worker_strategy()


def share_one_arena() -> None:
    """Limits glibc's malloc to one arena: threads then reuse memory that other threads have freed.

    Does nothing with other C libraries. `benchmarks.network` measures a training step with it.
    """
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def training_strategy(replicas: int) -> tf.distribute.Strategy:
    """Returns the strategy over the workers of TF_CONFIG, or over `replicas` devices of this process.

    0 replicas are all GPUs, or one CPU if there are none. Raises SettingsError if there are fewer
    devices, and as `set_up_devices` does.
    """
    if workers_of().count > 1:
        return _multi_worker_strategy()
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    count = replicas or (len(devices) if kind == "GPU" else 1)
    if count > len(devices):
        raise SettingsError("replicas", f"at most the {len(devices)} {kind} devices here", replicas)
    return tf.distribute.MirroredStrategy(devices[:count])


def sum_over_workers(
    strategy: tf.distribute.Strategy, values: np.ndarray | list[int]
) -> np.ndarray:
    """Returns the sum of `values` [...] over all workers, int64; waits for all of them."""
    workers = workers_of()
    own = np.asarray(values, np.int64)
    if workers.count == 1:
        return own
    local = strategy.num_replicas_in_sync // workers.count

    def contribution(context: tf.distribute.ReplicaContext) -> tf.Tensor:
        # The first replica of each worker contributes its values, the others zeros.
        first = context.replica_id_in_sync_group % local == 0
        return tf.constant(own if first else np.zeros_like(own))

    shared = strategy.experimental_distribute_values_from_function(contribution)
    return strategy.reduce(tf.distribute.ReduceOp.SUM, shared, axis=None).numpy()


@contextlib.contextmanager
def translate_worker_errors(output: Path, workers: Workers) -> Iterator[None]:
    """Raises ModelError if the connection to another worker breaks."""
    lost = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError)
    try:
        yield
    except (*lost, tf.errors.InternalError) as error:
        if workers.count == 1:
            raise
        raise ModelError(
            f"{output}, worker {workers.index} of {workers.count}",
            "all workers running",
            str(error.message).split("\n")[0],
            "Start all of them again to resume from the last checkpoint.",
        ) from None


@functools.lru_cache(maxsize=1)
def _multi_worker_strategy() -> tf.distribute.MultiWorkerMirroredStrategy:
    # Once a process, before anything is computed: it starts the server that the others connect to.
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(
            cluster_resolver=tf.distribute.cluster_resolver.TFConfigClusterResolver()
        )
    finally:
        # It also replaces the handler of SIGTERM, unknown to Python, by one that ignores the signal.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.getsignal(number))


def _warn_of_unused_gpus() -> None:
    # TensorFlow's own warning is among its silenced logs.
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return
    count = len(list(DEVICE_FILES.glob("nvidia[0-9]*")))
    if count:
        print(
            f"warning: TensorFlow can't use the {count} NVIDIA GPU(s) of this machine, so the CPU "
            "trains: CUDA's libraries are missing (make env GPU=1), or the driver is too old.",
            file=sys.stderr,
        )
