"""Reads NIfTI files as volumes, checking their content, and writes volumes as NIfTI files."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip

from preprocessing.errors import InputError
from preprocessing.files import atomic_write
from preprocessing.volumes.geometry import Volume, axis_codes, checked_affine, spacing_mm
from preprocessing.volumes.nifti_bytes import MAX_IMAGE_RATIO, check_shape, read_header, read_stored
from preprocessing.volumes.resampling import SLAB_VOXELS

SUFFIXES = (".nii.gz", ".nii")
# Corners of an image and its label map may differ by this share of a voxel.
SAME_GRID = 0.1

# Millimetres in a metre and a micron by their codes in `xyzt_units`; without a unit, mm is meant.
_UNIT_MM = {1: 1e3, 3: 1e-3}

# Header fields that define the grid.
_GEOMETRY = (
    *("dim", "dim_info", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)


def read_image(path: str | os.PathLike) -> Volume:
    """Reads a 3D image as voxels [x, y, z] with the header's scaling applied.

    The dtype is the file's own without scaling, else int16 or int32 if exact, else float32. Raises
    InputError for a missing or damaged file, one that is not NIfTI or 3D, and voxels that are NaN,
    infinite or all equal.
    """
    header, voxels = read_stored(Path(path), ratio=MAX_IMAGE_RATIO)
    affine = in_mm(header.get_best_affine(), header)
    return check_image(path, _scaled(voxels, header), affine)


def in_mm(affine: np.ndarray, header: nib.Nifti1Header) -> np.ndarray:
    """Returns a 4x4 affine in the unit of a header (`xyzt_units`: mm, metre or micron) in mm."""
    factor = _UNIT_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    return np.diag([factor, factor, factor, 1.0]) @ affine


def check_image(where: object, voxels: np.ndarray, affine: np.ndarray) -> Volume:
    """Returns the volume of an image with voxels [x, y, z] and a 4x4 affine.

    Raises InputError unless these are 3D numbers, finite and not all equal, with a valid affine.
    """
    if voxels.ndim != 3 or not voxels.size or voxels.dtype.kind not in "iuf":
        found = f"{voxels.dtype} of shape {voxels.shape}"
        raise InputError(where, "an image of numbers [x, y, z]", found)
    if voxels.dtype.kind == "f":
        _finite_range(where, voxels)
    first = voxels.flat[0]
    if not any(np.any(voxels[:, :, z] != first) for z in range(voxels.shape[2])):
        raise InputError(where, "an image with contrast", f"all voxels equal to {first:g}")
    return Volume(voxels, checked_affine(affine, where))


def read_label(
    path: str | os.PathLike, class_names: Sequence[str], *, shape: tuple[int, ...] | None = None
) -> Volume:
    """Reads a 3D label map as uint8 voxels [x, y, z]; `class_names` has a name per allowed value.

    Raises InputError as `read_image` (except for equal voxels), for a value that is not a class,
    and for another shape than the image's `shape` (checked before the voxels are read).
    """
    header, voxels = read_stored(Path(path), expected=shape)
    voxels = _scaled(voxels, header)
    low, high = _finite_range(path, voxels)
    integral = voxels.dtype.kind != "f" or all((s == np.rint(s)).all() for s in _slabs(voxels))
    if low < 0 or high >= len(class_names) or not integral:
        names = ", ".join(f"{value} {name}" for value, name in enumerate(class_names))
        values = np.unique(np.concatenate([np.unique(slab) for slab in _slabs(voxels)]))
        more = f" and {len(values) - 12} more" if len(values) > 12 else ""
        found = ", ".join(f"{value:g}" for value in values[:12]) + more
        raise InputError(path, f"label values {names}", f"values {found}")
    affine = checked_affine(in_mm(header.get_best_affine(), header), path)
    return Volume(voxels.astype(np.uint8, copy=False), affine)


def check_pair(image: Volume, label: Volume, where: object) -> None:
    """Raises InputError unless an image and its label map have the same shape and corners."""
    check_shape(label.voxels.shape, image.voxels.shape, where)
    corners = np.stack(np.meshgrid(*((0, n - 1) for n in image.voxels.shape), [1]), -1)
    apart = (corners.reshape(-1, 4) @ (image.affine - label.affine).T)[:, :3]
    distance_mm = float(np.linalg.norm(apart, axis=1).max())
    if distance_mm > SAME_GRID * min(spacing_mm(image.affine)):
        grids = f"image {_grid_text(image.affine)}, label {_grid_text(label.affine)}"
        found = f"corners up to {distance_mm:.4g} mm apart ({grids})"
        raise InputError(where, "a label map with the image's affine", found)


def write_on_grid(
    path: str | os.PathLike, voxels: np.ndarray, like: str | os.PathLike | nib.Nifti1Header
) -> None:
    """Writes voxels [x, y, z] in their own dtype on the grid of a NIfTI file or header, atomically.

    Only affine, codes and shape are copied, so that no text of the header is passed on. Raises
    InputError if `like` is unreadable or has another shape, or `path` is not .nii or .nii.gz.
    """
    if isinstance(like, nib.Nifti1Header):
        source, shape = like, like.get_data_shape()
    else:
        source, shape = read_header(Path(like))
    if tuple(voxels.shape) != shape:
        expected = f"voxels of the image's shape {shape}"
        raise InputError(path, expected, tuple(voxels.shape))
    header = type(source)()
    for name in _GEOMETRY:
        header[name] = source[name]
    _write(Path(path), voxels, header)


def write_image(path: str | os.PathLike, volume: Volume) -> None:
    """Writes a volume in its own dtype with its affine, atomically."""
    header = nib.Nifti1Header()
    header.set_data_shape(volume.voxels.shape)
    header.set_qform(volume.affine, code="scanner")
    header.set_sform(volume.affine, code="scanner")
    header.set_xyzt_units("mm")
    _write(Path(path), volume.voxels, header)


def has_nifti_suffix(path: str | os.PathLike) -> bool:
    """Returns whether a file name ends like that of a NIfTI file."""
    return os.fspath(path).lower().endswith(SUFFIXES)


def _scaled(voxels: np.ndarray, header: nib.Nifti1Header) -> np.ndarray:
    """Applies the header's slope and intercept, slab by slab."""
    slope, intercept = header.get_slope_inter()
    if slope is None or (slope, intercept) == (1.0, 0.0):
        return voxels
    slope, intercept = float(slope), float(intercept)
    dtype: type[np.generic] = np.float32
    if voxels.dtype.kind in "iu" and voxels.size and slope.is_integer() and intercept.is_integer():
        ends = [int(v) * int(slope) + int(intercept) for v in (voxels.min(), voxels.max())]
        for candidate in (np.int32, np.int16):
            limits = np.iinfo(candidate)
            if limits.min <= min(ends) and max(ends) <= limits.max:
                dtype = candidate
    scaled = np.empty(voxels.shape, dtype, order="F")
    for source, target in zip(_slabs(voxels), _slabs(scaled), strict=True):
        # Infinite results are reported by the caller.
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


def _grid_text(affine: np.ndarray) -> str:
    origin = ", ".join(f"{v:g}" for v in affine[:3, 3])
    spacing = " x ".join(f"{v:.4g}" for v in spacing_mm(affine))
    return f"{axis_codes(affine)} {spacing} mm from {origin}"


def _write(path: Path, voxels: np.ndarray, header: nib.Nifti1Header) -> None:
    if not has_nifti_suffix(path):
        raise InputError(path, "an output named *.nii.gz or *.nii", path.name)
    header.set_data_dtype(voxels.dtype)
    header.set_slope_inter(1, 0)
    header.set_data_offset(header.single_vox_offset)
    content = io.BytesIO()
    header.write_to(content)
    content.write(bytes(header.single_vox_offset - content.tell()))
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(atomic_write(path))
        stream: io.BufferedIOBase = stack.enter_context(open(temporary, "wb"))
        if path.name.lower().endswith(".gz"):
            # Without time and name in the gzip header, equal voxels give equal bytes.
            stream = stack.enter_context(igzip.IGzipFile("", "wb", fileobj=stream, mtime=0))
        stream.write(content.getvalue())
        for z in range(voxels.shape[2]):
            stream.write(voxels[:, :, z].tobytes(order="F"))
