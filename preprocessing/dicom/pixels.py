"""Decodes and rescales the pixels of DICOM frames, and stacks frames into voxels [x, y, z]."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, cast

import numpy as np
from pydicom.pixels import get_decoder
from pydicom.uid import RLELossless

from preprocessing.dicom.deidentify import DAMAGE
from preprocessing.dicom.geometry import frame_numbers
from preprocessing.dicom.header import Image, numbers
from preprocessing.errors import InputError

# Time limit per frame for the decoder process.
DECODER_SECONDS = 60
# Padded CT pixels, outside the scanner's field of view, are set to air, below every tissue.
AIR_HU = -1024
# Padding with a value in this range could also be tissue, and is left as it is.
TISSUE_HU = (-1000, 3071)


def stored_frames(images: Sequence[Image]) -> Iterator[np.ndarray]:
    """Yields each frame [row, column] of each file, in order, as stored.

    Raises InputError for damaged or truncated pixels, or a transfer syntax without a codec.
    """
    for separately, group in itertools.groupby(
        images, lambda image: image.compressed and image.transfer_syntax != RLELossless
    ):
        several = list(group)
        yield from _decoded_in_process(several) if separately else _decoded_here(several)


def hounsfield(image: Image, frame: int, stored: np.ndarray) -> np.ndarray:
    """Returns a CT frame [row, column] in HU, with padding set to air."""
    values = rescaled(stored, *scaling_of(image, frame))
    mask = padding_mask(image, stored)
    if mask is not None:
        low, high = values[mask].min(), values[mask].max()
        if high <= TISSUE_HU[0] or low > TISSUE_HU[1]:
            values[mask] = AIR_HU
    return values


def scaling_of(image: Image, frame: int = 0) -> tuple[float, float]:
    """Returns slope and intercept, or 1 and 0; raises InputError if damaged or the slope is 0."""
    group = "PixelValueTransformationSequence"
    slope = frame_numbers(image, frame, group, "RescaleSlope", 1) or (1.0,)
    intercept = frame_numbers(image, frame, group, "RescaleIntercept", 1) or (0.0,)
    if slope[0] == 0:
        raise InputError(image.name, "a RescaleSlope other than 0", 0)
    return slope[0], intercept[0]


def rescaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """Applies slope and intercept; returns int32 if that is exact, else float64."""
    small = stored.dtype.itemsize <= 2 and abs(slope) < 2**14 and abs(intercept) < 2**30
    if small and float(slope).is_integer() and float(intercept).is_integer():
        return stored.astype(np.int32) * np.int32(slope) + np.int32(intercept)
    return stored * np.float64(slope) + intercept


def padding_mask(image: Image, stored: np.ndarray) -> np.ndarray | None:
    """Returns where a frame is padding (PixelPaddingValue, -RangeLimit); None if nowhere."""
    value = _padding(image, "PixelPaddingValue")
    if value is None:
        return None
    limit = _padding(image, "PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    mask = (stored >= low) & (stored <= high)
    return mask if mask.any() else None


def stacked(
    slices: Iterable[np.ndarray], places: Sequence[int], where: object, dtype: np.dtype
) -> np.ndarray:
    """Stacks slices [row, column] of one shape into voxels [x, y, z] (column, row, slice).

    `places` has the z of each slice; slices with a negative one are left out. The dtype is widened
    to int32 or float32 if a slice needs it. The first axis of the result is contiguous.
    Raises InputError for infinite values or no contrast.
    """
    voxels, low, high = np.empty((0, 0, 0), dtype), math.inf, -math.inf
    for z, values in zip(places, slices, strict=True):
        if z < 0:
            continue
        if not voxels.size:
            voxels = np.empty((*values.T.shape, max(places) + 1), dtype, order="F")
        ends = values.min().item(), values.max().item()
        if not all(map(math.isfinite, ends)):
            raise InputError(where, "finite voxels", "infinite ones after rescaling")
        low, high = min(low, ends[0]), max(high, ends[1])
        voxels = _wide_enough(voxels, values, ends)
        voxels[:, :, z] = values.T
    if low == high:
        raise InputError(where, "an image with contrast", f"all voxels equal to {low:g}")
    return voxels


def _wide_enough(voxels: np.ndarray, values: np.ndarray, ends: tuple) -> np.ndarray:
    """Returns the voxels in the first dtype that also holds the new values."""
    real = "f" in (values.dtype.kind, voxels.dtype.kind)
    for dtype in () if real else (voxels.dtype, np.int16, np.int32):
        limits = np.iinfo(dtype)
        fits = limits.min <= ends[0] and ends[1] <= limits.max
        if fits and np.can_cast(voxels.dtype, dtype):
            return voxels.astype(dtype, copy=False)
    return voxels.astype(np.float32, copy=False)


def _padding(image: Image, keyword: str) -> int | None:
    """Returns a padding value in the sign of the stored pixels, as headers disagree about it."""
    found = numbers(image.header, keyword, 1, image.name)
    if found is None:
        return None
    size = 2**image.bits_allocated
    value = int(found[0]) % size
    return value - size if image.signed and value >= size // 2 else value


def _decoded_here(images: Iterable[Image]) -> Iterator[np.ndarray]:
    for image in images:
        frames, syntax = 0, image.transfer_syntax
        options: dict[str, Any] = {
            "rows": image.rows,
            "columns": image.columns,
            "number_of_frames": image.frames,
            "samples_per_pixel": 1,
            "bits_allocated": image.bits_allocated,
            "bits_stored": image.bits_stored,
            "pixel_representation": int(image.signed),
            "photometric_interpretation": "MONOCHROME2",
            "pixel_keyword": "PixelData",
            "pixel_vr": "OB" if image.compressed or image.bits_allocated == 8 else "OW",
        }
        try:
            with open(image.path, "rb") as file:
                # Skip the element's tag, VR and length.
                file.seek(image.header.pixel_offset + (8 if syntax.is_implicit_VR else 12))
                for frame, _ in get_decoder(syntax).iter_array(file, raw=True, **options):
                    _check_frame(frame.shape, frame.dtype, image)
                    yield frame
                    frames += 1
        except DAMAGE as error:
            raise _undecodable(image, type(error).__name__) from None
        if frames != image.frames:
            raise _undecodable(image, f"{frames} of {image.frames} frames")


def _decoded_in_process(images: Sequence[Image]) -> Iterator[np.ndarray]:
    """Yields frames from a `preprocessing.dicom.decoder`, ended if a frame takes too long."""
    process = subprocess.Popen(
        [sys.executable, "-m", "preprocessing.dicom.decoder"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    stdin, stdout = cast(BinaryIO, process.stdin), cast(BinaryIO, process.stdout)
    try:
        with contextlib.suppress(BrokenPipeError):
            for image in images:
                name = os.fsencode(image.path.absolute())
                stdin.write(name + b"\0" + str(image.frames).encode() + b"\0")
            stdin.close()
        for image in images:
            for _ in range(image.frames):
                timer = threading.Timer(DECODER_SECONDS, process.kill)
                timer.start()
                try:
                    frame = _received(stdout, image)
                finally:
                    timer.cancel()
                yield frame
    finally:
        process.kill()
        stdout.close()
        process.wait()


def _received(stream: BinaryIO, image: Image) -> np.ndarray:
    line = stream.readline(4096)
    head = json.loads(line) if line.endswith(b"\n") else {"error": "the decoder crashed"}
    if "error" in head:
        raise _undecodable(image, head["error"])
    dtype, shape = np.dtype(head["dtype"]), tuple(head["shape"])
    _check_frame(shape, dtype, image)
    size = math.prod(shape) * dtype.itemsize
    content = stream.read(size)
    if len(content) < size:
        raise _undecodable(image, "the decoder crashed")
    return np.frombuffer(content, dtype).reshape(shape)


def _check_frame(shape: tuple[int, ...], dtype: np.dtype, image: Image) -> None:
    if shape != (image.rows, image.columns) or dtype.kind not in "iu":
        raise _undecodable(image, f"a frame of shape {shape} and type {dtype}")


def _undecodable(image: Image, found: str) -> InputError:
    expected = f"pixels of {image.rows} x {image.columns} in {image.transfer_syntax.name}"
    return InputError(image.name, expected, f"damaged or unknown ones ({found})")
