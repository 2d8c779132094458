"""Volumes as a page carries them: images within a budget of bytes, label maps exactly, deflated."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np

from preprocessing.page import wavelet

# Beyond the knees an intensity counts this much less: bone, lung and metal need no fine shades.
OUTER_SLOPE = 0.25
# A coefficient below this share of a step becomes 0: noise costs the most and is missed the least.
_DEAD_ZONE = 0.65
# Steps as shares of the range between the knees: the finest one, below which no eye sees more, and
# the coarsest one, after which a picture would no longer be one.
_FINEST, _COARSEST = 1 / 250, 1.0
_TRIES = 7
# A payload of this share of the budget is good enough; tries aim between it and the whole.
_GOOD, _AIM = 0.9, 0.95
_LONGEST = 255


@dataclass(frozen=True)
class CodedImage:
    """An image for the page.

    Attributes:
      payload: deflated bytes, see `static/decoding.js`.
      step: quantisation step, in units of the intensities between the knees.
      rms_error: root mean square of the error, of the voxels between the knees; NaN without any.
    """

    payload: bytes
    step: float
    rms_error: float


def code_image(image_zyx: np.ndarray, knees: tuple[float, float], budget_bytes: int) -> CodedImage:
    """Codes an image with the finest step whose bytes keep to the budget.

    Args:
      image_zyx: intensities [z, y, x].
      knees: intensities between which all shades count in full.
      budget_bytes: for the payload; exceeded only where even the coarsest step needs more.
    """
    bent = bend(image_zyx, knees)
    coefficients = wavelet.forward(bent)
    width = knees[1] - knees[0]
    step, payload = _within(coefficients, width, budget_bytes)
    restored = wavelet.inverse(_quantised(coefficients, step) * np.float32(step))
    inside = (image_zyx >= knees[0]) & (image_zyx <= knees[1])
    error = math.nan
    if inside.any():
        error = float(np.sqrt(np.mean(np.square(restored[inside] - bent[inside]))))
    return CodedImage(payload, step, error)


def code_labels(label_zyx: np.ndarray) -> bytes:
    """Returns a label map, uint8 [z, y, x], as its changes from slice to slice, deflated."""
    changes = label_zyx.copy()
    changes[1:] -= label_zyx[:-1]
    return _deflated(changes.tobytes(), 9)


def bend(image: np.ndarray, knees: tuple[float, float]) -> np.ndarray:
    """Returns intensities as float32, flattened by `OUTER_SLOPE` beyond the knees."""
    image = image.astype(np.float32)
    inside = np.clip(image, *knees)
    return inside + np.float32(OUTER_SLOPE) * (image - inside)


def _within(coefficients: np.ndarray, width: float, budget_bytes: int) -> tuple[float, bytes]:
    """Returns a step and its payload: the finest of a few that keep to the budget.

    Bytes fall about as steps grow. With one try on either side of the budget the next one lies between
    them, as their bytes say.
    """
    finest, coarsest = _FINEST * width, _COARSEST * width
    step, best = finest * 4, None
    above: tuple[float, float] | None = None
    for _ in range(_TRIES):
        payload = _packed(_quantised(coefficients, step))
        ratio = len(payload) / budget_bytes
        if ratio <= 1:
            best = step, payload, ratio
            if ratio >= _GOOD or step <= finest:
                break
        else:
            above = step, ratio
        if best is not None and above is not None:
            share = math.log(above[1] / _AIM) / math.log(above[1] / best[2])
            step = above[0] * (best[0] / above[0]) ** min(0.9, max(0.1, share))
        else:
            step = min(coarsest, max(finest, step * ratio / _AIM))
    if best is None:
        return coarsest, _packed(_quantised(coefficients, coarsest))
    return best[:2]


def _quantised(coefficients: np.ndarray, step: float) -> np.ndarray:
    scaled = coefficients / np.float32(step)
    return np.trunc(scaled + np.copysign(np.float32(1 - _DEAD_ZONE), scaled)).astype(np.int32)


def _packed(numbers: np.ndarray) -> bytes:
    """Returns integers as bytes, sign last; those that need more follow as 32-bit numbers."""
    folded = ((numbers << 1) ^ (numbers >> 31)).ravel()
    small = np.minimum(folded, _LONGEST).astype(np.uint8)
    large = folded[folded >= _LONGEST].astype("<u4")
    return _deflated(small.tobytes() + large.tobytes(), 6)


def _deflated(content: bytes, level: int) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, 9)
    return packer.compress(content) + packer.flush()
