"""Encodes volumes for a page: images as one WebP picture per slice, label maps deflated exactly."""

from __future__ import annotations

import bisect
import io
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

# Outside the knees the number of shades falls with the distance: it is halved at this share of the
# range between the knees, so that bone, lung and metal stay coarse but visible.
BEND_SHARE = 0.25
# WebP qualities. Below the lowest a coarser grid looks better; above the highest nothing is gained.
LOWEST_QUALITY, HIGHEST_QUALITY = 20, 98
# Slices on which the quality is chosen.
_SAMPLE_SLICES = 16


@dataclass(frozen=True)
class CodedImage:
    """An image encoded for the page.

    Attributes:
      payload: the WebP pictures of all slices, one after the other.
      slice_bytes: size of each picture.
      levels: intensity that each of the 256 pixel values stands for, rising.
      rms_error: root mean square error over the voxels between the knees; NaN without any.
    """

    payload: bytes
    slice_bytes: list[int]
    levels: list[float]
    rms_error: float


def code_image(image_zyx: np.ndarray, knees: tuple[float, float], budget_bytes: int) -> CodedImage:
    """Encodes an image with the highest quality that fits the budget.

    Args:
      image_zyx: intensities [z, y, x].
      knees: range of intensities that is stored with even and finest shades.
      budget_bytes: for the payload; exceeded only if even the lowest quality needs more.
    """
    pixels, levels = to_pixels(image_zyx, knees)
    sample = pixels[:: max(1, len(pixels) // _SAMPLE_SLICES)]
    qualities = range(LOWEST_QUALITY, HIGHEST_QUALITY + 1)
    fitting = bisect.bisect_right(
        qualities,
        budget_bytes * len(sample) / len(pixels),
        key=lambda quality: sum(map(len, _pictures(sample, quality))),
    )
    quality = qualities[max(0, fitting - 1)]
    pictures = _pictures(pixels, quality)
    while sum(map(len, pictures)) > budget_bytes and quality > LOWEST_QUALITY:
        quality -= 1
        pictures = _pictures(pixels, quality)
    error = _rms_error(image_zyx, pictures, levels, knees)
    return CodedImage(b"".join(pictures), list(map(len, pictures)), levels.round(2).tolist(), error)


def code_labels(label_zyx: np.ndarray) -> bytes:
    """Returns a label map, uint8 [z, y, x], as raw deflate."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9)
    return packer.compress(np.ascontiguousarray(label_zyx).tobytes()) + packer.flush()


def to_pixels(image_zyx: np.ndarray, knees: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Maps intensities to 8 bits by a curve that is linear between the knees, logarithmic outside.

    At a distance d outside the knees an intensity counts as s log(1 + d / s), with s the share
    `BEND_SHARE` of the range between the knees. The image's own minimum and maximum become 0 and 255.

    Returns:
      Pixel values, uint8 [z, y, x], and the intensity of each of the 256 values, float64 [256].
    """
    scale = BEND_SHARE * (knees[1] - knees[0])
    bent = _bend(image_zyx, knees, scale)
    low, high = float(bent.min()), float(bent.max())
    step = (high - low) / 255 or 1.0
    pixels = np.rint((bent - low) / step).astype(np.uint8)
    values = low + step * np.arange(256)
    inside = np.clip(values, *knees)
    distance = scale * np.expm1(np.abs(values - inside) / scale)
    return pixels, inside + np.copysign(distance, values - inside)


def _bend(image: np.ndarray, knees: tuple[float, float], scale: float) -> np.ndarray:
    image = image.astype(np.float32)
    inside = np.clip(image, *knees)
    distance = scale * np.log1p(np.abs(image - inside) / scale)
    return inside + np.copysign(distance, image - inside)


def _pictures(slices: Iterable[np.ndarray], quality: int) -> list[bytes]:
    """Returns each slice as a WebP file."""
    pictures = []
    for pixels in slices:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "WEBP", quality=quality)
        pictures.append(file.getvalue())
    return pictures


def _rms_error(
    image_zyx: np.ndarray,
    pictures: Iterable[bytes],
    levels: np.ndarray,
    knees: tuple[float, float],
) -> float:
    total, count = 0.0, 0
    for plane, picture in zip(image_zyx, pictures, strict=True):
        decoded = levels[np.asarray(Image.open(io.BytesIO(picture)))[..., 0]]
        inside = (plane >= knees[0]) & (plane <= knees[1])
        total += float(np.square(decoded[inside] - plane[inside]).sum())
        count += int(np.count_nonzero(inside))
    return math.sqrt(total / count) if count else math.nan
