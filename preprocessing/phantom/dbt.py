"""Synthetic breast tomosynthesis with exactly known masses.

A breast in voxels (`breast`, `breast_lesions`) is projected over the arc of a wide or a narrow system,
with noise and blur, and reconstructed by filtered back-projection (`tomosynthesis`); the slices are scaled
like those of some vendor. Every case follows from its number and the seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from preprocessing.errors import SettingsError
from preprocessing.phantom.breast import DENSITIES, DENSITY_SHARES, Axes, Breast, make_breast
from preprocessing.phantom.breast_lesions import (
    Ball,
    Painter,
    paint_calcifications,
    paint_cyst,
    paint_mass,
    paint_node,
    paint_strands,
    paint_vessels,
)
from preprocessing.phantom.ct import at_least_half, centred_volume, check_settings, varied_grid
from preprocessing.phantom.tomosynthesis import ARCS, Scan, measured, project, reconstruct
from preprocessing.settings import is_number
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.lesions import LesionBox

VIEWS = ("lcc", "rcc", "lmlo", "rmlo")
BITS = (10, 14)
# Largest distance of the planes in which tissue is computed.
PLANE_MM = 0.6
# Range of `Scan.ramp_from` by arc: how much of the coarse brightness a system keeps.
RAMP_FROM = {"wide": (0.01, 0.04), "narrow": (0.02, 0.06)}


@dataclass(frozen=True)
class DBTSettings:
    """Settings of a synthetic DBT data set."""

    shape_xyz: tuple[int, int, int] = (160, 288, 40)  # mean; slices vary up to an eighth
    spacing_mm: tuple[float, float, float] = (0.4, 0.4, 1.0)  # voxel spacing (x, y, z)
    most_masses: int = 2  # maximum per case
    fewest_masses: int = 0  # minimum per case, where there is room
    mass_diameter_mm: tuple[float, float] = (5.0, 25.0)  # each as frequent
    mass_contrast: tuple[float, float] = (1.0, 1.15)  # attenuation relative to glandular tissue
    # Nodes, cysts and crossing strands, maximum per case; the minimum is half of it.
    lookalikes: int = 3
    arc: str = "any"  # "wide", "narrow", or "any": one or the other by case
    density: str = "any"  # BI-RADS class "a" to "d", or "any": as frequent as among women

    def __post_init__(self) -> None:
        check_settings(vars(self), "masses", smallest=8)
        for name in ("mass_diameter_mm", "mass_contrast"):
            pair = getattr(self, name)
            if len(pair) != 2 or not all(map(is_number, pair)) or not 0 < pair[0] <= pair[1]:
                expected = f"two positive numbers, ascending, as {name}"
                raise SettingsError("phantom", expected, pair)
        if self.lookalikes < 0:
            raise SettingsError("phantom", "lookalikes >= 0", self.lookalikes)
        for name, values in (("arc", ARCS), ("density", DENSITIES)):
            if getattr(self, name) not in ("any", *values):
                expected = f"{name} among any, {', '.join(values)}"
                raise SettingsError("phantom", expected, getattr(self, name))


@dataclass(frozen=True, eq=False)
class DBTCase:
    """A synthetic DBT volume and its ground truth."""

    image: Volume  # uint16 [x, y, z]; x columns, y rows from the top
    label: Volume  # uint8, 1 in masses
    boxes: tuple[LesionBox, ...]  # one per mass, around all of it, in the slice where it is largest
    view: str  # laterality and projection, one of `VIEWS`
    density: str  # BI-RADS class, "a" to "d"
    arc: str  # "wide" or "narrow"
    bits: int  # of the image's values, 10 or 14


def make_case(seed: int, number: int = 0, settings: DBTSettings | None = None) -> DBTCase:
    """Makes one case; the same seed, number and settings always give the same voxels.

    Label map and boxes are exact: they are computed from the shapes, before blur and noise. The chest
    wall is on the left of the image in left views and on the right in right views.
    """
    settings = settings or DBTSettings()
    random = np.random.default_rng([seed, number])
    view = VIEWS[int(random.integers(len(VIEWS)))]
    density = str(random.choice(list(DENSITIES), p=DENSITY_SHARES))
    arc = str(random.choice(list(ARCS)))
    density = density if settings.density == "any" else settings.density
    arc = arc if settings.arc == "any" else settings.arc
    bits = int(random.choice(BITS))
    # Where the darkest and the brightest values lie, in shares of white.
    offset, gain = random.uniform(-0.05, 0.15), random.uniform(0.5, 0.85)
    _, (x, y, z) = varied_grid(random, settings.shape_xyz, settings.spacing_mm)
    # The parts of a case have generators of their own: each stays as it is if another changes.
    randoms = [np.random.default_rng([seed, number, part]) for part in range(1, 5)]
    planes = max(1, int(np.ceil(settings.spacing_mm[2] / PLANE_MM)))
    within = ((np.arange(planes) + 0.5) / planes - 0.5) * settings.spacing_mm[2]
    plane_mm = np.add.outer(z.ravel(), within).ravel()
    # x counts from the chest wall.
    axes = (x - x[0], y, plane_mm.reshape(1, 1, -1))

    breast = make_breast(randoms[0], axes, density, view.endswith("mlo"))
    taken = _paint_others(breast, axes, randoms[1], settings)
    regions = _paint_masses(Painter(breast, axes, randoms[2], taken), planes, settings)
    slices = _scanned(breast.attenuation, z.ravel(), plane_mm, arc, randoms[3], settings)
    image = _scaled(slices, bits, offset, gain)

    label = np.zeros(image.shape, np.uint8)
    for mass, _ in regions:
        label[mass] = 1
    if view.startswith("r"):
        image, label = image[::-1], label[::-1]
        regions = [(mass[::-1], kind) for mass, kind in regions]
    boxes = tuple(_box(mass, kind) for mass, kind in regions)
    # In half of the cases x and y have the opposite direction.
    steps_mm = np.array([(1, 1, 1), (-1, -1, 1)][int(random.integers(2))]) * settings.spacing_mm
    volumes = (centred_volume(image, steps_mm), centred_volume(label, steps_mm))
    return DBTCase(*volumes, boxes, view, density, arc, bits)


def _paint_others(breast: Breast, axes: Axes, random, settings: DBTSettings) -> list[Ball]:
    """Paints vessels, lookalikes and calcifications; returns where they are."""
    painter = Painter(breast, axes, random, [])
    paint_vessels(painter, int(random.integers(2, 6)))
    for _ in range(at_least_half(random, settings.lookalikes)):
        paint = (paint_node, paint_cyst, paint_strands)[int(random.integers(3))]
        paint(painter)
    if random.random() < 0.3:
        paint_calcifications(painter)
    return painter.taken


def _paint_masses(
    painter: Painter, planes: int, settings: DBTSettings
) -> list[tuple[np.ndarray, str]]:
    """Paints masses, half of them spiculated; returns their masks on the slices and their classes."""
    random, regions = painter.random, []
    most_mm = 0.5 * float(np.ptp(painter.axes[2])) - 3
    for _ in range(int(random.integers(settings.fewest_masses, settings.most_masses + 1))):
        diameter = random.uniform(*settings.mass_diameter_mm)
        spiculated = bool(random.random() < 0.5)
        contrast = random.uniform(*settings.mass_contrast)
        radius = max(0.5, min(diameter / 2, most_mm))
        mask = paint_mass(painter, radius, contrast, spiculated)
        while mask is None and 2 * radius > settings.mass_diameter_mm[0]:
            # Small breasts have no room for large masses.
            radius *= 0.7
            mask = paint_mass(painter, radius, contrast, spiculated)
        if mask is None:
            continue
        # A voxel of a slice is a mass's if half of it is.
        shares = mask.reshape(*mask.shape[:2], -1, planes).mean(axis=3)
        on_slices = shares >= 0.5
        if on_slices.any():
            regions.append((on_slices, "cancer" if spiculated else "benign"))
    return regions


def _scanned(
    attenuation: np.ndarray, z_mm, plane_mm, arc: str, random, settings: DBTSettings
) -> np.ndarray:
    """Returns the slices at `z_mm` as a system reconstructs them, float32 [x, y, z]."""
    arc_degrees, views = ARCS[arc]
    scan = Scan(
        arc_degrees,
        views,
        quanta_mm2=np.exp(random.uniform(*np.log((1e4, 6e4)))),
        blur_mm=random.uniform(0.1, 0.25),
        ramp_from=np.exp(random.uniform(*np.log(RAMP_FROM[arc]))),
    )
    pixel_x_mm, pixel_y_mm, _ = settings.spacing_mm
    shift_mm = float(np.abs(plane_mm).max()) * np.tan(scan.angles[-1])
    margin = int(np.ceil(shift_mm / pixel_y_mm)) + 1
    integrals = project(attenuation, plane_mm, scan.angles, pixel_y_mm, margin)
    integrals = measured(integrals, scan, (pixel_x_mm, pixel_y_mm), random)
    return reconstruct(integrals, z_mm, scan, pixel_y_mm, margin)


def _scaled(slices: np.ndarray, bits: int, offset: float, gain: float) -> np.ndarray:
    """Returns slices on the scale of some vendor, uint16 [x, y, z]."""
    low, high = np.percentile(slices[::2, ::2], (0.5, 99.8))
    scaled = (slices - low) / max(float(high - low), 1e-9) * gain + offset
    return np.rint(np.clip(scaled, 0, 1) * (2**bits - 1)).astype(np.uint16)


def _box(mass: np.ndarray, lesion_class: str) -> LesionBox:
    """Returns the box around a mass, in the first slice where it has the most voxels."""
    columns, rows = (np.flatnonzero(mass.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    width, height = (int(each[-1] - each[0] + 1) for each in (columns, rows))
    z_index = int(np.argmax(mass.sum(axis=(0, 1))))
    place = (int(columns[0]), int(rows[0]), width, height, z_index)
    return LesionBox(*place, volume_slices=mass.shape[2], lesion_class=lesion_class)
