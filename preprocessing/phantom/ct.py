"""Synthetic abdominal CT with exactly known liver and tumours.

Intensity alone does not segment the liver: spleen, kidneys and muscles are as bright. Position,
shape, contrast, tumours, noise and the orientation on disk vary from case to case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from preprocessing.errors import SettingsError
from preprocessing.settings import is_number, is_whole
from preprocessing.volumes.geometry import Volume

AIR_HU = -1000.0
# Signs of the axes in a file: RAS, LPS and LAS.
ORIENTATIONS = ((1, 1, 1), (-1, -1, 1), (-1, 1, 1))
# A tumour is darker than the liver by a value in this range.
TUMOUR_CONTRAST_HU = (35.0, 60.0)


@dataclass(frozen=True)
class PhantomSettings:
    """Settings of a synthetic CT data set."""

    shape_xyz: tuple[int, int, int] = (128, 128, 32)  # mean; slices vary up to an eighth
    spacing_mm: tuple[float, float, float] = (2.5, 2.5, 5.0)  # voxel spacing (x, y, z)
    most_tumours: int = 3  # maximum per case
    noise_hu: float = 24.0  # maximum standard deviation of the noise; the minimum is half of it
    blur_mm: float = 2.0  # in-plane standard deviation of the scanner's blur
    fewest_tumours: int = 0  # minimum per case
    tumour_radius_mm: tuple[float, float] = (7.0, 24.0)  # range of mean radii, also of lookalikes
    flat_lookalikes: int = 0  # maximum per case (the minimum is half); some slices of a tumour
    flat_slices: int = 3  # of a flat lookalike, at most

    def __post_init__(self) -> None:
        check_settings(vars(self), "tumours", smallest=4)


def check_settings(settings: dict[str, Any], lesions: str, *, smallest: int) -> None:
    """Raises SettingsError unless a phantom's shape, spacing and numbers of lesions are possible."""
    shape_xyz, spacing_mm = settings["shape_xyz"], settings["spacing_mm"]
    if len(shape_xyz) != 3 or not all(is_whole(n) and n >= smallest for n in shape_xyz):
        expected = f"a shape of at least {smallest} voxels per axis"
        raise SettingsError("phantom", expected, shape_xyz)
    if len(spacing_mm) != 3 or not all(is_number(step) and step > 0 for step in spacing_mm):
        raise SettingsError("phantom", "a positive spacing in mm", spacing_mm)
    numbers = (settings[f"fewest_{lesions}"], settings[f"most_{lesions}"])
    if not 0 <= numbers[0] <= numbers[1]:
        raise SettingsError("phantom", f"0 <= fewest_{lesions} <= most_{lesions}", numbers)


def make_case(
    seed: int, number: int = 0, settings: PhantomSettings | None = None
) -> tuple[Volume, Volume]:
    """Makes one case; the same seed, number and settings always give the same voxels.

    Returns the image (int16 HU) and its label map (uint8: 0 background, 1 liver, 2 tumour), which
    is exact: it is computed from the shapes, before blur and noise.
    """
    settings = settings or PhantomSettings()
    random = np.random.default_rng([seed, number])
    shape, axes_mm = varied_grid(random, settings.shape_xyz, settings.spacing_mm)
    x, y, z = (axis.astype(np.float32) for axis in axes_mm)
    # The anatomy is defined for a field of view of 320 mm and 160 mm of slices.
    scale = min(n * s for n, s in zip(shape[:2], settings.spacing_mm[:2], strict=True)) / 320.0
    height = shape[2] * settings.spacing_mm[2] / 160.0
    x, y, z = x / scale, y / scale, z / height
    x, y = x - random.uniform(-6, 6), y - random.uniform(-6, 6)
    axes = (x, y, z)

    hu = np.full(shape, AIR_HU, np.float32)
    body = _paint_body(hu, random, axes)
    liver_hu = random.uniform(70, 110)
    _paint_distractors(hu, random, liver_hu, axes)
    liver = _liver(random, axes) & body
    hu[liver] = liver_hu
    axes_mm = [x * scale, y * scale, z * height]
    # A second generator: the rest of the case does not depend on lookalikes.
    own_random = np.random.default_rng([seed, number, 1])
    _paint_lookalikes(hu, own_random, liver, liver_hu, axes_mm, settings)
    label = liver.astype(np.uint8)
    for _ in range(int(random.integers(settings.fewest_tumours, settings.most_tumours + 1))):
        tumour = _tumour(random, liver, axes_mm, settings.tumour_radius_mm)
        hu[tumour] = liver_hu - random.uniform(*TUMOUR_CONTRAST_HU)
        label[tumour] = 2
    _paint_bones(hu, random, axes)
    label[hu > 300] = 0
    # The scanner's blur, the partial-volume effect between slices, and noise.
    in_plane = [settings.blur_mm / spacing for spacing in settings.spacing_mm[:2]]
    blurred = ndimage.gaussian_filter(hu, (*in_plane, 0.4), mode="nearest")
    noise = ndimage.gaussian_filter(random.standard_normal(shape, np.float32), (0.5, 0.5, 0))
    noise *= settings.noise_hu * random.uniform(0.5, 1) / noise.std()
    image = np.rint(np.clip(blurred + noise, -1024, 3071)).astype(np.int16)

    signs = np.array(ORIENTATIONS[int(random.integers(len(ORIENTATIONS)))])
    flips = tuple(slice(None, None, sign) for sign in signs.tolist())
    steps_mm = signs * settings.spacing_mm
    return centred_volume(image[flips], steps_mm), centred_volume(label[flips], steps_mm)


def varied_grid(
    random: np.random.Generator, shape_xyz: Sequence[int], spacing_mm: Sequence[float]
) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """Returns a shape, with a random number of slices, and broadcastable mm from its centre."""
    vary = shape_xyz[2] // 8
    shape = (*shape_xyz[:2], shape_xyz[2] + int(random.integers(-vary, vary + 1)))
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing_mm, strict=True)]
    return shape, list(np.ix_(*axes))


def _ellipsoid(axes, centre, radii, degrees: float = 0.0) -> np.ndarray:
    """Returns the squared distance from the centre in radii, < 1 inside; rotated in the plane."""
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    x, y, z = (axis - middle for axis, middle in zip(axes, centre, strict=True))
    u, v = cosine * x + sine * y, -sine * x + cosine * y
    return (u / radii[0]) ** 2 + (v / radii[1]) ** 2 + (z / radii[2]) ** 2


def _paint_body(hu, random, axes) -> np.ndarray:
    """Paints fat, muscle wall, abdominal cavity and lung bases; returns the cavity's mask."""
    x, y, z = axes
    a, b = random.uniform(118, 140), random.uniform(88, 104)
    rim, wall = random.uniform(6, 16), random.uniform(6, 10)
    taper = 1 - 0.0006 * np.abs(z)
    skin = (x / (a * taper)) ** 2 + (y / (b * taper)) ** 2 < 1
    hu[np.broadcast_to(skin, hu.shape)] = random.uniform(-115, -90)
    muscle = (x / ((a - rim) * taper)) ** 2 + (y / ((b - rim) * taper)) ** 2 < 1
    hu[np.broadcast_to(muscle, hu.shape)] = random.uniform(50, 70)
    a, b = (a - rim - wall) * taper, (b - rim - wall) * taper
    inside = np.broadcast_to((x / a) ** 2 + (y / b) ** 2 < 1, hu.shape)
    # Bowel and fat between the organs: blurred patches of varying brightness.
    patches = ndimage.gaussian_filter(random.standard_normal(hu.shape, np.float32), (6, 6, 2.5))
    patches *= 45 / patches.std()
    hu[inside] = np.clip(random.uniform(-20, 15) + patches, -110, 70)[inside]
    for side in (-1, 1):
        lung = _ellipsoid(axes, (side * 62, -5, 95), (52, 62, random.uniform(45, 70)))
        hu[inside & (lung < 1)] = random.uniform(-870, -780)
    return inside


def _paint_distractors(hu, random, liver_hu, axes) -> None:
    """Paints spleen, kidneys, stomach and great vessels, about as bright as the liver."""

    def near(*values, spread=6.0):
        return [value + random.uniform(-spread, spread) for value in values]

    centre, radii = near(-76, -22, 15), near(22, 36, 38, spread=4)
    spleen = _ellipsoid(axes, centre, radii, random.uniform(-25, 5))
    hu[spleen < 1] = liver_hu + random.uniform(-12, 18)
    for side in (-1, 1):
        centre, radii = near(side * 50, -48, -38), near(20, 26, 42, spread=3)
        kidney = _ellipsoid(axes, centre, radii, side * 20)
        hu[kidney < 1] = liver_hu + random.uniform(-5, 45)
        hu[kidney < 0.25] = random.uniform(-60, 10)
    centre, radii = near(-42, 42, 30), near(34, 24, 34)
    stomach = _ellipsoid(axes, centre, radii, random.uniform(-30, 30))
    hu[stomach < 1] = random.uniform(0, liver_hu)
    x, y, _ = axes
    for (x_mm, y_mm), radius in (((8, -38), 11), ((-6, -40), 8)):
        vessel = (x - x_mm) ** 2 + (y - y_mm) ** 2 < radius**2
        hu[np.broadcast_to(vessel, hu.shape)] = liver_hu + random.uniform(0, 50)


def _liver(random, axes) -> np.ndarray:
    """Returns the mask of the liver: a right and a left lobe with a wavy surface."""
    centre = np.array([random.uniform(42, 58), random.uniform(0, 16), random.uniform(0, 25)])
    radii = (random.uniform(44, 54), random.uniform(54, 66), random.uniform(46, 62))
    right = _ellipsoid(axes, centre, radii, random.uniform(-20, 20))
    centre += [random.uniform(-55, -40), random.uniform(14, 26), random.uniform(8, 20)]
    radii = (random.uniform(40, 58), random.uniform(20, 30), random.uniform(24, 36))
    left = _ellipsoid(axes, centre, radii, random.uniform(-15, 15))
    x, y, z = axes
    waves = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), np.float32)
    for _ in range(6):
        wave_number = random.normal(0, 1, 3) / (18, 18, 22)
        phase = random.uniform(0, 2 * np.pi)
        waves += np.sin(x * wave_number[0] + y * wave_number[1] + z * wave_number[2] + phase)
    # A smooth union: the soft minimum of both lobes' distances.
    union = -np.logaddexp(-8 * right, -8 * left) / 8
    return union + 0.06 * waves < 1


def _tumour(random, liver, axes_mm, radius_mm) -> np.ndarray:
    """Returns the mask of an ellipsoid around a random liver voxel, clipped to the liver."""
    inside = np.flatnonzero(liver)
    if not inside.size:
        return np.zeros_like(liver)
    i, j, k = np.unravel_index(int(random.choice(inside)), liver.shape)
    radii = random.uniform(*radius_mm) * random.uniform(0.8, 1.2, 3)
    x, y, z = axes_mm
    centre = (x[i, 0, 0], y[0, j, 0], z[0, 0, k])
    return liver & (_ellipsoid(axes_mm, centre, radii, random.uniform(0, 90)) < 1)


def _paint_lookalikes(hu, random, liver, liver_hu, axes_mm, settings) -> None:
    """Paints some slices of tumours, without the others."""
    for _ in range(at_least_half(random, settings.flat_lookalikes)):
        tumour = _tumour(random, liver, axes_mm, settings.tumour_radius_mm)
        filled = np.flatnonzero(tumour.any(axis=(0, 1)))
        if filled.size:
            first = int(random.choice(filled[: max(1, filled.size - settings.flat_slices + 1)]))
            tumour[..., :first] = tumour[..., first + settings.flat_slices :] = False
            hu[tumour] = liver_hu - random.uniform(*TUMOUR_CONTRAST_HU)


def at_least_half(random: np.random.Generator, most: int) -> int:
    """Returns a random number from half of `most` to `most`."""
    return int(random.integers((most + 1) // 2, most + 1))


def _paint_bones(hu, random, axes) -> None:
    """Paints the spine and ribs that slope downwards to the front."""
    x, y, z = axes
    spine = ((x / 19) ** 2 + ((y + 62) / 16) ** 2 < 1) & (np.mod(z, 34) > 4)
    hu[np.broadcast_to(spine, hu.shape)] = random.uniform(350, 550)
    a, b = random.uniform(104, 110), random.uniform(76, 82)
    ring = np.abs(np.sqrt((x / a) ** 2 + (y / b) ** 2) - 1) < 0.035
    ribs = ring & (np.mod(z + 0.35 * y + random.uniform(0, 28), 28) < 9) & (z > -45)
    hu[ribs & (hu > -300)] = random.uniform(400, 600)


def centred_volume(voxels: np.ndarray, steps_mm: np.ndarray) -> Volume:
    """Returns a volume whose axes have these steps along x, y, z, with its centre as origin."""
    affine = np.diag([*steps_mm, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(voxels.shape) - 1) / 2)
    return Volume(np.asfortranarray(voxels), affine)
