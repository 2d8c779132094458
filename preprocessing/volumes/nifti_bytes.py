"""The bytes of a NIfTI file: opened, inflated, its header held against them before any memory is taken."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from preprocessing.errors import InputError

# More voxels than any scanner delivers (2048 x 1024 x 1024): a header that promises more lies.
MAX_VOXELS = 2**31
# Deflate can't shrink anything further than this (zlib's own figure).
MAX_GZIP_RATIO = 1032
# No image of a scanner shrinks further than this; small ones may be synthetic, and harm nobody.
MAX_IMAGE_RATIO, SMALL_BYTES = 100, 2**27

# Small enough to stay in the processor's cache on its way to the volume.
_CHUNK = 2**18
_GZIP_MAGIC = b"\x1f\x8b"


def read_stored(
    path: Path, *, ratio: int = MAX_GZIP_RATIO, expected: tuple[int, int, int] | None = None
) -> tuple[nib.Nifti1Header, np.ndarray]:
    """Returns header and voxels [x, y, z] as stored: mapped if uncompressed, read if compressed.

    Nothing is inflated where the header has another shape than expected, or promises more than a
    large file of this size can hold at a compression of `ratio`.

    Raises:
      InputError: missing, damaged or truncated file, no NIfTI, not 3D, or what was not expected.
    """
    with _opened(path) as stream:
        header = _header(path, stream)
        shape, dtype = _shape(path, header), _dtype(path, header)
        if expected is not None:
            check_shape(shape, expected, path)
        offset = header.get_data_offset()
        promised = offset + math.prod(shape) * dtype.itemsize
        on_disk = path.stat().st_size
        if isinstance(stream, io.FileIO):
            if promised > on_disk:
                raise _truncated(path, promised, on_disk)
            flat = np.memmap(path, dtype, "r", offset, (math.prod(shape),))
        else:
            if promised > on_disk * MAX_GZIP_RATIO:
                raise _truncated(path, promised, f"a file of {on_disk} bytes, too few")
            if promised > max(SMALL_BYTES, on_disk * ratio):
                found = f"a file of {on_disk} bytes that becomes {promised}"
                raise InputError(path, f"an image compressed to 1/{ratio} at most", found)
            flat = _inflated(path, stream, offset, promised).view(dtype)
    return header, flat.reshape(shape, order="F")


def read_header(path: Path) -> tuple[nib.Nifti1Header, tuple[int, int, int]]:
    """Returns a file's header and its size x, y, z; its voxels are not looked at.

    Raises:
      InputError: missing or damaged file, no NIfTI, or not 3D.
    """
    with _opened(path) as stream:
        header = _header(path, stream)
    return header, _shape(path, header)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Yields the file's bytes from the start, inflated if its first bytes say gzip."""
    if not path.is_file():
        raise InputError(path, "a NIfTI file", _what_else(path))
    with open(path, "rb", buffering=0) as raw:
        compressed = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        if not compressed:
            yield raw
            return
        try:
            with igzip.open(raw) as stream:
                yield stream
        except (EOFError, zlib.error, isal_zlib.error, igzip.BadGzipFile) as error:
            raise InputError(path, "an intact gzip stream", error) from None


def _what_else(path: Path) -> str:
    """Returns what a path leads to that is no file."""
    if path.is_dir():
        return "a folder"
    if path.exists():
        return "a pipe, a socket or a device"
    return "a link that leads nowhere" if path.is_symlink() else "no such file"


def _header(path: Path, stream: BinaryIO) -> nib.Nifti1Header:
    first = stream.read(nib.Nifti2Header.sizeof_hdr)
    kinds = [
        kind for kind in (nib.Nifti1Header, nib.Nifti2Header) if kind.may_contain_header(first)
    ]
    if not kinds or first[344:347] == b"ni1":
        found = f"{len(first)} bytes of something else"
        raise InputError(path, "a NIfTI header (.nii or .nii.gz)", found)
    level = nib.imageglobals.logger.level
    try:
        # What nibabel can mend by itself it would log.
        nib.imageglobals.logger.setLevel(logging.CRITICAL)
        header = kinds[0](first[: kinds[0].sizeof_hdr])
        # Both may be beyond repair in a header that passes nibabel's own checks.
        offset, _ = header.get_data_offset(), header.get_slope_inter()
    except (HeaderDataError, WrapStructError, ValueError, OverflowError) as error:
        raise InputError(path, "a valid NIfTI header", error) from None
    finally:
        nib.imageglobals.logger.setLevel(level)
    if offset < kinds[0].sizeof_hdr:
        raise InputError(path, "voxels that begin behind the header", f"at byte {offset}")
    return header


def _shape(path: object, header: nib.Nifti1Header) -> tuple[int, int, int]:
    """Returns the size x, y, z; a file of one 2D slice has one slice, trailing ones are dropped."""
    shape = tuple(int(size) for size in header.get_data_shape())
    short = (*shape, 1, 1)[:3] if len(shape) < 3 else shape[:3]
    if math.prod(shape[3:]) != 1:
        raise InputError(path, "a 3D volume", f"{len(shape)}D of shape {shape}")
    if not shape or min(short) < 1:
        raise InputError(path, "at least one voxel along each axis", f"shape {shape}")
    if math.prod(short) > MAX_VOXELS:
        raise InputError(path, f"at most {MAX_VOXELS} voxels", f"a header of shape {short}")
    return short


def _dtype(path: object, header: nib.Nifti1Header) -> np.dtype:
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        raise InputError(path, "integer or real voxels", f"voxels of type {dtype}")
    return dtype


def _inflated(path: Path, stream: BinaryIO, offset: int, promised: int) -> np.ndarray:
    """Returns the bytes from `offset` on; pages are only taken up as the stream delivers."""
    stream.seek(offset)
    content = np.empty(promised - offset, np.uint8)
    done = 0
    while done < len(content):
        chunk = stream.read(min(_CHUNK, len(content) - done))
        if not chunk:
            raise _truncated(path, promised, offset + done)
        # NumPy copies without holding up other threads; the stream's own readinto does not.
        content[done : done + len(chunk)] = np.frombuffer(chunk, np.uint8)
        done += len(chunk)
    # Reading past the voxels makes the stream compare its checksum.
    stream.read(_CHUNK)
    return content


def _truncated(path: Path, promised: int, found: object) -> InputError:
    found = f"{found} (truncated?)"
    return InputError(path, f"the {promised} bytes that its header promises", found)


def check_shape(shape: tuple[int, ...], expected: tuple[int, ...], where: object) -> None:
    """Checks that a label map has its image's shape.

    Raises:
      InputError: another shape.
    """
    if tuple(shape) != tuple(expected):
        raise InputError(
            where, f"a label map of the image's shape {tuple(expected)}", f"shape {tuple(shape)}"
        )
