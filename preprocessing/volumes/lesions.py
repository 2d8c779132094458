"""Lesion boxes and lesion heat maps: soft ellipsoids from boxes, soft borders from masks.

Both use one profile: with r = 0 at the centre of a lesion and r = 1 on its surface, the heat map is
h(r) = max(0, 1 - r^2 / 2), that is 1 at the centre, 1/2 on the surface, and 0 from r = sqrt(2). So
h >= 1/2 is the lesion itself. Stored as uint8, with 255 for 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from preprocessing.errors import InputError
from preprocessing.volumes.geometry import TargetGrid

# Stored heat map values from here on are at least 1/2: the voxel belongs to the lesion.
LESION_THRESHOLD = 128
# Radius r at which the profile reaches 0.
REACH = math.sqrt(2)
# Minimum radius in voxels, half a voxel's diagonal: every lesion then contains a voxel centre.
SMALLEST_RADIUS = math.sqrt(3) / 2


@dataclass(frozen=True)
class LesionBox:
    """A rectangle around a lesion in one slice, in voxels of the volume in file order."""

    x: int  # first column (file axis 0)
    y: int  # first row (file axis 1)
    width: int  # number of columns
    height: int  # number of rows
    slice_index: int  # central slice of the lesion (file axis 2), from 0
    volume_slices: int  # number of slices of the volume
    lesion_class: str  # "benign" or "cancer"
    where: str = "box"  # file and row of the box, for error messages


def box_ellipsoid(
    box: LesionBox, spacing_mm: tuple[float, float, float]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Returns centre and radii (x, y, z), in voxels, of the ellipsoid of a box.

    In-plane, the ellipse touches the four sides of the box. The depth is the mean of the two sides
    in mm (masses are about as deep as wide), centred on the box's slice, but at most a quarter of
    the volume's slices to either side: BCS-DBT's scoring counts detections up to there as hits.
    """
    mean_side_mm = (box.width * spacing_mm[0] + box.height * spacing_mm[1]) / 2
    half_depth = min(mean_side_mm / 2 / spacing_mm[2], box.volume_slices / 4)
    centre = (box.x + (box.width - 1) / 2, box.y + (box.height - 1) / 2, float(box.slice_index))
    return centre, (box.width / 2, box.height / 2, half_depth)


def check_boxes(boxes: Sequence[LesionBox], shape: tuple[int, int, int]) -> None:
    """Raises InputError, with the table row, for a box outside a volume of this shape (x, y, z)."""
    columns, rows, slices = shape
    for box in boxes:
        right, bottom = box.x + box.width, box.y + box.height
        if box.volume_slices != slices:
            raise InputError(box.where, f"VolumeSlices {slices} (the volume's)", box.volume_slices)
        if not 0 <= box.slice_index < slices:
            raise InputError(box.where, f"a Slice from 0 to {slices - 1}", box.slice_index)
        if min(box.width, box.height) < 1:
            found = f"{box.width} x {box.height}"
            raise InputError(box.where, "Width and Height of at least 1", found)
        if min(box.x, box.y) < 0 or right > columns or bottom > rows:
            expected = f"a box within the image's {columns} columns and {rows} rows"
            found = f"X {box.x} to {right}, Y {box.y} to {bottom}"
            remedy = "Box coordinates start at the upper left corner of the image as it is read."
            raise InputError(box.where, expected, found, remedy)


def box_heat_map(boxes: Sequence[LesionBox], grid: TargetGrid) -> np.ndarray:
    """Returns the heat map of boxes on a target grid, uint8 [z, y, x]; maximum on overlaps.

    Each ellipsoid (`box_ellipsoid`) is evaluated on the target grid itself, without resampling,
    with radii of at least `SMALLEST_RADIUS` on grids that are too coarse for the lesion. Raises as
    `check_boxes`.
    """
    check_boxes(boxes, grid.input_shape)
    heat_map = np.zeros(grid.shape_zyx, np.uint8)
    for box in boxes:
        centre, radii = box_ellipsoid(box, grid.input_spacing_mm)
        spans, squares = [], []
        for position, axis in enumerate(grid.axes):
            scale = grid.input_spacing_mm[axis] / grid.spacing_mm[position]
            from_middle = centre[axis] - (grid.input_shape[axis] - 1) / 2
            size = grid.shape_zyx[2 - position]
            sign = -1 if grid.flipped[position] else 1
            middle = (size - 1) / 2 + sign * scale * from_middle
            radius = max(SMALLEST_RADIUS, scale * radii[axis])
            first = max(0, math.ceil(middle - REACH * radius))
            end = min(size, math.floor(middle + REACH * radius) + 1)
            spans.append(slice(first, end))
            squares.append(np.square((np.arange(first, end) - middle) / radius))
        x, y, z = squares
        plane = np.add.outer(y, x)
        for square, target in zip(z, heat_map[tuple(reversed(spans))], strict=True):
            np.maximum(target, _stored(square + plane), out=target)
    return heat_map


def mask_heat_map(label_zyx: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Returns the heat map, uint8 [z, y, x], of a lesion mask [z, y, x]; spacing is (x, y, z).

    It is at least `LESION_THRESHOLD` exactly on the mask. For each connected region (26
    neighbours), D is the largest distance in mm from the inside to the surface, half a voxel before
    the nearest outside voxel. At distance d from the surface, r is 1 - d / D inside and 1 + d / D
    outside: for a ball, its true radius.
    """
    heat_map = np.zeros(label_zyx.shape, np.uint8)
    sampling = spacing_mm[::-1]
    half_mm = min(spacing_mm) / 2
    boxes = ndimage.find_objects((label_zyx > 0).view(np.uint8))
    if not boxes:
        return heat_map
    (box,) = boxes
    regions, _ = ndimage.label(label_zyx[box] > 0, np.ones((3, 3, 3)))
    for number, bounds in enumerate(ndimage.find_objects(regions), start=1):
        inside = np.pad(regions[bounds] == number, 1)
        depth_mm = ndimage.distance_transform_edt(inside, sampling).max() - half_mm
        reach_mm = (REACH - 1) * depth_mm + half_mm
        reach = [math.ceil(reach_mm / step_mm) for step_mm in sampling]
        inside = np.pad(inside, [(voxels, voxels) for voxels in reach])
        distance_mm = ndimage.distance_transform_edt(~inside, sampling)
        distance_mm -= ndimage.distance_transform_edt(inside, sampling)
        radius = 1 + (distance_mm - np.copysign(half_mm, distance_mm)) / depth_mm
        # Paste the part of the padded region that lies inside the volume.
        corner = [c.start + b.start - 1 - n for c, b, n in zip(box, bounds, reach, strict=True)]
        first = np.array(corner)
        target = heat_map[tuple(map(slice, np.maximum(first, 0), first + radius.shape))]
        values = radius[tuple(map(slice, np.maximum(-first, 0), heat_map.shape - first))]
        np.maximum(target, _stored(np.square(values)), out=target)
    return heat_map


def _stored(squared_radius: np.ndarray) -> np.ndarray:
    """Returns the profile at squared radii as stored uint8."""
    return np.rint(255 * np.clip(1 - squared_radius / 2, 0, 1)).astype(np.uint8)
