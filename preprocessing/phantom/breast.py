"""A compressed breast in voxels: skin, fat lobules, Cooper's ligaments, glandular tissue, vessels.

Attenuations are those at 20 keV, about the mean energy of the spectra in tomosynthesis. Fat, glandular
tissue and carcinoma: P. C. Johns and M. J. Yaffe, X-ray characterisation of normal and neoplastic breast
tissues, Phys. Med. Biol. 32 (1987) 675, which gives 0.456, 0.802 and 0.844 per cm; carcinoma is 1.05
times as dense as gland. Water (cysts), skin, muscle and bone mineral: NIST XCOM's mass attenuations times
the densities of ICRU report 44 (mineral: hydroxyapatite at half of its density).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft, spatial

# 1/mm
FAT, GLAND, WATER, SKIN, MUSCLE, MINERAL = 0.0456, 0.0802, 0.0810, 0.0830, 0.0861, 1.1
# Share of the parenchyma, between subcutaneous fat and chest wall, that is glandular, by BI-RADS' classes.
DENSITIES = {"a": (0.04, 0.1), "b": (0.12, 0.25), "c": (0.28, 0.45), "d": (0.5, 0.75)}
# Share of women in the classes (BI-RADS atlas, 5th edition).
DENSITY_SHARES = (0.1, 0.4, 0.4, 0.1)
SUBCUTANEOUS_MM = 4.0
# Step of the grid on which the compartments are computed.
COARSE_MM = 1.2

Axes = Sequence[np.ndarray]


@dataclass(frozen=True, eq=False)
class Breast:
    """Tissue of a breast, float32 [x, y, z]."""

    attenuation: np.ndarray  # 1/mm
    depth_mm: np.ndarray  # below the skin's surface, negative outside
    gland: np.ndarray  # share of glandular tissue, 0 to 1


def make_breast(random: np.random.Generator, axes: Axes, density: str, mlo: bool) -> Breast:
    """Makes a breast whose chest wall is at x = 0.

    Args:
      random: decides everything.
      axes: mm along x (from 0), y and z (from the middle), broadcastable.
      density: one of `DENSITIES`.
      mlo: with the pectoral muscle in the upper corner at the chest wall.
    """
    extent_mm = [float(axis.max() - axis.min()) for axis in axes]
    depth_mm, nipple = _depth_below_skin(random, axes, extent_mm)
    shape = depth_mm.shape
    fatness, wall_mm = _compartments(random, axes, extent_mm)
    parenchyma = (depth_mm > SUBCUTANEOUS_MM) & (axes[0] > 3)
    glandular = random.uniform(*DENSITIES[density])
    limit = np.quantile(fatness[parenchyma][::7], glandular) if parenchyma.any() else 0.0
    gland = smooth_step((limit - fatness) / 0.35) * smooth_step((depth_mm - 2.5) / 0.6)
    gland = np.maximum(gland, nipple)
    # Ligaments between the compartments, from the skin inwards.
    ligament_mm = random.uniform(0.35, 0.55)
    ligaments = np.exp(-np.square(wall_mm / ligament_mm)) * random.uniform(0.4, 0.8)
    fibrous = np.maximum(gland, ligaments.astype(np.float32))
    # The power spectrum of breast tissue falls with the third power of the frequency.
    steps = [float(np.ptp(axis)) / max(1, axis.size - 1) for axis in axes]
    texture = power_law_field(random, shape, steps, 3.0, (0.0, 12.0))
    attenuation = FAT * (1 + 0.012 * texture)
    attenuation += fibrous * (GLAND * (1 + 0.035 * texture) - attenuation)
    if mlo:
        muscle = _muscle(random, axes, extent_mm)
        attenuation += muscle * (MUSCLE * (1 + 0.02 * texture) - attenuation)
        gland = gland * (1 - muscle)
    skin_mm = random.uniform(1.0, 1.7)
    attenuation += smooth_step((skin_mm - depth_mm) / 0.3) * (SKIN - attenuation)
    # Voxels that the surface cuts are partly air.
    attenuation *= np.clip(depth_mm / steps[0] + 0.5, 0, 1)
    return Breast(attenuation.astype(np.float32), depth_mm, gland.astype(np.float32))


def power_law_field(
    random: np.random.Generator,
    shape: Sequence[int],
    spacing_mm: Sequence[float],
    exponent: float,
    band_mm: tuple[float, float] = (0.0, 1e6),
) -> np.ndarray:
    """Returns a Gaussian random field, float32, of power 1 / f^exponent within a band of wavelengths.

    Its mean is 0 and its standard deviation 1.
    """
    noise = random.standard_normal(shape, np.float32)
    frequencies = [fft.fftfreq(n, s) for n, s in zip(shape[:2], spacing_mm[:2], strict=True)]
    frequencies.append(fft.rfftfreq(shape[2], spacing_mm[2]))
    squares = sum(np.square(f) for f in np.ix_(*frequencies)).astype(np.float32)
    gains = np.maximum(squares, squares[squares > 0].min()) ** np.float32(-exponent / 4)
    gains[(squares * band_mm[0] ** 2 > 1) | (squares < band_mm[1] ** -2)] = 0
    gains[0, 0, 0] = 0
    field = fft.irfftn(fft.rfftn(noise) * gains, shape)
    return (field / max(float(field.std()), 1e-12)).astype(np.float32)


def smooth_step(values: np.ndarray) -> np.ndarray:
    """Returns a smooth step from 0 to 1, one half at 0."""
    return (0.5 * (1 + np.tanh(values))).astype(np.float32)


def _depth_below_skin(random, axes: Axes, extent_mm: Sequence[float]):
    """Returns the approximate depth below the surface in mm, negative outside, and the nipple's share.

    Two plates press the breast; where they do not touch it, it is round.
    """
    x, y, z = (axis.astype(np.float32) for axis in axes)
    length = extent_mm[0] * random.uniform(0.74, 0.92)
    half_height = extent_mm[1] / 2 * random.uniform(0.82, 0.96)
    half_thickness = extent_mm[2] / 2 * random.uniform(0.88, 0.97)
    shift = extent_mm[1] * random.uniform(-0.03, 0.03)
    power = random.uniform(1.5, 2.1)
    a, b = x / length, np.abs(y - shift) / half_height
    sides = np.maximum(a**power + b**power, 1e-6)
    # The distance to the outline, to first order.
    slope = power * np.hypot(a ** (power - 1) / length, b ** (power - 1) / half_height)
    in_plane = (1 - sides) / np.maximum(slope, 1 / (2 * min(length, half_height)))
    relative = np.minimum(np.abs(z) / half_thickness, 1)
    round_mm = half_thickness * random.uniform(0.5, 0.8) * (1 - np.sqrt(1 - relative**2))
    nipple = random.uniform(4, 5) - np.sqrt((x - length + 1.5) ** 2 + (y - shift) ** 2 + 0.5 * z**2)
    outline = np.maximum(in_plane - round_mm, nipple)
    depth_mm = np.minimum(outline, half_thickness - np.abs(z)).astype(np.float32)
    return depth_mm, smooth_step(nipple / 0.6)


def _compartments(random, axes: Axes, extent_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Returns, in mm [x, y, z], how far inside a fat lobule a voxel is, and its distance to a ligament.

    Compartments are the Voronoi cells of random points in warped space. In each, fat fills a ball around
    the point as far as the cell allows; glandular tissue takes the rest, from the cells' borders inwards.
    """
    coarse = [
        np.linspace(axis.min(), axis.max(), max(2, int(np.ceil(extent / COARSE_MM)) + 1))
        for axis, extent in zip(axes, extent_mm, strict=True)
    ]
    shape = [len(axis) for axis in coarse]
    steps = [axis[1] - axis[0] for axis in coarse]
    size_mm = random.uniform(4.5, 9)
    # Compression flattens the compartments.
    scale = np.array([1.0, 1.0, random.uniform(1.2, 1.6)])
    low = np.array([axis[0] for axis in coarse]) * scale - size_mm
    high = np.array([axis[-1] for axis in coarse]) * scale + size_mm
    seeds = random.uniform(low, high, (int(np.prod((high - low) / size_mm)), 3))
    radii = size_mm * np.exp(random.normal(-1.0, 0.35, len(seeds)))
    points = np.stack(np.meshgrid(*coarse, indexing="ij"), axis=-1) * scale
    for position in range(3):
        points[..., position] += 1.5 * power_law_field(random, shape, steps, 3.0, (6.0, 1e3))
    distances, nearest = spatial.cKDTree(seeds).query(points.reshape(-1, 3), k=2)
    gap = np.linalg.norm(seeds[nearest[:, 1]] - seeds[nearest[:, 0]], axis=1)
    wall = np.subtract(*np.square(distances).T[::-1]) / (2 * np.maximum(gap, 1e-6))
    lobule = np.minimum(1.5 * wall, radii[nearest[:, 0]] - distances[:, 0]).reshape(shape)
    # Less gland towards chest wall, more behind the nipple, and regions of more and of less.
    x, y, z = np.ix_(*coarse)
    towards = np.clip(1 - x / random.uniform(10, 25), 0, 1) * random.uniform(0, 3)
    cone = np.exp(-np.square(y / (0.2 * extent_mm[1])) - np.square(z / (0.6 * extent_mm[2])))
    regions = power_law_field(random, shape, steps, 3.0, (12.0, 1e3))
    fatness = lobule + towards - random.uniform(0, 2) * cone + random.uniform(0.5, 1.8) * regions
    on_axes = [axis.ravel() for axis in axes]
    return _between(fatness, coarse, on_axes), _between(wall.reshape(shape), coarse, on_axes)


def _between(field: np.ndarray, coarse: Sequence[np.ndarray], fine: Sequence[np.ndarray]):
    """Returns a field [x, y, z] on a finer grid, float32, by linear interpolation axis by axis."""
    field = field.astype(np.float32)
    # Last axis first: the intermediate results are smallest.
    for axis in (2, 1, 0):
        step = coarse[axis][1] - coarse[axis][0]
        place = np.clip((fine[axis] - coarse[axis][0]) / step, 0, len(coarse[axis]) - 1)
        first = np.minimum(place.astype(int), len(coarse[axis]) - 2)
        share = (
            (place - first).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        )
        lower, upper = field.take(first, axis), field.take(first + 1, axis)
        upper -= lower
        upper *= share
        lower += upper
        field = lower
    return field


def _muscle(random, axes: Axes, extent_mm: Sequence[float]) -> np.ndarray:
    """Returns the share of the pectoral muscle, a wedge in the upper corner at the chest wall."""
    x, y, _ = axes
    width, height = extent_mm[0] * random.uniform(0.2, 0.4), extent_mm[1] * random.uniform(0.4, 0.6)
    inside = 1 - x / width - (y + extent_mm[1] / 2) / height
    return smooth_step(inside * width / 0.8)
