"""Pixels of DICOM files: frame by frame, decoded, rescaled, stacked into voxels [x, y, z]."""

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
from typing import BinaryIO

import numpy as np
from pydicom.pixels import get_decoder
from pydicom.uid import RLELossless

from preprocessing.dicom.deidentify import DAMAGE
from preprocessing.dicom.header import Image, numbers
from preprocessing.errors import InputError

# A frame that takes longer to decode than this is one whose decoder hangs.
DECODER_SECONDS = 60


def stored_frames(images: Sequence[Image]) -> Iterator[np.ndarray]:
    """Yields each frame [row, column] of each file, in order, as stored.

    Raises:
      InputError: damaged or truncated pixels, or a transfer syntax that no codec here knows.
    """
    for apart, group in itertools.groupby(images, _is_decoded_apart):
        several = list(group)
        yield from _decoded_apart(several) if apart else _decoded_here(several)


def rescaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """Returns stored values with slope and intercept applied: int32 where that is exact, else float64."""
    small = stored.dtype.itemsize <= 2 and abs(slope) < 2**14 and abs(intercept) < 2**30
    if small and float(slope).is_integer() and float(intercept).is_integer():
        values = stored.astype(np.int32)
        if slope != 1:
            values *= int(slope)
        values += int(intercept)
        return values
    return stored * np.float64(slope) + intercept


def padding_mask(image: Image, stored: np.ndarray) -> np.ndarray | None:
    """Returns where a frame is padding (PixelPaddingValue and -RangeLimit); None without any."""
    value = _padding(image, "PixelPaddingValue")
    if value is None:
        return None
    limit = _padding(image, "PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    mask = (stored >= low) & (stored <= high)
    return mask if mask.any() else None


def stacked(
    slices: Iterable[np.ndarray],
    places: Sequence[int],
    where: object,
    dtype: np.dtype | type = np.int16,
) -> np.ndarray:
    """Stacks slices into voxels.

    Args:
      slices: arrays [row, column] of one shape.
      places: for each slice its z; below 0 for a slice to leave out.
      where: for messages.
      dtype: the narrowest dtype; a slice that does not fit widens all to int32 or float32.

    Returns:
      Voxels [x, y, z], x the column, y the row, the first axis contiguous.

    Raises:
      InputError: infinite values, or no contrast.
    """
    voxels, low, high = None, math.inf, -math.inf
    for z, values in zip(places, slices, strict=True):
        if z < 0:
            continue
        if voxels is None:
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
    """Returns the voxels in the first dtype that takes what they and the new values hold."""
    for dtype in (voxels.dtype, np.int16, np.int32):
        if values.dtype.kind == "f" or voxels.dtype.kind == "f":
            break
        limits = np.iinfo(dtype)
        holds_both = np.can_cast(voxels.dtype, dtype)
        if holds_both and limits.min <= ends[0] and ends[1] <= limits.max:
            return voxels.astype(dtype, copy=False)
    return voxels.astype(np.float32, copy=False)


def _padding(image: Image, keyword: str) -> int | None:
    """Returns a padding value as the file's pixels hold it: writers disagree about its sign."""
    found = numbers(image.header, keyword, 1, image.shown)
    if found is None:
        return None
    size = 2**image.bits_allocated
    value = int(found[0]) % size
    return value - size if image.signed and value >= size // 2 else value


def _is_decoded_apart(image: Image) -> bool:
    return image.compressed and image.transfer_syntax != RLELossless


def _decoded_here(images: Iterable[Image]) -> Iterator[np.ndarray]:
    for image in images:
        frames = 0
        syntax = image.transfer_syntax
        try:
            with open(image.path, "rb") as file:
                # Behind the element's tag, VR and length.
                file.seek(image.header.pixel_offset + (8 if syntax.is_implicit_VR else 12))
                found = get_decoder(syntax).iter_array(file, raw=True, **_options(image))
                for frame, _ in found:
                    yield _checked(frame, image)
                    frames += 1
        except DAMAGE as error:
            raise _undecodable(image, type(error).__name__) from None
        if frames != image.frames:
            raise _undecodable(image, f"{frames} of {image.frames} frames")


def _options(image: Image) -> dict[str, int | str]:
    """Returns how pixels are stored, in pydicom's words."""
    return {
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


def _decoded_apart(images: Sequence[Image]) -> Iterator[np.ndarray]:
    with _decoder(images) as process:
        for image in images:
            for _ in range(image.frames):
                watch = threading.Timer(DECODER_SECONDS, process.kill)
                watch.start()
                try:
                    frame = _received(process.stdout, image)
                finally:
                    watch.cancel()
                yield _checked(frame, image)


@contextlib.contextmanager
def _decoder(images: Sequence[Image]) -> Iterator[subprocess.Popen]:
    """Yields a running `preprocessing.dicom.decoder` that has been told the files."""
    process = subprocess.Popen(
        [sys.executable, "-m", "preprocessing.dicom.decoder"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        with contextlib.suppress(BrokenPipeError):
            for image in images:
                name = os.fsencode(image.path.absolute())
                process.stdin.write(name + b"\0" + str(image.frames).encode() + b"\0")
            process.stdin.close()
        yield process
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def _received(stream: BinaryIO, image: Image) -> np.ndarray:
    line = stream.readline(4096)
    head = json.loads(line) if line.endswith(b"\n") else {"error": "the decoder broke down"}
    if "error" in head:
        raise _undecodable(image, head["error"])
    dtype, shape = np.dtype(head["dtype"]), tuple(head["shape"])
    if shape != (image.rows, image.columns):
        raise _undecodable(image, f"a frame of shape {shape}")
    content = stream.read(math.prod(shape) * dtype.itemsize)
    if len(content) < math.prod(shape) * dtype.itemsize:
        raise _undecodable(image, "the decoder broke down")
    return np.frombuffer(content, dtype).reshape(shape)


def _checked(frame: np.ndarray, image: Image) -> np.ndarray:
    if frame.shape != (image.rows, image.columns) or frame.dtype.kind not in "iu":
        raise _undecodable(image, f"a frame of shape {frame.shape}")
    return frame


def _undecodable(image: Image, found: str) -> InputError:
    expected = f"pixels of {image.rows} x {image.columns} in {image.transfer_syntax.name}"
    return InputError(image.shown, expected, f"damaged or unknown ones ({found})")
