"""Encodes volumes for a page: images as one WebP picture per slice, label maps deflated exactly."""

from __future__ import annotations

import io
import math
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

# WebP quality at which no difference is visible within the window.
QUALITY = 95
# Outside the knees the number of shades falls with the distance: it is halved at this share of the
# range between the knees, so that bone, lung and metal stay coarse but visible.
BEND_SHARE = 0.25


@dataclass(frozen=True)
class CodedImage:
    """An image as WebP pictures of all slices, one after the other."""

    payload: bytes  # the pictures
    slice_bytes: list[int]  # size of each picture
    levels: list[float]  # intensity of each of the 256 pixel values, rising
    rms_error: float  # over the voxels between the knees; NaN without any


def code_image(image_zyx: np.ndarray, knees: tuple[float, float]) -> CodedImage:
    """Encodes intensities [z, y, x]; those between the knees get the finest, evenly spaced shades."""
    pixels, levels = to_pixels(image_zyx, knees)
    pictures = []
    total, count = 0.0, 0
    for intensities, plane in zip(image_zyx, pixels, strict=True):
        file = io.BytesIO()
        Image.fromarray(plane).save(file, "WEBP", quality=QUALITY)
        pictures.append(file.getvalue())
        decoded = levels[np.asarray(Image.open(file))[..., 0]]
        inside = (intensities >= knees[0]) & (intensities <= knees[1])
        total += float(np.square(decoded[inside] - intensities[inside]).sum())
        count += int(np.count_nonzero(inside))
    error = math.sqrt(total / count) if count else math.nan
    sizes = list(map(len, pictures))
    return CodedImage(b"".join(pictures), sizes, levels.round(2).tolist(), error)


def code_labels(label_zyx: np.ndarray) -> bytes:
    """Returns a label map, uint8 [z, y, x], as raw deflate."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9)
    return packer.compress(np.ascontiguousarray(label_zyx).tobytes()) + packer.flush()


def to_pixels(image_zyx: np.ndarray, knees: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Maps intensities to 8 bits by a curve that is linear between the knees, logarithmic outside.

    At a distance d outside the knees an intensity counts as s log(1 + d / s), with s the share
    `BEND_SHARE` of the range between the knees. The image's own minimum and maximum become 0 and 255.
    Returns pixel values, uint8 [z, y, x], and the intensity of each value, float64 [256].
    """
    scale = BEND_SHARE * (knees[1] - knees[0])
    image = image_zyx.astype(np.float32)
    inside = np.clip(image, *knees)
    distance = scale * np.log1p(np.abs(image - inside) / scale)
    bent = inside + np.copysign(distance, image - inside)
    low, high = float(bent.min()), float(bent.max())
    step = (high - low) / 255 or 1.0
    pixels = np.rint((bent - low) / step).astype(np.uint8)
    values = low + step * np.arange(256)
    inside = np.clip(values, *knees)
    distance = scale * np.expm1(np.abs(values - inside) / scale)
    return pixels, inside + np.copysign(distance, values - inside)
