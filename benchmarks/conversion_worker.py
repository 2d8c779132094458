"""This project's conversion as a benchmark worker: one case, a whole job, and the cost of records."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import tensorflow as tf
from isal import igzip

from benchmarks.peers import peak_memory_mib, serve
from preprocessing.convert import convert
from preprocessing.datasets.case import Case
from preprocessing.quiet_start import quiet_frameworks
from preprocessing.records.case_conversion import ConversionSettings, convert_case
from preprocessing.records.schema import parse_example
from preprocessing.tasks import load_task

CHUNK = 2**18


def prepare(cores):
    """Pins this process and its children to some cores; returns its memory in MiB."""
    os.sched_setaffinity(0, cores)
    tf.config.threading.set_intra_op_parallelism_threads(len(cores))
    tf.config.threading.set_inter_op_parallelism_threads(len(cores))
    return peak_memory_mib()


def inflate(image, label):
    """Returns the seconds that `isal` takes to decompress both files."""
    start = time.perf_counter()
    for path in (image, label):
        with igzip.open(path) as stream:
            while stream.read(CHUNK):
                pass
    return time.perf_counter() - start


def case(image, label, split, task, folder):
    """Converts one case into a new folder; returns seconds, peak memory in MiB and its entry."""
    _renew(Path(folder) / split)
    settings = ConversionSettings(load_task(task))
    made = Case("case", Path(image), Path(label), "benchmark")
    start = time.perf_counter()
    entry = convert_case(made, split, settings, folder)
    return time.perf_counter() - start, peak_memory_mib(), entry


def job(data, output, task, options, eval_fraction):
    """Runs the whole job into a new folder; returns seconds, peak memory in MiB and the cases."""
    shutil.rmtree(output, ignore_errors=True)
    start = time.perf_counter()
    manifest = convert(
        [data],
        output,
        load_task(task),
        eval_fraction=eval_fraction,
        beam_options=options,
        progress=False,
    )
    return time.perf_counter() - start, peak_memory_mib(), manifest["converted"]


def write_records(source, target, compression):
    """Rewrites the records of a file; returns seconds and bytes. "isal" is GZIP by another library."""
    records = list(tf.data.TFRecordDataset(source).as_numpy_iterator())
    content = Path(source).read_bytes()
    start = time.perf_counter()
    if compression == "isal":
        with igzip.open(target, "wb", compresslevel=1) as stream:
            stream.write(content)
    else:
        with tf.io.TFRecordWriter(target, compression) as writer:
            for record in records:
                writer.write(record)
    return time.perf_counter() - start, os.stat(target).st_size


def read_records(path, compression, task):
    """Returns the seconds that tf.data takes to read and parse the patches of a file, and their number."""
    loaded = load_task(task)
    kind = "GZIP" if compression == "isal" else compression
    start = time.perf_counter()
    records = tf.data.TFRecordDataset(path, compression_type=kind)
    count = sum(1 for _ in records.map(lambda record: parse_example(record, loaded)))
    return time.perf_counter() - start, count


def _renew(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


if __name__ == "__main__":
    quiet_frameworks()
    serve(
        {
            "prepare": prepare,
            "inflate": inflate,
            "case": case,
            "job": job,
            "write_records": write_records,
            "read_records": read_records,
        }
    )
