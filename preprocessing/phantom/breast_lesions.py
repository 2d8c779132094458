"""Masses in a breast, and what looks like them: nodes, cysts, crossing strands; vessels, calcifications."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from preprocessing.phantom.breast import FAT, GLAND, MINERAL, WATER, Axes, Breast, smooth_step

# Distance in mm that is kept between two painted structures.
GAP_MM = 4.0
# Random places that are tried for a structure before it is left out.
TRIES = 400

Ball = tuple[np.ndarray, float]  # a place (x, y, z) and a radius in mm


@dataclass
class Painter:
    """Paints structures into a breast, each at a place of its own.

    A place is (x, y, z) in mm; shares are float32 arrays within a window around it.
    """

    breast: Breast
    axes: Axes
    random: np.random.Generator
    taken: list[Ball]  # what is painted already

    def free_place(self, radius_mm: float, gland: float | None = None) -> np.ndarray | None:
        """Returns a place for a ball inside the breast, and takes it; None without room.

        With the probability `gland`, the place is in glandular tissue if half of the tries find one.
        """
        sizes = self.breast.depth_mm.shape
        in_gland = gland is not None and self.random.random() < gland
        for attempt in range(TRIES):
            index = tuple(int(self.random.integers(size)) for size in sizes)
            place = np.array([axis.ravel()[i] for axis, i in zip(self.axes, index, strict=True)])
            inside = self.breast.depth_mm[index] > radius_mm + 2 and place[0] > radius_mm + 2
            # In the second half of the tries any tissue will do.
            wanted = not in_gland or attempt > TRIES // 2 or self.breast.gland[index] > 0.5
            if inside and wanted and self._is_free(place, radius_mm):
                self.taken.append((place, radius_mm))
                return place
        return None

    def _is_free(self, place: np.ndarray, radius_mm: float) -> bool:
        return all(
            np.linalg.norm(place - other) > radius_mm + radius + GAP_MM
            for other, radius in self.taken
        )

    def window(
        self, place: np.ndarray, reach_mm: float
    ) -> tuple[tuple[slice, ...], tuple[np.ndarray, ...]]:
        """Returns slices of the voxels within `reach_mm` of a place, and their offsets in mm."""
        slices, offsets = [], []
        for axis, middle in zip(self.axes, place, strict=True):
            mm = axis.ravel()
            first, end = np.searchsorted(mm, (middle - reach_mm, middle + reach_mm))
            slices.append(slice(int(first), int(end)))
            offsets.append((mm[first:end] - middle).astype(np.float32))
        return tuple(slices), np.ix_(*offsets)

    def mix(self, window: tuple[slice, ...], share: np.ndarray, level: float) -> None:
        """Replaces tissue in a window by its share of an attenuation in 1/mm; air stays air."""
        share = share * smooth_step(self.breast.depth_mm[window] / 0.3)
        tissue = self.breast.attenuation[window]
        tissue += share * (level - tissue)

    def ball(self, place: np.ndarray, radius_mm: float, level: float) -> None:
        """Paints a small ball, as a part of a tube."""
        window, (x, y, z) = self.window(place, radius_mm + 0.8)
        if min(x.size, y.size, z.size) > 0:
            distance = np.sqrt(x * x + y * y + z * z)
            self.mix(window, smooth_step((radius_mm - distance) / 0.3), level)

    def tube(self, points: np.ndarray, radii_mm: np.ndarray, level: float) -> None:
        """Paints a tube along points [n, 3] closer to each other than their radii."""
        for place, radius in zip(points, radii_mm, strict=True):
            self.ball(place, float(radius), level)


def paint_mass(
    painter: Painter, radius_mm: float, contrast: float, spiculated: bool
) -> np.ndarray | None:
    """Paints a mass of `contrast` times gland; returns the mask of its body, None without room.

    A lobulated mass is a union of balls with a smooth surface; a spiculated one has a smaller, rougher
    body and strands that taper off outwards, which do not belong to the mask.
    """
    random = painter.random
    place = painter.free_place(radius_mm, gland=0.7)
    if place is None:
        return None
    window, (x, y, z) = painter.window(place, 2.4 * radius_mm if spiculated else 1.2 * radius_mm)
    lobes = int(random.integers(3, 7))
    offset, size = ((0.35, 0.55), (0.45, 0.65)) if spiculated else ((0.3, 0.45), (0.5, 0.65))
    # The smooth minimum of the distances to the balls' surfaces.
    union = np.zeros(np.broadcast_shapes(x.shape, y.shape, z.shape), np.float32)
    sharpness = 12 / radius_mm
    for number in range(lobes + 1):
        away = np.zeros(3) if number == 0 else _direction(random) * random.uniform(*offset)
        own = 0.62 if number == 0 else random.uniform(*size)
        dx, dy, dz = (a - radius_mm * b for a, b in zip((x, y, z), away, strict=True))
        distance = np.sqrt(dx * dx + dy * dy + dz * dz) - own * radius_mm
        union += np.exp(-sharpness * np.clip(distance, -2 * radius_mm, 3 * radius_mm))
    body = smooth_step(np.log(np.maximum(union, 1e-30)) / sharpness / 0.35)
    share = body
    if spiculated:
        share = np.maximum(body, _spicules(random, (x, y, z), radius_mm))
    painter.mix(window, share, GLAND * contrast)
    mask = np.zeros(painter.breast.depth_mm.shape, bool)
    mask[window] = (body >= 0.5) & (painter.breast.depth_mm[window] > 0)
    return mask


def _spicules(random, offsets, radius_mm: float) -> np.ndarray:
    """Returns the share of thin cones around the origin, inside a window with these offsets in mm."""
    x, y, z = offsets
    squared = x * x + y * y + z * z
    share = np.zeros(squared.shape, np.float32)
    for _ in range(int(random.integers(14, 26))):
        u = _direction(random)
        length = radius_mm * random.uniform(1.2, 2.3)
        along = u[0] * x + u[1] * y + u[2] * z
        across = np.sqrt(np.maximum(squared - along * along, 0))
        width = (0.12 * radius_mm + 0.2) * (1 - along / length)
        inside = smooth_step((width - across) / 0.25) * (along > 0)
        np.maximum(share, inside * np.float32(random.uniform(0.6, 1.0)), out=share)
    return share


def paint_node(painter: Painter) -> None:
    """Paints a lymph node: an ellipsoid as dense as gland with a fatty hilum at one side."""
    random = painter.random
    longest = random.uniform(3, 6.5)
    place = painter.free_place(longest)
    if place is None:
        return
    window, offsets = painter.window(place, longest + 1)
    turn = _rotation(random)
    u, v, w = (sum(t * offset for t, offset in zip(row, offsets, strict=True)) for row in turn)
    flat = random.uniform(0.5, 0.7)
    node = (
        longest * flat * (1 - np.sqrt((u / longest) ** 2 + (v**2 + w**2) / (flat * longest) ** 2))
    )
    hilum = 0.45 * longest - np.sqrt((0.6 * u) ** 2 + (v - 0.45 * flat * longest) ** 2 + w**2)
    level = GLAND * random.uniform(0.97, 1.03)
    painter.mix(window, smooth_step(node / 0.3), level)
    painter.mix(window, smooth_step(np.minimum(node, hilum) / 0.3), FAT)


def paint_cyst(painter: Painter) -> None:
    """Paints a cyst: a smooth ellipsoid of water, hardly denser than gland."""
    random = painter.random
    radius = random.uniform(2.5, 7)
    place = painter.free_place(radius)
    if place is None:
        return
    window, (x, y, z) = painter.window(place, 1.1 * radius + 1)
    distance = np.sqrt(
        x * x + (y * random.uniform(1, 1.2)) ** 2 + (z * random.uniform(1, 1.3)) ** 2
    )
    painter.mix(window, smooth_step((radius - distance) / 0.3), WATER)


def paint_strands(painter: Painter) -> None:
    """Paints fibrous strands at different depths that cross in a view from above."""
    random = painter.random
    place = painter.free_place(4.0)
    if place is None:
        return
    count = int(random.integers(3, 5))
    for angle, height in zip(
        np.linspace(0, np.pi, count, endpoint=False) + random.uniform(0, np.pi),
        random.permutation(np.linspace(-7, 7, count)),
        strict=True,
    ):
        half = random.uniform(6, 14)
        steps = np.arange(-half, half, 0.6)
        direction = np.array([np.cos(angle), np.sin(angle), random.uniform(-0.15, 0.15)])
        points = place + np.array([0, 0, height]) + steps[:, np.newaxis] * direction
        radii = random.uniform(0.9, 1.8) * np.sqrt(np.maximum(1 - (steps / half) ** 2, 0.1))
        painter.tube(points, radii, GLAND * random.uniform(0.98, 1.08))


def paint_vessels(painter: Painter, count: int) -> None:
    """Paints vessels that wind from the chest wall towards the nipple."""
    random, axes = painter.random, painter.axes
    last = float(axes[0].max())
    for _ in range(count):
        x = np.arange(0, last, 0.6)
        y, z = (float(axis.max()) * random.uniform(-0.7, 0.7) for axis in axes[1:])
        towards = np.clip(x / last, 0, 1)
        sideways = np.cumsum(np.cumsum(random.normal(0, 0.02, (2, x.size)), axis=1), axis=1)
        sideways = np.clip(sideways, -8, 8)
        points = np.stack(
            [x, y * (1 - 0.8 * towards) + sideways[0], z * (1 - 0.5 * towards) + sideways[1]],
            axis=1,
        )
        radii = random.uniform(0.5, 1.1) * (1 - 0.6 * towards)
        painter.tube(points, radii, GLAND)


def paint_calcifications(painter: Painter) -> None:
    """Paints a cluster of specks of 0.15 to 0.5 mm; no target of the detection of masses."""
    random = painter.random
    place = painter.free_place(3.0)
    if place is None:
        return
    mm = [axis.ravel() for axis in painter.axes]
    voxel_mm3 = float(np.prod([float(axis[1] - axis[0]) for axis in mm]))
    for _ in range(int(random.integers(5, 16))):
        speck = place + _direction(random) * random.uniform(0, 3)
        index = tuple(
            int(np.argmin(np.abs(axis - middle))) for axis, middle in zip(mm, speck, strict=True)
        )
        share = min(1.0, np.pi / 6 * random.uniform(0.15, 0.5) ** 3 / voxel_mm3)
        painter.breast.attenuation[index] += share * (MINERAL - painter.breast.attenuation[index])


def _direction(random: np.random.Generator) -> np.ndarray:
    """Returns a random unit vector."""
    vector = random.standard_normal(3)
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


def _rotation(random: np.random.Generator) -> np.ndarray:
    """Returns a random rotation, 3 x 3."""
    return np.linalg.qr(random.standard_normal((3, 3)))[0]
