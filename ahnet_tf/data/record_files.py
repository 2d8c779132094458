"""Files of records: found in a split's folder and read in order, `.tfrecord` and `.gz` alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from preprocessing.errors import InputError

RECORD_PATTERNS = ("*.tfrecord", "*.tfrecord.gz", "*.gz")


def find_records(folder: str | Path) -> list[str]:
    """Returns the record files of one split, sorted by name.

    Raises:
      InputError: the folder is missing or holds no record files.
    """
    folder = Path(folder)
    files = {str(path) for pattern in RECORD_PATTERNS for path in folder.glob(pattern)}
    if not files:
        found = "no such file" if folder.is_dir() else "no such folder"
        raise InputError(
            folder,
            "TFRecords (*.tfrecord, *.gz)",
            found,
            "Write them with python -m preprocessing.convert.",
        )
    return sorted(files)


@tf.autograph.experimental.do_not_convert
def read_file(file: tf.Tensor) -> tf.data.Dataset:
    """Returns the serialized records of one file, `.gz` or plain; runs inside a tf.data graph."""
    compressed = tf.strings.regex_full_match(file, r".*\.gz")
    return tf.data.TFRecordDataset(file, compression_type=tf.where(compressed, "GZIP", ""))


def read_files(files: Sequence[str]) -> tf.data.Dataset:
    """Returns the serialized records of files, in order."""
    return tf.data.Dataset.from_tensor_slices(list(files)).flat_map(read_file)
