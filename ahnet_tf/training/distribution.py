"""Which devices of which workers share a training step, and how many threads each may use."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf

from ahnet_tf.training.stopping import keeping_handlers
from ahnet_tf.training.workers import check_replicas, workers_of
from preprocessing.errors import SettingsError

# Where the driver shows its GPUs, as nvidia0, nvidia1 and so on.
DEVICE_FILES = Path("/dev")


def set_up_devices(replicas: int) -> None:
    """Splits the CPU for `replicas` and sets threads; call before TensorFlow computes anything.

    Where TF_CONFIG describes several workers, this waits for all of them. Where TensorFlow can't use
    a GPU that is there, a line on standard error says so.

    Args:
      replicas: as in `TrainingConfig`; without a GPU the CPU becomes so many logical devices.

    Raises:
      SettingsError: TensorFlow is at work already, with another number of CPU devices; TF_CONFIG is
        damaged; or several workers and replicas.
    """
    several = workers_of().count > 1
    check_replicas(replicas)
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        _warn_of_unused_gpus()
    count = 1 if gpus else max(1, replicas)
    cpu = tf.config.list_physical_devices("CPU")[0]
    try:
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        # On a CPU two threads are fastest for one replica, and collectives of several wait on threads of
        # their own. With GPUs the threads of all cores read and augment.
        if not gpus:
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
        _strategy_of_workers()


def _warn_of_unused_gpus() -> None:
    """Says that there are GPUs; TensorFlow's own words on that are among its silenced logs."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return
    count = len(list(DEVICE_FILES.glob("nvidia[0-9]*")))
    if count:
        print(
            f"warning: TensorFlow can't use the {count} NVIDIA GPU(s) of this machine, so the CPU trains: "
            "CUDA's libraries are missing (make env GPU=1), or the driver is too old.",
            file=sys.stderr,
        )


def training_strategy(replicas: int) -> tf.distribute.Strategy:
    """Returns the strategy over the workers of TF_CONFIG, or over `replicas` devices of this process.

    Raises:
      SettingsError: see `mirrored_strategy` and `set_up_devices`.
    """
    if workers_of().count > 1:
        return _strategy_of_workers()
    return mirrored_strategy(replicas)


@functools.lru_cache(maxsize=1)
def _strategy_of_workers() -> tf.distribute.MultiWorkerMirroredStrategy:
    # Only once a process, before anything is computed: it starts the server that the others reach.
    with keeping_handlers():
        return tf.distribute.MultiWorkerMirroredStrategy(
            cluster_resolver=tf.distribute.cluster_resolver.TFConfigClusterResolver()
        )


def mirrored_strategy(replicas: int) -> tf.distribute.MirroredStrategy:
    """Returns the strategy over `replicas` devices: all GPUs if 0, the CPU where there is none.

    Raises:
      SettingsError: there are fewer devices.
    """
    kind = "GPU" if tf.config.list_logical_devices("GPU") else "CPU"
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    count = replicas or (len(devices) if kind == "GPU" else 1)
    if count > len(devices):
        raise SettingsError("replicas", f"at most the {len(devices)} {kind} devices here", replicas)
    return tf.distribute.MirroredStrategy(devices[:count])


@contextlib.contextmanager
def precision(policy: str) -> Iterator[None]:
    """Builds networks under a Keras policy, "mixed_bfloat16" for example; restores the one before."""
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(before)
