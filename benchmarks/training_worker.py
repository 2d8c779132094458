"""Worker (see `peers`) that prepares training steps by name and times them on request."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from benchmarks.peers import peak_memory_mib, serve

_steps = {}


def use(replicas):
    """Sets up the devices for a number of replicas."""
    from ahnet_tf.training.distribution import set_up_devices

    set_up_devices(replicas)


def prepare(name, model, training, shape_zyx):
    """Builds a network and its step; returns the seconds that the first two steps take."""
    import tensorflow as tf

    from ahnet_tf.config import ModelConfig, TrainingConfig
    from ahnet_tf.networks import build_network
    from ahnet_tf.networks.factory import precision
    from ahnet_tf.training.distribution import training_strategy
    from ahnet_tf.training.optimizer import WeightAverage, make_optimizer
    from ahnet_tf.training.train_step import make_train_step
    from preprocessing.settings import from_dict

    model_config, config = from_dict(ModelConfig, model), from_dict(TrainingConfig, training)
    strategy = training_strategy(config.replicas)
    with strategy.scope(), precision(config.precision):
        network = build_network(model_config, seed=0)
    optimizer = make_optimizer(strategy, network, config)
    average = None
    if config.ema_momentum:
        average = WeightAverage(strategy, network, config.ema_momentum)
    step = make_train_step(strategy, network, optimizer, model_config, config, average)
    rng = np.random.default_rng(0)
    share = (config.batch_size // strategy.num_replicas_in_sync, *shape_zyx)
    own = {
        "image": rng.integers(-200, 250, (*share, 1)).astype(np.float32),
        "label": rng.integers(0, model_config.classes, share).astype(np.uint8),
        "weight": np.ones(share, np.float32),
    }
    batch = {
        key: strategy.experimental_distribute_values_from_function(
            lambda _, values=values: tf.constant(values)
        )
        for key, values in own.items()
    }
    _steps[name] = lambda: float(step(batch)[0])
    began = time.perf_counter()
    _steps[name]()
    _steps[name]()
    return time.perf_counter() - began


def take(name):
    """Returns the seconds of one prepared step."""
    began = time.perf_counter()
    _steps[name]()
    return time.perf_counter() - began


def loop(folder, eval_folder, task, model, training, output):
    """Trains as the command does; returns the rows of its history, and the peak memory in MiB."""
    from ahnet_tf.config import ModelConfig, TrainingConfig
    from ahnet_tf.data.records import find_records
    from ahnet_tf.training.logs import read_history
    from ahnet_tf.training.trainer import train_network
    from preprocessing.settings import from_dict
    from preprocessing.tasks import task_from_dict

    files = [find_records(split) for split in (folder, eval_folder)]
    configs = from_dict(ModelConfig, model), from_dict(TrainingConfig, training)
    train_network(*configs, task_from_dict(task), *files, output, progress=False)
    # The first row includes the tracing of the step.
    return read_history(Path(output) / "history.csv")[1:], peak_memory_mib()


if __name__ == "__main__":
    serve({"use": use, "prepare": prepare, "take": take, "loop": loop})
