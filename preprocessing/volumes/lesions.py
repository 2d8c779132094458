"""Lesions as heat maps: soft ellipsoids from the boxes of one slice, soft borders from masks.

One profile for both. With r = 0 at a lesion's centre and r = 1 on its surface the heat map is
h(r) = max(0, 1 - r^2 / 2): 1 at the centre, 1/2 on the surface, 0 from r = sqrt(2) on. So h >= 1/2 is
the lesion itself, the peak is where the lesion is, and slices out of its reach are exactly 0.

Stored as uint8, 255 being 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from preprocessing.errors import InputError
from preprocessing.volumes.geometry import TargetGrid

# A stored heat map of at least this is at least 1/2: the voxel belongs to the lesion.
LESION_THRESHOLD = 128
# Where the profile reaches 0, in radii.
REACH = math.sqrt(2)
# Radii in voxels: at least half a voxel's diagonal, so that every lesion holds a voxel's centre.
SMALLEST_RADIUS = math.sqrt(3) / 2


@dataclass(frozen=True)
class LesionBox:
    """A rectangle around a lesion in one slice, in voxels of the volume as it is read.

    Attributes:
      x: first column (file axis 0).
      y: first row (file axis 1).
      width: columns.
      height: rows.
      slice_index: the lesion's central slice (file axis 2), from 0 on.
      volume_slices: slices of the volume that the box was drawn in.
      lesion_class: "benign" or "cancer".
      where: file and row that the box comes from, for messages.
    """

    x: int
    y: int
    width: int
    height: int
    slice_index: int
    volume_slices: int
    lesion_class: str
    where: str = "box"


def box_ellipsoid(
    box: LesionBox, spacing_mm: tuple[float, float, float]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Returns the ellipsoid of a box as centre and radii (x, y, z), in voxels of the volume.

    In the plane it is the ellipse that touches the box's four sides. The depth rule: a box has one
    slice, so the lesion is taken to be as deep as the mean of its two sides in mm, centred on that
    slice, but to reach at most a quarter of the volume's slices to either side. Masses are about as
    deep as they are wide, and the field's scorer (BCS-DBT) takes a detection for a hit up to a quarter of
    the slices away, so a target within that distance never teaches a false positive.

    Args:
      box: in voxels.
      spacing_mm: voxel spacing (x, y, z) of the volume that the box lies in.
    """
    mean_side_mm = (box.width * spacing_mm[0] + box.height * spacing_mm[1]) / 2
    half_depth = min(mean_side_mm / 2 / spacing_mm[2], box.volume_slices / 4)
    centre = (box.x + (box.width - 1) / 2, box.y + (box.height - 1) / 2, float(box.slice_index))
    return centre, (box.width / 2, box.height / 2, half_depth)


def check_boxes(boxes: Sequence[LesionBox], shape: tuple[int, int, int]) -> None:
    """Checks that boxes lie in a volume of this shape (x, y, z).

    Raises:
      InputError: names the box's row, what was expected and what was found.
    """
    columns, rows, slices = shape
    for box in boxes:
        if box.volume_slices != slices:
            raise InputError(box.where, f"VolumeSlices {slices}, the volume's", box.volume_slices)
        if not 0 <= box.slice_index < slices:
            raise InputError(box.where, f"a Slice from 0 to {slices - 1}", box.slice_index)
        if min(box.width, box.height) < 1:
            raise InputError(
                box.where, "Width and Height of at least 1", f"{box.width} x {box.height}"
            )
        inside = (
            min(box.x, box.y) >= 0 and box.x + box.width <= columns and box.y + box.height <= rows
        )
        if not inside:
            raise InputError(
                box.where,
                f"a box within the image's {columns} columns and {rows} rows",
                f"X {box.x} to {box.x + box.width}, Y {box.y} to {box.y + box.height}",
                "Boxes count from the upper left corner of the image as it is read.",
            )


def box_heat_map(boxes: Sequence[LesionBox], space: TargetGrid) -> np.ndarray:
    """Returns the heat map of boxes on a task's grid, uint8 [z, y, x]; the maximum where they meet.

    Each ellipsoid (`box_ellipsoid`) is evaluated on the grid itself, within its reach only, so nothing
    is resampled and one byte a voxel is all that is held. Where a grid is too coarse for a lesion,
    it is widened to `SMALLEST_RADIUS`.

    Args:
      boxes: in voxels of the input volume, in the order of its file.
      space: the task's grid, see `preprocessing.volumes.geometry.target_grid`.

    Raises:
      InputError: see `check_boxes`.
    """
    check_boxes(boxes, space.input_shape)
    heat_map = np.zeros(space.shape_zyx, np.uint8)
    for box in boxes:
        centre, radii = box_ellipsoid(box, space.input_spacing_mm)
        grid_centre, grid_radii = [], []
        for position, axis in enumerate(space.axes):
            scale = space.input_spacing_mm[axis] / space.spacing_mm[position]
            from_middle = centre[axis] - (space.input_shape[axis] - 1) / 2
            size = space.shape_zyx[2 - position]
            sign = -1 if space.flipped[position] else 1
            grid_centre.append((size - 1) / 2 + sign * scale * from_middle)
            grid_radii.append(max(SMALLEST_RADIUS, scale * radii[axis]))
        _paint_ellipsoid(heat_map, grid_centre[::-1], grid_radii[::-1])
    return heat_map


def mask_heat_map(label_zyx: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Returns the heat map of a lesion mask, uint8 [z, y, x]; `LESION_THRESHOLD` and more exactly on the mask.

    Each connected region (26 neighbours) has a depth D, the largest distance in mm from its inside
    to its surface, which lies half a voxel before the nearest voxel of the other side. At a distance d
    from the surface r is 1 - d / D inside and 1 + d / D outside: for a ball that is the radius itself, so
    balls get what their boxes would get.

    Args:
      label_zyx: above 0 in lesions.
      spacing_mm: voxel spacing (x, y, z).
    """
    heat_map = np.zeros(label_zyx.shape, np.uint8)
    filled = [np.flatnonzero(label_zyx.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    if not filled[0].size:
        return heat_map
    sampling = spacing_mm[::-1]
    half_mm = min(spacing_mm) / 2
    corner = [int(indices[0]) for indices in filled]
    box = tuple(slice(int(indices[0]), int(indices[-1]) + 1) for indices in filled)
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
        # The part of this region's surroundings that lies in the volume.
        first = [c + b.start - 1 - n for c, b, n in zip(corner, bounds, reach, strict=True)]
        cut = tuple(slice(max(0, -start), None) for start in first)
        place = tuple(slice(max(0, start), None) for start in first)
        target = heat_map[place]
        values = _stored(np.square(radius[cut]))[tuple(slice(0, n) for n in target.shape)]
        target = target[tuple(slice(0, n) for n in values.shape)]
        np.maximum(target, values, out=target)
    return heat_map


def _paint_ellipsoid(heat_map: np.ndarray, centre: list[float], radii: list[float]) -> None:
    """Raises a heat map to an ellipsoid's, slice by slice; centre and radii in z, y, x order."""
    spans = [
        np.arange(max(0, math.ceil(c - REACH * r)), min(size, math.floor(c + REACH * r) + 1))
        for c, r, size in zip(centre, radii, heat_map.shape, strict=True)
    ]
    z, y, x = (np.square((span - c) / r) for span, c, r in zip(spans, centre, radii, strict=True))
    if not min(len(z), len(y), len(x)):
        return
    plane = np.add.outer(y, x)
    rows, columns = (slice(int(span[0]), int(span[-1]) + 1) for span in spans[1:])
    for index, square in zip(spans[0], z, strict=True):
        target = heat_map[index, rows, columns]
        np.maximum(target, _stored(square + plane), out=target)


def _stored(squared_radius: np.ndarray) -> np.ndarray:
    """Returns the profile at squared radii as it is stored."""
    return np.rint(255 * np.clip(1 - squared_radius / 2, 0, 1)).astype(np.uint8)
