"""NIfTI files <-> volumes: fast, checked on the way in, exact on the way out."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from preprocessing.errors import InputError
from preprocessing.files import replacing
from preprocessing.resampling import SLAB_VOXELS
from preprocessing.volume import Volume, axis_codes, checked_affine, spacing_mm

SUFFIXES = (".nii.gz", ".nii")
# More voxels than any scanner delivers (2048 x 1024 x 1024): a header that promises more lies.
MAX_VOXELS = 2**31
# Deflate can't shrink anything further than this (zlib's own figure).
MAX_GZIP_RATIO = 1032
# No image of a scanner shrinks further than this; small ones may be synthetic, and harm nobody.
MAX_IMAGE_RATIO, SMALL_BYTES = 100, 2**27
# Image and label lie on the same grid if their corners are apart by less than this share of a voxel.
SAME_GRID = 0.1

# Small enough to stay in the processor's cache on its way to the volume.
_CHUNK = 2**18
_GZIP_MAGIC = b"\x1f\x8b"
# The header's fields that place the grid in space.
_GEOMETRY = (
    *("dim", "dim_info", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)


def read_image(path: str | os.PathLike) -> Volume:
    """Reads a 3D image with the header's scaling applied.

    Returns:
      Voxels [x, y, z] in the file's own dtype if it is an integer one without scaling, in the
      smallest fitting of int16 and int32 if the scaling is a whole number, else float32.

    Raises:
      InputError: missing, damaged or truncated file, no NIfTI, not 3D, NaN or infinite voxels, or
        all voxels the same.
    """
    header, voxels = _read(Path(path), ratio=MAX_IMAGE_RATIO)
    voxels = _scaled(voxels, *_scaling(header))
    if voxels.dtype.kind == "f":
        _finite_range(path, voxels)
    first = voxels.flat[0]
    if not any(np.any(voxels[:, :, z] != first) for z in range(voxels.shape[2])):
        raise InputError(path, "an image with contrast", f"all voxels equal to {first:g}")
    return Volume(voxels, checked_affine(header.get_best_affine(), path))


def read_label(
    path: str | os.PathLike,
    class_names: Sequence[str],
    *,
    shape: tuple[int, int, int] | None = None,
) -> Volume:
    """Reads a 3D label map.

    Args:
      path: NIfTI file.
      class_names: a name a label value; sets the range of values allowed.
      shape: of the image; a label map of another shape is refused before its voxels are read.

    Returns:
      Voxels [x, y, z], uint8.

    Raises:
      InputError: as in `read_image` (but for constant voxels), or a value that is no class.
    """
    header, voxels = _read(Path(path), expected=shape)
    voxels = _scaled(voxels, *_scaling(header))
    low, high = _finite_range(path, voxels)
    whole = voxels.dtype.kind != "f" or all(
        np.array_equal(slab, np.rint(slab)) for slab in _slabs(voxels)
    )
    if low < 0 or high >= len(class_names) or not whole:
        names = ", ".join(f"{value} {name}" for value, name in enumerate(class_names))
        raise InputError(path, f"label values {names}", f"values {_some_values(voxels)}")
    return Volume(
        voxels.astype(np.uint8, copy=False), checked_affine(header.get_best_affine(), path)
    )


def check_pair(image: Volume, label: Volume, where: object) -> None:
    """Checks that an image and its label map lie on the same grid.

    Raises:
      InputError: different shapes, or corners further apart than a tenth of a voxel.
    """
    _check_shape(label.voxels.shape, image.voxels.shape, where)
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in image.voxels.shape), [1]), -1)
    apart = (corners.reshape(-1, 4) @ (image.affine - label.affine).T)[:, :3]
    distance_mm = float(np.linalg.norm(apart, axis=1).max())
    if distance_mm > SAME_GRID * min(spacing_mm(image.affine)):
        raise InputError(
            where,
            "a label map with the image's affine",
            f"corners up to {distance_mm:.4g} mm apart (image {_place(image)}, "
            f"label {_place(label)})",
        )


def write_label(path: str | os.PathLike, voxels: np.ndarray, like: str | os.PathLike) -> None:
    """Writes a label map on the grid of an existing file: its affine, codes and shape.

    Nothing else of that file's header is taken over, so no text in it travels on.

    Args:
      path: output, `.nii.gz` or `.nii`; appears whole or not at all.
      voxels: label values [x, y, z] in the order of `like`'s file.
      like: NIfTI file of the image that was segmented.

    Raises:
      InputError: `like` can't be read, or has another shape.
    """
    with _opened(Path(like)) as stream:
        source = _header(Path(like), stream)
    shape = _shape(like, source)
    if tuple(voxels.shape) != shape:
        raise InputError(path, f"voxels of the shape of {like}, {shape}", tuple(voxels.shape))
    header = type(source)()
    for name in _GEOMETRY:
        header[name] = source[name]
    _write(Path(path), np.asarray(voxels, np.uint8), header)


def write_image(path: str | os.PathLike, volume: Volume) -> None:
    """Writes a volume in its own dtype with its affine; the file appears whole or not at all."""
    header = nib.Nifti1Header()
    header.set_data_shape(volume.voxels.shape)
    header.set_qform(volume.affine, code="scanner")
    header.set_sform(volume.affine, code="scanner")
    header.set_xyzt_units("mm")
    _write(Path(path), volume.voxels, header)


def has_nifti_suffix(path: str | os.PathLike) -> bool:
    """Returns whether a path is named like a NIfTI file."""
    return os.fspath(path).lower().endswith(SUFFIXES)


def _check_shape(shape: tuple[int, ...], expected: tuple[int, ...], where: object) -> None:
    if tuple(shape) != tuple(expected):
        raise InputError(
            where, f"a label map of the image's shape {tuple(expected)}", f"shape {tuple(shape)}"
        )


def _read(
    path: Path, *, ratio: int = MAX_GZIP_RATIO, expected: tuple[int, int, int] | None = None
) -> tuple[nib.Nifti1Header, np.ndarray]:
    """Returns header and voxels [x, y, z] as stored: mapped if uncompressed, read if compressed.

    Nothing is inflated where the header has another shape than expected, or promises more than a
    large file of this size can hold at a compression of `ratio`.
    """
    with _opened(path) as stream:
        header = _header(path, stream)
        shape, dtype = _shape(path, header), _dtype(path, header)
        if expected is not None:
            _check_shape(shape, expected, path)
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


def _scaling(header: nib.Nifti1Header) -> tuple[float, float]:
    slope, intercept = header.get_slope_inter()
    return (1.0, 0.0) if slope is None else (float(slope), float(intercept))


def _scaled(voxels: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """Applies the header's scaling slab by slab."""
    if (slope, intercept) == (1.0, 0.0):
        return voxels
    dtype = np.dtype(np.float32)
    if voxels.dtype.kind in "iu" and voxels.size and slope.is_integer() and intercept.is_integer():
        ends = [int(v) * int(slope) + int(intercept) for v in (voxels.min(), voxels.max())]
        for candidate in (np.int16, np.int32):
            limits = np.iinfo(candidate)
            if limits.min <= min(ends) and max(ends) <= limits.max:
                dtype = np.dtype(candidate)
                break
    scaled = np.empty(voxels.shape, dtype, order="F")
    for source, target in zip(_slabs(voxels), _slabs(scaled), strict=True):
        # What becomes infinite is told by whoever looks at the values.
        with np.errstate(over="ignore", invalid="ignore"):
            target[...] = source * np.float64(slope) + intercept
    return scaled


def _slabs(voxels: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, SLAB_VOXELS // max(1, voxels.shape[0] * voxels.shape[1]))
    for start in range(0, voxels.shape[2], step):
        yield voxels[:, :, start : start + step]


def _finite_range(path: object, voxels: np.ndarray) -> tuple[float, float]:
    low, high = voxels.min().item(), voxels.max().item()
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = sum(int(slab.size - np.isfinite(slab).sum()) for slab in _slabs(voxels))
        raise InputError(path, "finite voxels", f"{bad} NaN or infinite ones")
    return low, high


def _some_values(voxels: np.ndarray, most: int = 12) -> str:
    """Returns the values of a label map in words, the first ones if there are many."""
    values = np.unique(np.concatenate([np.unique(slab) for slab in _slabs(voxels)]))
    text = ", ".join(f"{value:g}" for value in values[:most])
    return f"{text} and {len(values) - most} more" if len(values) > most else text


def _place(volume: Volume) -> str:
    origin = ", ".join(f"{v:g}" for v in volume.affine[:3, 3])
    spacing = " x ".join(f"{v:.4g}" for v in spacing_mm(volume.affine))
    return f"{axis_codes(volume.affine)} {spacing} mm from {origin}"


def _write(path: Path, voxels: np.ndarray, header: nib.Nifti1Header) -> None:
    if not has_nifti_suffix(path):
        raise InputError(path, "an output named *.nii.gz or *.nii", path.name)
    header.set_data_dtype(voxels.dtype)
    header.set_slope_inter(1, 0)
    header.set_data_offset(header.single_vox_offset)
    content = io.BytesIO()
    header.write_to(content)
    content.write(bytes(header.single_vox_offset - content.tell()))
    with replacing(path) as temporary, open(temporary, "wb") as raw:
        if path.name.lower().endswith(".gz"):
            # No time and no name in the gzip header: the same voxels give the same bytes.
            stream = igzip.IGzipFile("", "wb", fileobj=raw, mtime=0)
        else:
            stream = raw
        stream.write(content.getvalue())
        for start in range(voxels.shape[2]):
            stream.write(voxels[:, :, start].tobytes(order="F"))
        if stream is not raw:
            stream.close()
