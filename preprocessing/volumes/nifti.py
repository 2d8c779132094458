"""Reads NIfTI files as volumes, checking their content, and writes volumes as NIfTI files."""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from isal import igzip

from preprocessing.errors import InputError
from preprocessing.files import atomic_write
from preprocessing.volumes.geometry import Volume, checked_affine
from preprocessing.volumes.grids import on_grid
from preprocessing.volumes.nifti_bytes import MAX_IMAGE_RATIO, read_header, read_stored
from preprocessing.volumes.resampling import SLAB_VOXELS

SUFFIXES = (".nii.gz", ".nii")
# Label values may be off by rounding.
NEAR_WHOLE = 1e-3

# Millimetres in a metre and a micron by their codes in `xyzt_units`; without a unit, mm is meant.
_UNIT_MM = {1: 1e3, 3: 1e-3}

# Three parts of a quaternion are stored in float32; the sum of their squares may exceed 1 by this. Only for
# headers that nibabel refuses: with this threshold it also takes sums just below 1 for half turns.
QUATERNION_ROUNDING = 1e-5

# Header fields that define the grid.
_GEOMETRY = (
    *("dim", "dim_info", "pixdim", "xyzt_units", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)


def read_image(path: str | os.PathLike, *, allow: Collection[str] = ()) -> Volume:
    """Reads a 3D image as voxels [x, y, z] with the header's scaling applied.

    The dtype is the file's own without scaling, else int16 or int32 if exact, else float32. Raises
    InputError for a missing or damaged file, one that is not NIfTI or 3D, and voxels that are NaN,
    infinite or all equal.
    """
    header, voxels = read_stored(Path(path), ratio=MAX_IMAGE_RATIO)
    return check_image(path, _scaled(voxels, header), affine_mm(header, path, allow))


def affine_mm(header: nib.Nifti1Header, where: object, allow: Collection[str] = ()) -> np.ndarray:
    """Returns a header's 4x4 affine, of sform, qform or spacing, in mm (see `in_mm`).

    Raises InputError for a qform whose quaternion is longer than 1 by more than rounding.
    """
    try:
        return in_mm(header.get_best_affine(), header, allow)
    except ValueError:
        header = header.copy()
        header.quaternion_threshold = QUATERNION_ROUNDING
    try:
        return in_mm(header.get_best_affine(), header, allow)
    except ValueError as error:
        raise InputError(where, "a qform with the quaternion of a rotation", error) from None


def in_mm(affine: np.ndarray, header: nib.Nifti1Header, allow: Collection[str] = ()) -> np.ndarray:
    """Returns a 4x4 affine in the unit of a header (`xyzt_units`: mm, metre or micron) in mm.

    With `unit` in `allow` the header's unit is ignored, and the affine is taken as it is.
    """
    code = 0 if "unit" in allow else int(header["xyzt_units"]) & 7
    factor = _UNIT_MM.get(code, 1.0)
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


def read_grid(path: str | os.PathLike, *, allow: Collection[str] = ()) -> Volume:
    """Returns the grid of an image, with voxels that take no memory; raises as `read_image`."""
    header, shape = read_header(Path(path))
    affine = checked_affine(affine_mm(header, path, allow), path)
    return Volume(np.broadcast_to(np.uint8(0), shape), affine)


def read_label(
    path: str | os.PathLike,
    class_names: Sequence[str],
    *,
    image: Volume | None = None,
    allow: Collection[str] = (),
) -> Volume:
    """Reads a 3D label map as uint8 voxels [x, y, z], on the grid of its image if one is given.

    `class_names` has a name for each value, empty for those that are not allowed. Values within
    `NEAR_WHOLE` of a whole number are taken as that. Raises InputError as `read_image` (except for
    equal voxels) and `grids.on_grid`, and for other values. The shape is checked before the voxels
    are read.
    """
    expected = None if image is None else image.voxels.shape
    header, voxels = read_stored(Path(path), expected=expected)
    voxels = _scaled(voxels, header)
    _finite_range(path, voxels)
    known = [value for value, name in enumerate(class_names) if name]
    labels = np.empty(voxels.shape, np.uint8, order="F")
    others: set[float] = set()
    for source, target in zip(_slabs(voxels), _slabs(labels), strict=True):
        whole = source if source.dtype.kind in "iu" else np.rint(source)
        unfit = ~np.isin(whole, known, kind="sort")
        if whole is not source:
            unfit |= np.abs(source - whole) > NEAR_WHOLE
        others.update(np.unique(source[unfit]).tolist())
        with np.errstate(invalid="ignore"):
            target[...] = whole
    if others:
        names = ", ".join(f"{value} {class_names[value]}" for value in known)
        more = f" and {len(others) - 12} more" if len(others) > 12 else ""
        found = ", ".join(f"{value:.6g}" for value in sorted(others)[:12]) + more
        raise InputError(path, f"label values {names}", f"values {found}")
    label = Volume(labels, affine_mm(header, path, allow))
    if image is not None:
        return on_grid(label, image, path, allow=allow)
    return Volume(labels, checked_affine(label.affine, path))


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
