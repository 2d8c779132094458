"""Synthetic abdominal CT with exactly known liver and tumours.

Made so that a network has something to learn: the spleen, the kidneys and the muscles are as bright
as the liver, so brightness alone does not find it; place, shape, contrast, tumours, table noise and
the orientation on disk vary from case to case.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from preprocessing.errors import SettingsError
from preprocessing.volumes.geometry import Volume

AIR_HU = -1000.0
ORIENTATIONS = ("RAS", "LPS", "LAS")
# How much darker than the liver a tumour is.
TUMOUR_CONTRAST_HU = (35.0, 60.0)
# A texture has structures of about this size (standard deviation of a Gaussian).
TEXTURE_MM = 2.0


@dataclass(frozen=True)
class PhantomSettings:
    """What all cases of a synthetic CT data set have in common.

    Attributes:
      shape_xyz: voxels of the mean case; the number of slices varies by up to an eighth.
      spacing_mm: voxel spacing (x, y, z).
      most_tumours: a case has from none to this many.
      noise_hu: standard deviation of the noise; each case has between half and all of it.
      blur_mm: in-plane standard deviation of the scanner's blur.
      fewest_tumours: a case has at least this many.
      tumour_radius_mm: smallest and largest mean radius of a tumour, and of what looks like one.
      texture_hu: standard deviation of the in-plane texture within tumours.
      cysts: a case has from half to all of this many: like tumours, but without texture.
      flat_lookalikes: a case has from half to all of this many: one slice of a tumour, without the others.
    """

    shape_xyz: tuple[int, int, int] = (128, 128, 32)
    spacing_mm: tuple[float, float, float] = (2.5, 2.5, 5.0)
    most_tumours: int = 3
    noise_hu: float = 24.0
    blur_mm: float = 2.0
    fewest_tumours: int = 0
    tumour_radius_mm: tuple[float, float] = (7.0, 24.0)
    texture_hu: float = 0.0
    cysts: int = 0
    flat_lookalikes: int = 0

    def __post_init__(self):
        if len(self.shape_xyz) != 3 or min(self.shape_xyz) < 4:
            raise SettingsError("phantom", "a shape of at least 4 voxels an axis", self.shape_xyz)
        if len(self.spacing_mm) != 3 or not min(self.spacing_mm) > 0:
            raise SettingsError("phantom", "a positive spacing in mm", self.spacing_mm)
        if not 0 <= self.fewest_tumours <= self.most_tumours:
            counts = (self.fewest_tumours, self.most_tumours)
            raise SettingsError("phantom", "0 <= fewest_tumours <= most_tumours", counts)


def make_case(
    seed: int, number: int = 0, settings: PhantomSettings | None = None
) -> tuple[Volume, Volume]:
    """Makes one case; the same seed, number and settings always give the same voxels.

    The label map is computed from the shapes themselves, before blur and noise.

    Args:
      seed: of the data set.
      number: of the case within it.
      settings: the data set's settings.

    Returns:
      The image (int16 HU) and its label map (uint8: 0 background, 1 liver, 2 tumour).
    """
    settings = settings or PhantomSettings()
    random = np.random.default_rng([seed, number])
    slices = settings.shape_xyz[2]
    slices += int(random.integers(-(slices // 8), slices // 8 + 1))
    shape = (*settings.shape_xyz[:2], slices)
    x, y, z = _coordinates_mm(shape, settings.spacing_mm)
    # All anatomy is laid out for a field of view of 320 mm and 160 mm of slices.
    scale = min(n * s for n, s in zip(shape[:2], settings.spacing_mm[:2], strict=True)) / 320.0
    height = shape[2] * settings.spacing_mm[2] / 160.0
    x, y, z = x / scale, y / scale, z / height
    x, y = x - random.uniform(-6, 6), y - random.uniform(-6, 6)

    hu = np.full(shape, AIR_HU, np.float32)
    body = _paint_body(hu, random, x, y, z)
    liver_hu = random.uniform(70, 110)
    _paint_distractors(hu, random, liver_hu, x, y, z)
    liver = _liver(random, x, y, z) & body
    hu[liver] = liver_hu
    axes_mm = (x * scale, y * scale, z * height)
    # Of numbers of their own: the rest of a case is the same with them and without.
    own_random = np.random.default_rng([seed, number, 1])
    textured = _paint_lookalikes(hu, own_random, liver, liver_hu, axes_mm, settings)
    label = liver.astype(np.uint8)
    for _ in range(int(random.integers(settings.fewest_tumours, settings.most_tumours + 1))):
        tumour = _tumour(random, liver, *axes_mm, settings.tumour_radius_mm)
        hu[tumour] = liver_hu - random.uniform(*TUMOUR_CONTRAST_HU)
        label[tumour] = 2
    if settings.texture_hu:
        textured |= label == 2
        hu[textured] += settings.texture_hu * _texture(own_random, settings, shape)[textured]
    _paint_bones(hu, random, x, y, z)
    label[hu > 300] = 0
    image = _scanned(hu, random, settings)

    codes = ORIENTATIONS[int(random.integers(len(ORIENTATIONS)))]
    return _stored(image, codes, settings), _stored(label, codes, settings)


def _coordinates_mm(shape, spacing_mm) -> list[np.ndarray]:
    """Returns broadcastable coordinates x (right), y (anterior), z (up) from the grid's centre."""
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing_mm, strict=True)]
    return [axis.astype(np.float32) for axis in np.ix_(*axes)]


def _ellipsoid(x, y, z, centre, radii, turn_degrees: float = 0.0) -> np.ndarray:
    """Returns |p|^2 in units of the radii: < 1 inside; turned in the plane by an angle."""
    cosine, sine = np.cos(np.deg2rad(turn_degrees)), np.sin(np.deg2rad(turn_degrees))
    x, y, z = x - centre[0], y - centre[1], z - centre[2]
    u, v = cosine * x + sine * y, -sine * x + cosine * y
    return (u / radii[0]) ** 2 + (v / radii[1]) ** 2 + (z / radii[2]) ** 2


def _paint_body(hu, random, x, y, z) -> np.ndarray:
    """Paints fat, muscle wall, organs' bed and the lungs' bases; returns what lies inside the wall."""
    a, b = random.uniform(118, 140), random.uniform(88, 104)
    rim, wall = random.uniform(6, 16), random.uniform(6, 10)
    taper = 1 - 0.0006 * np.abs(z)
    hu[np.broadcast_to((x / (a * taper)) ** 2 + (y / (b * taper)) ** 2 < 1, hu.shape)] = (
        random.uniform(-115, -90)
    )
    muscle = (x / ((a - rim) * taper)) ** 2 + (y / ((b - rim) * taper)) ** 2 < 1
    hu[np.broadcast_to(muscle, hu.shape)] = random.uniform(50, 70)
    a, b = (a - rim - wall) * taper, (b - rim - wall) * taper
    inside = np.broadcast_to((x / a) ** 2 + (y / b) ** 2 < 1, hu.shape)
    # Bowel and fat between the organs: soft patches of different brightness.
    patches = ndimage.gaussian_filter(random.standard_normal(hu.shape, np.float32), (6, 6, 2.5))
    patches *= 45 / patches.std()
    hu[inside] = np.clip(random.uniform(-20, 15) + patches, -110, 70)[inside]
    for side in (-1, 1):
        lung = _ellipsoid(x, y, z, (side * 62, -5, 95), (52, 62, random.uniform(45, 70)))
        hu[inside & (lung < 1)] = random.uniform(-870, -780)
    return inside


def _paint_distractors(hu, random, liver_hu, x, y, z) -> None:
    """Paints spleen, kidneys, stomach and great vessels, as bright as the liver or nearly so."""

    def near(*values, spread=6.0):
        return [value + random.uniform(-spread, spread) for value in values]

    spleen = _ellipsoid(
        x, y, z, near(-76, -22, 15), near(22, 36, 38, spread=4), random.uniform(-25, 5)
    )
    hu[spleen < 1] = liver_hu + random.uniform(-12, 18)
    for side in (-1, 1):
        kidney = _ellipsoid(
            x, y, z, near(side * 50, -48, -38), near(20, 26, 42, spread=3), side * 20
        )
        hu[kidney < 1] = liver_hu + random.uniform(-5, 45)
        hu[kidney < 0.25] = random.uniform(-60, 10)
    stomach = _ellipsoid(x, y, z, near(-42, 42, 30), near(34, 24, 34), random.uniform(-30, 30))
    hu[stomach < 1] = random.uniform(0, liver_hu)
    for centre, radius in (((8, -38), 11), ((-6, -40), 8)):
        vessel = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
        hu[np.broadcast_to(vessel, hu.shape)] = liver_hu + random.uniform(0, 50)


def _liver(random, x, y, z) -> np.ndarray:
    """Returns the liver: a right lobe, a left lobe that tapers across the midline, a wavy surface."""
    centre = np.array([random.uniform(42, 58), random.uniform(0, 16), random.uniform(0, 25)])
    right = _ellipsoid(
        x,
        y,
        z,
        centre,
        (random.uniform(44, 54), random.uniform(54, 66), random.uniform(46, 62)),
        random.uniform(-20, 20),
    )
    left = _ellipsoid(
        x,
        y,
        z,
        centre
        + np.array([random.uniform(-55, -40), random.uniform(14, 26), random.uniform(8, 20)]),
        (random.uniform(40, 58), random.uniform(20, 30), random.uniform(24, 36)),
        random.uniform(-15, 15),
    )
    waves = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), np.float32)
    for _ in range(6):
        wave_number = random.normal(0, 1, 3) / (18, 18, 22)
        phase = random.uniform(0, 2 * np.pi)
        waves += np.sin(x * wave_number[0] + y * wave_number[1] + z * wave_number[2] + phase)
    # A smooth union: both lobes' distances in one soft minimum.
    union = -np.logaddexp(-8 * right, -8 * left) / 8
    return union + 0.06 * waves < 1


def _tumour(random, liver, x, y, z, radius_mm) -> np.ndarray:
    """Returns an ellipsoid around a voxel of the liver, cut off at the liver's surface."""
    inside = np.flatnonzero(liver)
    if not inside.size:
        return np.zeros_like(liver)
    i, j, k = np.unravel_index(int(random.choice(inside)), liver.shape)
    radius = random.uniform(*radius_mm)
    radii = radius * random.uniform(0.8, 1.2, 3)
    centre = (x[i, 0, 0], y[0, j, 0], z[0, 0, k])
    return liver & (_ellipsoid(x, y, z, centre, radii, random.uniform(0, 90)) < 1)


def _paint_lookalikes(hu, random, liver, liver_hu, axes_mm, settings) -> np.ndarray:
    """Paints what is no tumour but looks like one: cysts, and single slices of tumours.

    Returns the voxels of the latter, which have the texture of tumours.
    """
    for _ in range(_half_or_more(random, settings.cysts)):
        cyst = _tumour(random, liver, *axes_mm, settings.tumour_radius_mm)
        hu[cyst] = liver_hu - random.uniform(*TUMOUR_CONTRAST_HU)
    flat = np.zeros_like(liver)
    for _ in range(_half_or_more(random, settings.flat_lookalikes)):
        tumour = _tumour(random, liver, *axes_mm, settings.tumour_radius_mm)
        filled = np.flatnonzero(tumour.any(axis=(0, 1)))
        if filled.size:
            one = int(random.choice(filled))
            hu[..., one][tumour[..., one]] = liver_hu - random.uniform(*TUMOUR_CONTRAST_HU)
            flat[..., one] |= tumour[..., one]
    return flat


def _half_or_more(random, most: int) -> int:
    return int(random.integers((most + 1) // 2, most + 1))


def _texture(random, settings: PhantomSettings, shape) -> np.ndarray:
    """Returns noise of deviation 1 without coarse and without very fine structures, a slice by itself."""
    noise = random.standard_normal(shape, np.float32)
    fine = [TEXTURE_MM / spacing for spacing in settings.spacing_mm[:2]]
    texture = ndimage.gaussian_filter(noise, (*fine, 0))
    texture -= ndimage.gaussian_filter(noise, (2 * fine[0], 2 * fine[1], 0))
    return texture / texture.std()


def _paint_bones(hu, random, x, y, z) -> None:
    """Paints the spine and ribs that slant down towards the front."""
    spine = ((x / 19) ** 2 + ((y + 62) / 16) ** 2 < 1) & (np.mod(z, 34) > 4)
    hu[np.broadcast_to(spine, hu.shape)] = random.uniform(350, 550)
    a, b = random.uniform(104, 110), random.uniform(76, 82)
    ring = np.abs(np.sqrt((x / a) ** 2 + (y / b) ** 2) - 1) < 0.035
    ribs = ring & (np.mod(z + 0.35 * y + random.uniform(0, 28), 28) < 9) & (z > -45)
    hu[ribs & (hu > -300)] = random.uniform(400, 600)


def _scanned(hu, random, settings: PhantomSettings) -> np.ndarray:
    """Adds blur, partial volume between slices, and noise; returns int16 HU."""
    in_plane = [settings.blur_mm / spacing for spacing in settings.spacing_mm[:2]]
    blurred = ndimage.gaussian_filter(hu, (*in_plane, 0.4), mode="nearest")
    noise = random.standard_normal(hu.shape, np.float32)
    noise = ndimage.gaussian_filter(noise, (0.5, 0.5, 0))
    noise *= settings.noise_hu * random.uniform(0.5, 1) / noise.std()
    return np.rint(np.clip(blurred + noise, -1024, 3071)).astype(np.int16)


def _stored(voxels, codes: str, settings: PhantomSettings) -> Volume:
    """Returns the voxels in an orientation on disk; the grid's centre is the origin."""
    affine = np.diag([*settings.spacing_mm, 1.0])
    for axis, (code, positive) in enumerate(zip(codes, "RAS", strict=True)):
        if code != positive:
            voxels = np.flip(voxels, axis)
            affine[axis, axis] *= -1
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(voxels.shape) - 1) / 2)
    return Volume(np.asfortranarray(voxels), affine)
