"""Synthetic breast tomosynthesis with exactly known masses.

Single slices are not enough to detect the masses: every volume has clutter that looks like a mass in
one slice but is absent in its neighbours. The tissue has the 1/f^3 power spectrum of mammograms.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

from preprocessing.phantom.ct import at_least_half, centred_volume, check_settings, varied_grid
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.lesions import LesionBox

VIEWS = ("lcc", "rcc", "lmlo", "rmlo")
WHITE = 1023  # 10 bits, as in BCS-DBT
AIR, FAT, GLAND = 0.0, 0.34, 0.62  # attenuations; 1 is white


@dataclass(frozen=True)
class DBTSettings:
    """Settings of a synthetic DBT data set."""

    shape_xyz: tuple[int, int, int] = (160, 288, 40)  # mean; slices vary up to an eighth
    spacing_mm: tuple[float, float, float] = (0.4, 0.4, 1.0)  # voxel spacing (x, y, z)
    most_masses: int = 2  # maximum per case
    clutter: int = 8  # mean number of summation shadows, each in one slice; varies by a half
    noise: float = 0.02  # standard deviation of the quantum noise, as a fraction of white
    angle_degrees: float = 12.5  # half of the tube's sweep angle
    depth_resolution_mm: float = 1.5  # Gaussian standard deviation of the blur along z
    fewest_masses: int = 0  # minimum per case, where there is room
    # Maximum per case (the minimum is half of it): the image of one slice of a mass, blurred along
    # z, without the rest of the mass.
    flat_masses: int = 0

    def __post_init__(self) -> None:
        check_settings(vars(self), "masses", smallest=8)


@dataclass(frozen=True, eq=False)
class DBTCase:
    """A synthetic DBT volume and its ground truth."""

    image: Volume  # uint16 [x, y, z]; x columns, y rows from the top
    label: Volume  # uint8, 1 in masses
    boxes: tuple[LesionBox, ...]  # one per mass, around all of it, in the slice where it is largest
    view: str  # laterality and projection, one of `VIEWS`


def make_case(seed: int, number: int = 0, settings: DBTSettings | None = None) -> DBTCase:
    """Makes one case; the same seed, number and settings always give the same voxels.

    Label map and boxes are exact: they are computed from the shapes, before blur and noise. The chest
    wall is on the left of the image in left views and on the right in right views.
    """
    settings = settings or DBTSettings()
    random = np.random.default_rng([seed, number])
    view = VIEWS[int(random.integers(len(VIEWS)))]
    shape, (x, y, z) = varied_grid(random, settings.shape_xyz, settings.spacing_mm)
    # x counts from the chest wall.
    axes = [axis.astype(np.float32) for axis in (x - x[0], y, z)]
    extent_mm = [n * step for n, step in zip(shape, settings.spacing_mm, strict=True)]

    depth_mm = _depth_below_skin(random, axes, extent_mm)
    tissue = _tissue(random, depth_mm, shape, settings.spacing_mm)
    if view.endswith("mlo"):
        # The pectoral muscle is a wedge in the upper corner at the chest wall.
        width = extent_mm[0] * random.uniform(0.2, 0.4)
        height = extent_mm[1] * random.uniform(0.4, 0.6)
        wedge = axes[0] / width + (axes[1] + extent_mm[1] / 2) / height < 1
        muscle = np.broadcast_to(wedge, shape)
        tissue[muscle] = GLAND + 0.06 + 0.25 * (tissue[muscle] - GLAND)
    tissue[(depth_mm > 0) & (depth_mm < 1.4)] = GLAND + 0.12
    label = np.zeros(shape, np.uint8)
    regions = []
    for _ in range(int(random.integers(settings.fewest_masses, settings.most_masses + 1))):
        mass = _paint_mass(tissue, random, depth_mm, label, axes, extent_mm[2])
        if mass is not None:
            regions.append(mass)
    tissue[depth_mm <= 0] = AIR
    _paint_clutter(tissue, random, depth_mm, label, axes, settings)
    noise = random.standard_normal(tissue.shape, np.float32)
    image = _reconstructed(tissue + settings.noise * noise, settings)
    # A second generator: the rest of the case does not depend on flat masses.
    own_random = np.random.default_rng([seed, number, 1])
    _add_flat_masses(image, tissue, own_random, depth_mm, label, axes, extent_mm[2], settings)
    image = np.rint(np.clip(image, 0, 1) * WHITE).astype(np.uint16)

    if view.startswith("r"):
        image, label = image[::-1], label[::-1]
        regions = [(mass[::-1], kind) for mass, kind in regions]
    boxes = tuple(_box(mass, kind) for mass, kind in regions)
    # In half of the cases x and y have the opposite direction.
    steps_mm = np.array([(1, 1, 1), (-1, -1, 1)][int(random.integers(2))]) * settings.spacing_mm
    volumes = (centred_volume(image, steps_mm), centred_volume(label, steps_mm))
    return DBTCase(*volumes, boxes, view)


def _depth_below_skin(random, axes, extent_mm) -> np.ndarray:
    """Returns the approximate depth below the skin in mm; negative outside the compressed breast."""
    x, y, z = axes
    length = extent_mm[0] * random.uniform(0.72, 0.9)
    half_height = extent_mm[1] / 2 * random.uniform(0.8, 0.95)
    half_thickness = extent_mm[2] / 2 * random.uniform(0.85, 0.95)
    shift = extent_mm[1] * random.uniform(-0.03, 0.03)
    # The edge that the plates do not touch is rounded.
    bulge = 1 - 0.22 * np.minimum(1.2, np.abs(z) / half_thickness) ** 4
    sides = np.sqrt((x / length) ** 2 + (np.abs(y - shift) / half_height) ** 2)
    in_plane = (bulge - sides) * min(length, half_height)
    nipple = 4.5 - np.sqrt((x - length) ** 2 + (y - shift) ** 2 + (0.6 * z) ** 2)
    return np.minimum(np.maximum(in_plane, nipple), half_thickness - np.abs(z) + 1.4)


def _power_law_field(random, shape, spacing_mm, exponent, band_mm=(0.0, 1e6)) -> np.ndarray:
    """Returns a Gaussian random field of power 1 / f^exponent in a band, standard deviation 1."""
    noise = random.standard_normal(shape, np.float32)
    frequencies = [fft.fftfreq(n, s) for n, s in zip(shape[:2], spacing_mm[:2], strict=True)]
    frequencies.append(fft.rfftfreq(shape[2], spacing_mm[2]))
    squares = sum(np.square(f) for f in np.ix_(*frequencies)).astype(np.float32)
    gain = np.maximum(squares, squares[squares > 0].min()) ** np.float32(-exponent / 4)
    gain[squares * band_mm[0] ** 2 > 1] = 0
    gain[squares < band_mm[1] ** -2] = 0
    gain[0, 0, 0] = 0
    field = fft.irfftn(fft.rfftn(noise) * gain, shape)
    return (field / field.std()).astype(np.float32)


def _tissue(random, depth_mm, shape, spacing_mm) -> np.ndarray:
    """Returns attenuations of fat lobules, septa between them, and glandular tissue."""
    density = random.uniform(-0.5, 0.6)
    inward = np.clip(depth_mm / 14, 0, 1.6) - 1
    field = _power_law_field(random, shape, spacing_mm, 3.0)
    gland = 1 / (1 + np.exp(-(field + 0.9 * inward + density) / 0.3))
    lobules = _power_law_field(random, shape, spacing_mm, 2.0, (4.0, 20.0))
    septa = np.exp(-np.square(lobules / 0.14))
    fine = _power_law_field(random, shape, spacing_mm, 2.0, (1.0, 8.0))
    return FAT + (GLAND - FAT) * gland + 0.2 * septa * (1 - 0.4 * gland) + 0.03 * fine


def _ellipse(random, depth_mm, label, axes, radius_mm, margin_mm, z_index):
    """Returns a random ellipse inside the breast and away from masses, or None without room.

    It is given by the squared distance from its centre in radii and the angle around it, [x, y, 1].
    """
    x, y, _ = axes
    free = (depth_mm[:, :, z_index] > margin_mm) & (x[:, :, 0] > margin_mm)
    near = label.any(axis=2)
    if near.any():
        free &= ~ndimage.binary_dilation(near, iterations=8)
    candidates = np.flatnonzero(free)
    if not candidates.size:
        return None
    i, j = np.unravel_index(int(random.choice(candidates)), free.shape)
    rotation, flat = random.uniform(0, np.pi), random.uniform(0.8, 1.0)
    dx, dy = x - x[i, 0, 0], y - y[0, j, 0]
    u = np.cos(rotation) * dx + np.sin(rotation) * dy
    v = np.cos(rotation) * dy - np.sin(rotation) * dx
    return (u / radius_mm) ** 2 + (v / (flat * radius_mm)) ** 2, np.arctan2(v, u)


def _paint_mass(
    tissue, random, depth_mm, label, axes, thickness_mm
) -> tuple[np.ndarray, str] | None:
    """Paints and labels an ellipsoid, half of them with spicules; returns its mask and class."""
    z = axes[2]
    radius_mm = random.uniform(4.5, 8.0)
    spiculated = bool(random.random() < 0.5)
    z_index = int(z.size * random.uniform(0.3, 0.7))
    ellipse = _ellipse(random, depth_mm, label, axes, radius_mm, radius_mm + 3, z_index)
    if ellipse is None:
        return None
    squared, angle = ellipse
    z_radius = min(radius_mm * random.uniform(0.85, 1.1), thickness_mm / 4)
    squared = squared + ((z - z.ravel()[z_index]) / z_radius) ** 2
    waves = random.uniform(0, 2 * np.pi, 2)
    edge = 1 + 0.08 * np.cos(3 * angle + waves[0]) + 0.06 * np.cos(5 * angle + waves[1])
    mass = (squared < edge**2) & (depth_mm > 0) & (label == 0)
    # Denser than glandular tissue, with a gradual border.
    core = np.clip(2.5 * (edge**2 - squared), 0, 1)
    level = np.maximum(0, GLAND - 0.08 - tissue) + random.uniform(0.12, 0.19)
    tissue += core * level
    if spiculated:
        # Thin radial strands that fade with distance.
        spokes = int(random.integers(7, 13))
        ray = np.abs(np.sin(spokes / 2 * (angle + 0.3 * np.sin(2 * angle + waves[0]))))
        distance = np.sqrt(squared)
        strands = (ray * distance < 0.12 * spokes / 2 * 0.5) & (distance >= 1) & (distance < 2.2)
        strands &= depth_mm > 0
        tissue[strands] += (0.16 * (2.2 - distance) / 1.2)[strands]
    label[mass] = 1
    return mass, "cancer" if spiculated else "benign"


def _paint_clutter(tissue, random, depth_mm, label, axes, settings) -> None:
    """Adds discs one slice thin that are as wide, and after the blur as bright, as a mass."""
    gain = 1 / _kernel_weights(settings)[0]
    half = settings.clutter // 2
    for _ in range(int(random.integers(half, settings.clutter + half + 1))):
        radius_mm = random.uniform(4.5, 8.0)
        z_index = int(tissue.shape[2] * random.uniform(0.15, 0.85))
        ellipse = _ellipse(random, depth_mm, label, axes, radius_mm, radius_mm + 2, z_index)
        if ellipse is not None:
            contrast = gain * random.uniform(0.12, 0.2)
            tissue[:, :, z_index] += contrast * np.clip(2.5 * (1 - ellipse[0][:, :, 0]), 0, 1)


def _add_flat_masses(image, tissue, random, depth_mm, label, axes, thickness_mm, settings) -> None:
    """Adds single slices of masses to a reconstructed image; they fade with the depth resolution."""
    slices, sigma = np.arange(image.shape[2]), _depth_sigma(settings)
    for _ in range(at_least_half(random, settings.flat_masses)):
        whole = tissue.copy()
        mass = _paint_mass(whole, random, depth_mm, label.copy(), axes, thickness_mm)
        if mass is not None:
            areas = mass[0].sum(axis=(0, 1))
            z_index = int(random.choice(np.flatnonzero(areas > 0.5 * areas.max())))
            added = np.where(depth_mm > 0, whole - tissue, np.float32(0))
            seen = _reconstructed(added, settings)[:, :, z_index, np.newaxis]
            image += seen * np.exp(-0.5 * np.square((slices - z_index) / sigma)).astype(np.float32)


def _depth_sigma(settings: DBTSettings) -> float:
    """Returns the depth resolution in slices."""
    return max(settings.depth_resolution_mm / settings.spacing_mm[2], 1e-3)


def _kernel_weights(settings: DBTSettings) -> np.ndarray:
    """Returns the blur's weights 0, 1, 2... slices away; over both sides they sum to 1."""
    sigma = _depth_sigma(settings)
    weights = np.exp(-0.5 * np.square(np.arange(int(np.ceil(3 * sigma)) + 1) / sigma))
    return weights / (2 * weights.sum() - weights[0])


def _reconstructed(tissue, settings: DBTSettings) -> np.ndarray:
    """Returns a volume as reconstructed from a limited angle (a linear filter).

    The tube moves along y. Shift-and-add of projections from -a to a degrees attenuates a structure
    of frequency f along y at n mm from its slice by sin(u) / u with u = 2 pi f n tan(a); the depth
    resolution attenuates it further. Each frequency is then scaled so that structures that are the
    same in all slices are unchanged, like the ramp filter of a reconstruction.
    """
    rows = tissue.shape[1]
    length = fft.next_fast_len(rows + 32, real=True)
    spectrum = fft.rfft(tissue, length, axis=1)
    frequencies = np.arange(spectrum.shape[1]) / (length * settings.spacing_mm[1])
    weights = _kernel_weights(settings)
    shear = 2 * frequencies * np.tan(np.deg2rad(settings.angle_degrees)) * settings.spacing_mm[2]
    gains = np.sinc(shear * np.arange(len(weights))[:, np.newaxis]) * weights[:, np.newaxis]
    gains /= 2 * gains.sum(axis=0) - gains[0]
    gains = gains.astype(np.float32)[:, :, np.newaxis]
    blurred = spectrum * gains[0]
    for step in range(1, min(len(weights), tissue.shape[2])):
        blurred[:, :, step:] += gains[step] * spectrum[:, :, :-step]
        blurred[:, :, :-step] += gains[step] * spectrum[:, :, step:]
    image = fft.irfft(blurred, length, axis=1)[:, :rows]
    return ndimage.gaussian_filter(image, (0.5, 0.5, 0))


def _box(mass: np.ndarray, lesion_class: str) -> LesionBox:
    """Returns the box around a mass, in the first slice where it has the most voxels."""
    columns, rows = (np.flatnonzero(mass.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    width, height = (int(each[-1] - each[0] + 1) for each in (columns, rows))
    z_index = int(np.argmax(mass.sum(axis=(0, 1))))
    place = (int(columns[0]), int(rows[0]), width, height, z_index)
    return LesionBox(*place, volume_slices=mass.shape[2], lesion_class=lesion_class)
