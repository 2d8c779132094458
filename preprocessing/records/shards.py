"""TFRecord files through Beam's file systems: split by size, hashed, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import google_crc32c
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from preprocessing.records.storage import temporary_name

# TFRecord's checksums are stored rotated and shifted by this constant.
_CRC_SHIFT = 0xA282EAD8
_CHUNK = 2**20


@dataclass(frozen=True)
class Shard:
    """One finished TFRecord file.

    Attributes:
      name: file name.
      records: number of records in it.
      size: bytes.
      sha256: of the whole file, hexadecimal.
    """

    name: str
    records: int
    size: int
    sha256: str


def write_shards(
    folder: str, stem: str, records: Iterable[bytes], *, limit_bytes: int
) -> list[Shard]:
    """Writes records to `folder/stem-00000.tfrecord` and following files.

    Args:
      folder: any address that Beam's file systems know.
      stem: start of the file names.
      records: serialized examples; taken one at a time.
      limit_bytes: a new file begins where the next record would go beyond this; a single larger
        record has a file of its own.

    Returns:
      What was written, in order; no file for no records.
    """
    shards: list[Shard] = []
    file: _OpenShard | None = None
    try:
        for record in records:
            framed = frame_record(record)
            if file and file.size + len(framed) > limit_bytes:
                shards.append(file.finish())
                file = None
            if file is None:
                file = _OpenShard(folder, f"{stem}-{len(shards):05d}.tfrecord")
            file.append(framed)
        if file:
            shards.append(file.finish())
            file = None
    finally:
        if file:
            file.discard()
    return shards


def is_intact(folder: str, shard: Shard) -> bool:
    """Returns whether a shard file is there, whole and unchanged."""
    path = FileSystems.join(folder, shard.name)
    if not FileSystems.exists(path):
        return False
    digest, size = hashlib.sha256(), 0
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return (size, digest.hexdigest()) == (shard.size, shard.sha256)


def frame_record(record: bytes) -> bytes:
    """Returns a record as it stands in a TFRecord file: length, its checksum, data, its checksum."""
    length = struct.pack("<Q", len(record))
    return b"".join((length, _masked_crc(length), record, _masked_crc(record)))


class _OpenShard:
    def __init__(self, folder: str, name: str):
        self.path, self.name = FileSystems.join(folder, name), name
        self.temporary = temporary_name(self.path)
        self.file = FileSystems.create(
            self.temporary, compression_type=CompressionTypes.UNCOMPRESSED
        )
        self.records, self.size, self.hash = 0, 0, hashlib.sha256()

    def append(self, framed: bytes) -> None:
        self.file.write(framed)
        self.hash.update(framed)
        self.records += 1
        self.size += len(framed)

    def finish(self) -> Shard:
        self.file.close()
        FileSystems.rename([self.temporary], [self.path])
        return Shard(self.name, self.records, self.size, self.hash.hexdigest())

    def discard(self) -> None:
        # On a full disk closing fails as well.
        with contextlib.suppress(OSError):
            self.file.close()
        FileSystems.delete([self.temporary])


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _CRC_SHIFT) & 0xFFFFFFFF)
