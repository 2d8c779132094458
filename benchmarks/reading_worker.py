"""Worker (see `peers`) that reads records and trains on a given number of cores."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

from benchmarks.peers import peak_memory_mib, serve


def use(cores):
    """Limits this process to some cores (None: all); returns its memory with TensorFlow, in MiB."""
    # Before TensorFlow creates its threads.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    from ahnet_tf.training.distribution import set_up_devices

    set_up_devices(1)
    return peak_memory_mib()


def read(folder, task, augmentation, batch_size, batches, start_step):
    """Reads batches as in training; returns seconds to the first and for each, and memory in MiB."""
    from ahnet_tf.config import AugmentationConfig
    from ahnet_tf.data.dataset import training_dataset
    from ahnet_tf.data.records import find_records, scan_records
    from preprocessing.tasks import task_from_dict

    files, task = find_records(folder), task_from_dict(task)
    began = time.perf_counter()
    records = scan_records(files, task).records
    scanned = time.perf_counter() - began
    dataset = training_dataset(
        files,
        task,
        batch_size=batch_size,
        seed=0,
        augment=AugmentationConfig(**augmentation) if augmentation else None,
        start_step=start_step,
        records=records,
    )
    iterator = iter(dataset)
    began = time.perf_counter()
    next(iterator)
    first = time.perf_counter() - began
    for _ in itertools.islice(iterator, batches // 8):
        pass
    began = time.perf_counter()
    for _ in itertools.islice(iterator, batches):
        pass
    return {
        "scan_seconds": scanned,
        "first_batch_seconds": first,
        "batch_seconds": (time.perf_counter() - began) / batches,
        "peak_memory_mib": peak_memory_mib(),
    }


def train(folder, eval_folder, task, model, training, output, repeats):
    """Times training steps with a batch in memory, then the training loop, which reads its batches."""

    from ahnet_tf.config import ModelConfig, TrainingConfig
    from ahnet_tf.data.dataset import training_dataset
    from ahnet_tf.data.records import find_records
    from ahnet_tf.networks import build_network
    from ahnet_tf.networks.factory import precision
    from ahnet_tf.training.distribution import training_strategy
    from ahnet_tf.training.logs import read_history
    from ahnet_tf.training.optimizer import make_optimizer
    from ahnet_tf.training.train_step import make_train_step
    from ahnet_tf.training.trainer import train_network
    from preprocessing.settings import from_dict
    from preprocessing.tasks import task_from_dict

    files, task = find_records(folder), task_from_dict(task)
    model_config, config = from_dict(ModelConfig, model), from_dict(TrainingConfig, training)
    strategy = training_strategy(1)
    with strategy.scope(), precision(config.precision):
        network = build_network(model_config, seed=0)
    step = make_train_step(
        strategy, network, make_optimizer(strategy, network, config), model_config, config
    )
    dataset = training_dataset(files, task, batch_size=config.batch_size, seed=0)
    batch = next(iter(dataset))
    alone = []
    for _ in range(2 + repeats):
        began = time.perf_counter()
        float(step(batch)[0])
        alone.append(time.perf_counter() - began)
    del network, step
    import keras

    keras.backend.clear_session()
    eval_files = find_records(eval_folder)
    train_network(model_config, config, task, files, eval_files, output, progress=False)
    # The first row includes the tracing of the step.
    return {"alone": alone[2:], "rows": read_history(Path(output) / "history.csv")[1:]}


if __name__ == "__main__":
    serve({"use": use, "read": read, "train": train})
