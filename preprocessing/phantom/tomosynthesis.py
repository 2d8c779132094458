"""Tomosynthesis of a voxel phantom: projections over an arc, noise, filtered back-projection.

The rays are parallel, the detector stands still in the plane z = 0, and the tube moves in the plane of
y and z: rows of one x are independent. A point (y, z) falls on y + z tan(angle) of the detector, so
both projection and back-projection are shifts along y, which the Fourier transform along y makes
exact. Arrays are [x, y, z] and [view, x, y], lengths mm, attenuations 1/mm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage


@dataclass(frozen=True)
class Scan:
    """How a volume is scanned and reconstructed."""

    arc_degrees: float  # the tube moves from -arc_degrees to +arc_degrees
    views: int
    quanta_mm2: float  # X-ray quanta per mm2 and view behind half of the breast
    blur_mm: float  # standard deviation of focal spot and detector along x and y
    # Frequencies along y below this one, in cycles per mm, are not attenuated by the ramp filter.
    # 0: filtered back-projection as it stands in books; more than 1 / (2 pixels): shift and add.
    ramp_from: float = 0.0

    @property
    def angles(self) -> np.ndarray:
        """Angles of the views in radians."""
        return np.deg2rad(np.linspace(-self.arc_degrees, self.arc_degrees, self.views))


# Two kinds of systems: fifty degrees in 25 views, and fifteen degrees in 15 views.
ARCS = {"wide": (25.0, 25), "narrow": (7.5, 15)}


def project(
    attenuation: np.ndarray, z_mm: np.ndarray, angles: np.ndarray, pixel_mm: float, margin: int
) -> np.ndarray:
    """Returns line integrals, float32 [view, x, y]; the detector is `margin` pixels longer on each side.

    Args:
      attenuation: float32 [x, y, z], its planes at the heights `z_mm`, evenly spaced.
      z_mm: float [z].
      angles: of the views, in radians.
      pixel_mm: along y.
      margin: at least the largest shift, z tan(angle), in pixels.
    """
    rows = attenuation.shape[1] + 2 * margin
    length = fft.next_fast_len(rows, real=True)
    # [frequency, z, x], so that each frequency is one product of matrices.
    planes = fft.rfft(attenuation, length, axis=1).transpose(1, 2, 0)
    shift_mm = margin * pixel_mm + np.outer(np.tan(angles), z_mm)
    spectrum = _shifts(planes.shape[0], length, pixel_mm, shift_mm) @ planes
    step_mm = (z_mm[1] - z_mm[0]) / np.cos(angles)
    integrals = fft.irfft(spectrum, length, axis=0)[:rows] * step_mm[:, np.newaxis]
    return np.ascontiguousarray(integrals.transpose(1, 2, 0), np.float32)


def measured(
    integrals: np.ndarray, scan: Scan, pixel_mm: tuple[float, float], random: np.random.Generator
) -> np.ndarray:
    """Returns line integrals [view, x, y] as measured: blurred, with Poisson noise.

    `pixel_mm` is the pixel size along x and y.
    """
    sigmas = [scan.blur_mm / step for step in pixel_mm]
    blurred = ndimage.gaussian_filter(integrals, (0, *sigmas), mode="nearest")
    behind = float(np.median(blurred[blurred > 0.5 * blurred.max()])) if blurred.any() else 0.0
    quanta = scan.quanta_mm2 * pixel_mm[0] * pixel_mm[1]
    counts = random.poisson(quanta * np.exp(behind - blurred))
    return (behind - np.log(np.maximum(counts, 1) / quanta)).astype(np.float32)


def reconstruct(
    integrals: np.ndarray, z_mm: np.ndarray, scan: Scan, pixel_mm: float, margin: int
) -> np.ndarray:
    """Returns slices at the heights `z_mm`, float32 [x, y, z], in 1/mm up to the missing angles.

    `integrals` are those of `project`, with its `pixel_mm` and `margin`.
    """
    rows = integrals.shape[2]
    # Twice as long, against wrapping by the filter.
    length = fft.next_fast_len(2 * rows, real=True)
    spectrum = fft.rfft(integrals, length, axis=2).transpose(2, 0, 1)
    gains = _ramp(length, pixel_mm)
    frequencies = np.arange(len(gains)) / (length * pixel_mm)
    gains = np.maximum(gains, scan.ramp_from)
    # Hann's window up to the highest frequency.
    gains = gains * (0.5 + 0.5 * np.cos(np.pi * frequencies / frequencies[-1]))
    angles = scan.angles
    step = (angles[-1] - angles[0]) / max(1, len(angles) - 1)
    weights = (gains[:, np.newaxis] * step / np.cos(angles)).astype(np.float32)
    shift_mm = -margin * pixel_mm - np.outer(z_mm, np.tan(angles))
    shifts = _shifts(len(gains), length, pixel_mm, shift_mm)
    slices = shifts @ (spectrum * weights[:, :, np.newaxis])
    image = fft.irfft(slices, length, axis=0)[: rows - 2 * margin]
    return np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)


def _shifts(count: int, length: int, pixel_mm: float, shift_mm: np.ndarray) -> np.ndarray:
    """Returns complex64 [frequency, ...] that shift by mm towards higher y."""
    turns = np.multiply.outer(np.arange(count) / (length * pixel_mm), shift_mm)
    return np.exp(-2j * np.pi * turns).astype(np.complex64)


def _ramp(length: int, pixel_mm: float) -> np.ndarray:
    """Returns |frequency| in cycles per mm, from its kernel on pixels (Kak and Slaney, eq. 3.61).

    Sampled in the Fourier domain instead, it would take a constant from the whole image.
    """
    kernel = np.zeros(length)
    kernel[0] = 1 / (4 * pixel_mm**2)
    odd = np.arange(1, length // 2 + 1, 2)
    kernel[odd] = -1 / (np.pi * odd * pixel_mm) ** 2
    kernel[-odd] = kernel[odd]
    return np.maximum(fft.rfft(kernel).real * pixel_mm, 0)
