"""Reads the bytes of NIfTI files, validating the header against the file size before allocating."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel import imageglobals
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from preprocessing.errors import InputError

# More voxels than any scanner delivers (2048 x 1024 x 1024); larger headers are damaged.
MAX_VOXELS = 2**31
# Maximum compression ratio of deflate, according to zlib's documentation.
MAX_GZIP_RATIO = 1032
# No scanner image compresses further than this. Small files may be synthetic, and are harmless.
MAX_IMAGE_RATIO, SMALL_BYTES = 100, 2**27

# Small enough to stay in the processor's cache between inflating and copying.
_CHUNK = 2**18
_GZIP_MAGIC = b"\x1f\x8b"
# The type stubs of isal declare its error as an instance.
_ISAL_ERROR = cast(type[Exception], isal_zlib.error)


def read_stored(
    path: Path, *, ratio: int = MAX_GZIP_RATIO, expected: tuple[int, ...] | None = None
) -> tuple[nib.Nifti1Header, np.ndarray]:
    """Returns header and voxels [x, y, z] as stored: memory-mapped if uncompressed, else inflated.

    Raises InputError for a missing, damaged or truncated file, not NIfTI, not 3D; before anything
    is inflated also not of the `expected` shape, in any order of axes, or a large file compressed
    further than `ratio`.
    """
    with _opened(path) as stream:
        header = _header(path, stream)
        shape, dtype = _shape(path, header), header.get_data_dtype()
        if dtype.kind not in "iuf":
            raise InputError(path, "integer or real voxels", f"voxels of type {dtype}")
        if expected is not None and sorted(shape) != sorted(expected):
            check_shape(shape, expected, path)
        offset = header.get_data_offset()
        promised = offset + math.prod(shape) * dtype.itemsize
        on_disk = path.stat().st_size
        if isinstance(stream, io.FileIO):
            if promised > on_disk:
                raise _truncated(path, promised, on_disk)
            flat: np.ndarray = np.memmap(path, dtype, "r", offset, (math.prod(shape),))
        else:
            if promised > on_disk * MAX_GZIP_RATIO:
                raise _truncated(path, promised, f"a file of {on_disk} bytes, too few")
            if promised > max(SMALL_BYTES, on_disk * ratio):
                found = f"a file of {on_disk} bytes that becomes {promised}"
                raise InputError(path, f"an image compressed to 1/{ratio} at most", found)
            flat = _inflated(path, stream, offset, promised).view(dtype)
    return header, flat.reshape(shape, order="F")


def read_header(path: Path) -> tuple[nib.Nifti1Header, tuple[int, int, int]]:
    """Returns header and size (x, y, z) of a file without its voxels; raises as `read_stored`."""
    with _opened(path) as stream:
        header = _header(path, stream)
    return header, _shape(path, header)


def check_shape(shape: tuple[int, ...], expected: tuple[int, ...], where: object) -> None:
    """Raises InputError unless a label map has the shape of its image."""
    if tuple(shape) != tuple(expected):
        wanted = f"a label map of the image's shape {tuple(expected)}"
        raise InputError(where, wanted, f"shape {tuple(shape)}")


def what_is(path: Path) -> str:
    """Returns what a path leads to instead of the expected file, for messages."""
    if path.is_file():
        return "a file of another kind"
    if path.is_dir():
        return "a folder"
    if path.exists():
        return "a pipe, a socket or a device"
    return "a broken link" if path.is_symlink() else "no such file"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Yields the file's bytes, inflated if they start like gzip (regardless of the file's name)."""
    if not path.is_file():
        raise InputError(path, "a NIfTI file", what_is(path))
    with open(path, "rb", buffering=0) as raw:
        compressed = raw.read(2) == _GZIP_MAGIC
        raw.seek(0)
        if not compressed:
            yield raw
            return
        try:
            with igzip.open(raw) as stream:
                yield stream
        except (EOFError, zlib.error, _ISAL_ERROR, igzip.BadGzipFile) as error:
            raise InputError(path, "an intact gzip stream", error) from None


def _header(path: Path, stream: BinaryIO) -> nib.Nifti1Header:
    first = stream.read(nib.Nifti2Header.sizeof_hdr)
    kinds = (nib.Nifti1Header, nib.Nifti2Header)
    kind = next((kind for kind in kinds if kind.may_contain_header(first)), None)
    if kind is None or first[344:347] == b"ni1":
        found = f"{len(first)} bytes of something else"
        raise InputError(path, "a NIfTI header (.nii or .nii.gz)", found)
    level = imageglobals.logger.level
    try:
        # nibabel logs what it can fix by itself.
        imageglobals.logger.setLevel(logging.CRITICAL)
        header = kind(first[: kind.sizeof_hdr])
        # These may still fail on a header that passes nibabel's own checks.
        offset, _ = header.get_data_offset(), header.get_slope_inter()
    except (HeaderDataError, WrapStructError, ValueError, OverflowError) as error:
        raise InputError(path, "a valid NIfTI header", error) from None
    finally:
        imageglobals.logger.setLevel(level)
    if offset < kind.sizeof_hdr:
        raise InputError(path, "voxels after the header", f"an offset of {offset} bytes")
    return header


def _shape(path: object, header: nib.Nifti1Header) -> tuple[int, int, int]:
    """Returns the size (x, y, z); 2D files have one slice, trailing axes of size 1 are dropped."""
    shape = tuple(int(size) for size in header.get_data_shape())
    x, y, z = (*shape, 1, 1)[:3] if len(shape) < 3 else shape[:3]
    if math.prod(shape[3:]) != 1:
        raise InputError(path, "a 3D volume", f"{len(shape)}D of shape {shape}")
    if not shape or min(x, y, z) < 1:
        raise InputError(path, "at least one voxel along each axis", f"shape {shape}")
    if x * y * z > MAX_VOXELS:
        raise InputError(path, f"at most {MAX_VOXELS} voxels", f"a header of shape {(x, y, z)}")
    return x, y, z


def _inflated(path: Path, stream: BinaryIO, offset: int, promised: int) -> np.ndarray:
    """Returns the bytes from `offset`; memory is only touched as far as the stream delivers."""
    stream.seek(offset)
    content = np.empty(promised - offset, np.uint8)
    done = 0
    while done < len(content):
        chunk = stream.read(min(_CHUNK, len(content) - done))
        if not chunk:
            raise _truncated(path, promised, offset + done)
        # NumPy copies without blocking other threads, unlike the stream's own readinto.
        content[done : done + len(chunk)] = np.frombuffer(chunk, np.uint8)
        done += len(chunk)
    # Reading past the voxels makes the stream verify its checksum.
    stream.read(_CHUNK)
    return content


def _truncated(path: Path, promised: int, found: object) -> InputError:
    expected = f"the {promised} bytes that its header promises"
    return InputError(path, expected, f"{found} (truncated?)")
