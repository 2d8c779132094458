"""Output through Beam's file systems (local disk, object stores, HDFS): JSON, folders, TFRecord shards."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

# Beam's framing of one record, into any file handle. Not public, but tf.io.TFRecordWriter writes to
# paths that TensorFlow knows, not to Beam's file systems; a test compares the two byte for byte.
from apache_beam.io.tfrecordio import _TFRecordUtil as tfrecord

from preprocessing.errors import SettingsError
from preprocessing.files import move_over, put_back

_CHUNK = 2**20
# What `hidden_beside` a folder holds the one that it replaces.
_REPLACED = "replaced"


@dataclass(frozen=True)
class Shard:
    """A finished TFRecord file: the number of its records, its bytes and its hexadecimal SHA-256."""

    name: str
    records: int
    size: int
    sha256: str


def write_shards(
    folder: str, stem: str, records: Iterable[bytes], *, limit_bytes: int
) -> list[Shard]:
    """Writes records to `folder/stem-00000.tfrecord` and following files, each atomically.

    The folder is an address on one of Beam's file systems. Records are consumed one at a time; one
    larger than `limit_bytes` gets a file of its own.
    """
    shards: list[Shard] = []
    iterator = iter(records)
    record = next(iterator, None)
    while record is not None:
        name, count = f"{stem}-{len(shards):05d}.tfrecord", 0
        size, digest = 0, hashlib.sha256()
        with _atomic_file(FileSystems.join(folder, name)) as file:
            while record is not None:
                if count and size + tfrecord.encoded_num_bytes(record) > limit_bytes:
                    break
                framed = io.BytesIO()
                tfrecord.write_record(framed, record)
                content = framed.getvalue()
                file.write(content)
                digest.update(content)
                size += len(content)
                count += 1
                record = next(iterator, None)
        shards.append(Shard(name, count, size, digest.hexdigest()))
    return shards


def is_intact(folder: str, shard: Shard) -> bool:
    """Returns whether a shard's file exists with the same SHA-256."""
    path = FileSystems.join(folder, shard.name)
    if not FileSystems.exists(path):
        return False
    digest = hashlib.sha256()
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == shard.sha256


def write_json(path: str, content: Any) -> None:
    """Writes indented JSON with sorted keys, atomically."""
    with _atomic_file(path) as file:
        file.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def read_json(path: str) -> Any:
    """Reads a JSON file."""
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        return json.loads(file.read().decode())


@contextlib.contextmanager
def _atomic_file(path: str) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path`; on success it is renamed, on an error deleted."""
    # A unique name: another worker may be writing the same file.
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    file = FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED)
    try:
        yield file
        file.close()
        FileSystems.rename([temporary], [path])
    except BaseException:
        # On a full disk closing fails as well.
        with contextlib.suppress(OSError):
            file.close()
        delete_file(temporary)
        raise


def hidden_beside(path: str, what: str) -> str:
    """Returns the address of a hidden folder beside `path`.

    Raises SettingsError for a file system that Beam has no package for.
    """
    try:
        parent, name = FileSystems.split(path)
    except ValueError:
        found = f"none for {FileSystems.get_scheme(path)}://"
        remedy = "pip install 'apache-beam[gcp]' adds gs://, and 'apache-beam[aws]' s3://."
        raise SettingsError(path, "a file system that Beam knows", found, remedy) from None
    return FileSystems.join(parent, f".{name}.{what}")


def list_files(folder: str) -> list[str]:
    """Returns all files below a folder, relative to it and sorted; none if it does not exist."""
    if is_local(folder):
        # Beam would read *, ? and [ in the folder's name as a pattern.
        paths = (path for path in Path(folder).rglob("*") if path.is_file())
        return sorted(path.relative_to(folder).as_posix() for path in paths)
    prefix = FileSystems.join(folder, "")
    found = FileSystems.match([FileSystems.join(folder, "**")])[0].metadata_list
    return sorted(each.path[len(prefix) :] for each in found)


def make_folder(path: str) -> None:
    """Creates a folder and its parents if they do not exist."""
    if not FileSystems.exists(path):
        FileSystems.mkdirs(path)


def delete_folder(path: str) -> None:
    """Deletes a folder and its content if it exists."""
    if not is_local(path):
        # Object stores have no folders, only files.
        files = [FileSystems.join(path, name) for name in list_files(path)]
        if files:
            FileSystems.delete(files)
    elif os.path.exists(path):
        shutil.rmtree(path)


def delete_file(path: str) -> None:
    """Deletes a file."""
    if is_local(path):
        os.remove(path)
    else:
        FileSystems.delete([path])


def replace_folder(source: str, target: str, *, last: str) -> None:
    """Moves the folder `source` to `target`, replacing it; on a local disk by `files.move_over`.

    An object store can't rename folders: the files are moved one by one, `last` after all others, so
    that its presence means that the rest is complete.
    """
    if is_local(target):
        old = hidden_beside(target, _REPLACED)
        delete_folder(old)
        move_over(Path(source), Path(target), aside=Path(old))
        delete_folder(old)
        delete_folder(source)
        return
    delete_folder(target)
    for name in sorted(list_files(source), key=lambda name: name == last):
        FileSystems.rename([FileSystems.join(source, name)], [FileSystems.join(target, name)])


def put_back_replaced(target: str) -> None:
    """Puts a folder back that a killed `replace_folder` moved aside and did not replace."""
    if is_local(target):
        put_back(Path(hidden_beside(target, _REPLACED)), Path(target))


def is_local(path: str) -> bool:
    """Returns whether an address is a path on this machine's file system."""
    return FileSystems.get_scheme(path) is None
