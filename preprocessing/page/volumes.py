"""Prepares a case's volume for a page: cropped, on a grid that fits the budget, encoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import attrs
import numpy as np
from scipy import ndimage

from preprocessing.page.coding import code_image, code_labels
from preprocessing.tasks import Task
from preprocessing.volumes import geometry
from preprocessing.volumes.lesions import LesionBox, box_ellipsoid

# Margin around the foreground if a volume is cropped to it.
MARGIN_MM = 30.0
# Size of a CT voxel with its labels.
BYTES_PER_VOXEL = 0.21
# A browser decodes this many voxels in a second or two.
MOST_VOXELS = 16_000_000
# Pixels along one side of a WebP picture.
MOST_PIXELS = 16_383
# The window widened by this share to either side is stored with the finest shades.
_KNEE_SHARE = 0.1
# No grid is made coarser than this, whatever the budget.
_FEWEST_VOXELS = 1000


@dataclass(frozen=True)
class Box:
    """A box to draw: first voxel and size (x, y, z) in the order of the file, and a label.

    The kind is "reference", "hit", "false positive" or "further hit"; references have no score.
    """

    kind: str
    low: tuple[float, float, float]
    size: tuple[float, float, float]
    text: str
    score: float | None = None


@dataclass(frozen=True)
class PageVolume:
    """A volume encoded for the page."""

    facts: dict[str, Any]  # parameters of the page's scripts, as JSON types
    blocks: dict[str, bytes]  # encoded "image", "reference" and "prediction", as far as given
    note: str  # differences between the volume on the page and the case, in words


def reference_boxes(boxes: Sequence[LesionBox], voxel_mm: tuple[float, float, float]) -> list[Box]:
    """Returns the reference boxes of a volume, with the depth that `box_ellipsoid` assumes."""
    drawn = []
    for box in boxes:
        centre, radii = box_ellipsoid(box, voxel_mm)
        depth = max(1.0, 2 * radii[2])
        low = (float(box.x), float(box.y), centre[2] + 0.5 - depth / 2)
        text = f"{box.lesion_class}, slice {box.slice_index + 1}"
        drawn.append(Box("reference", low, (float(box.width), float(box.height), depth), text))
    return drawn


def page_volume(
    image: geometry.Volume | None,
    reference: geometry.Volume | None,
    prediction: geometry.Volume | None,
    task: Task,
    *,
    budget_bytes: int,
    crop: bool = False,
    boxes: Sequence[Box] = (),
) -> PageVolume:
    """Encodes a case for a page; at least one of image, reference and prediction is given.

    The grid is turned to RAS+ and made coarser if it has too many voxels. Labels take the nearest
    voxel, and a region so small that it would vanish keeps one voxel.

    Takes intensities (after `geometry.normalize`) and label values [x, y, z] on one grid, and boxes
    to draw over the slices. The budget is that of all blocks together; `crop` leaves out what is
    further than `MARGIN_MM` from all labels.
    """
    named = {"image": image, "reference": reference, "prediction": prediction}
    given = {name: volume for name, volume in named.items() if volume is not None}
    grid = next(iter(given.values()))
    whole_shape = grid.voxels.shape
    region: tuple[slice, ...] = (slice(None),) * 3
    if crop:
        labels = [volume.voxels for name, volume in given.items() if name != "image"]
        region = foreground_region(labels, geometry.spacing_mm(grid.affine), MARGIN_MM)
    starts = [axis.start or 0 for axis in region]
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ starts
    # All parts get the affine of the first: those of one case may differ by a fraction of a voxel.
    parts = {name: geometry.Volume(volume.voxels[region], affine) for name, volume in given.items()}
    keep = attrs.evolve(task, resampling="keep", spacing_mm=None)
    native = geometry.target_grid(next(iter(parts.values())).voxels.shape, affine, keep)
    low, high = task.intensity_window
    knees = low - _KNEE_SHARE * (high - low), high + _KNEE_SHARE * (high - low)
    most_voxels = min(MOST_VOXELS, budget_bytes / BYTES_PER_VOXEL)
    while True:
        coarser = coarsened(native, most_voxels)
        changes: dict[str, Any] = {"resampling": "full", "spacing_mm": coarser}
        page_task = attrs.evolve(task, **changes, normalization="none")
        blocks = {
            name: code_labels(_labels_on(page_task, volume, native))
            for name, volume in parts.items()
            if name != "image"
        }
        if image is not None:
            coded = code_image(geometry.to_target_grid(parts["image"], page_task)[0], knees)
            blocks["image"] = coded.payload
        size = sum(map(len, blocks.values()))
        if size <= budget_bytes or most_voxels < _FEWEST_VOXELS:
            break
        voxels = min(most_voxels, math.prod(native.shape_zyx))
        most_voxels = 0.97 * voxels * budget_bytes / size
    space = geometry.target_grid(native.input_shape, affine, page_task)
    facts: dict[str, Any] = {
        "shape": list(space.shape_zyx),
        "spacing_mm": list(space.spacing_mm),
        "orientation": geometry.axis_codes(np.array(space.affine)),
        "file_index": [list(line) for line in _file_lines(space, starts)],
        "file_shape": [whole_shape[axis] for axis in reversed(space.axes)],
        "boxes": [_page_box(box, space, starts) for box in boxes],
    }
    note = _grid_note(native, space, cropped=native.input_shape != whole_shape)
    if image is not None:
        facts |= {"levels": coded.levels, "slice_bytes": coded.slice_bytes}
        if not math.isnan(coded.rms_error):
            error = f"{coded.rms_error:.2g}"
            note += f" Intensities are compressed: {error} off (RMS) in the task's window."
    return PageVolume(facts, blocks, note)


def foreground_region(
    labels: Sequence[np.ndarray], voxel_mm: Sequence[float], margin_mm: float
) -> tuple[slice, ...]:
    """Returns the region around the foreground of all label maps; everything without foreground.

    Label maps have the same shape [any 3 axes]; `voxel_mm` is the spacing along these axes.
    """
    region = []
    for axis, step_mm in enumerate(voxel_mm):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(sum(voxels.any(axis=others) for voxels in labels))
        if not found.size:
            return (slice(None),) * 3
        margin = math.ceil(margin_mm / step_mm)
        region.append(slice(max(0, int(found[0]) - margin), int(found[-1]) + margin + 1))
    return tuple(region)


def coarsened(space: geometry.TargetGrid, most_voxels: float) -> tuple[float, float, float]:
    """Returns the finest spacing (x, y, z) in mm at which a grid has at most `most_voxels`.

    The finest axes become coarser first; no axis becomes finer.
    """
    sizes_mm = [n * mm for n, mm in zip(space.shape_zyx[::-1], space.spacing_mm, strict=True)]

    def spacing(floor_mm: float) -> tuple[float, float, float]:
        x_mm, y_mm, z_mm = (max(mm, floor_mm) for mm in space.spacing_mm)
        return x_mm, y_mm, z_mm

    def fits(floor_mm: float) -> bool:
        sizes = [max(1.0, size / mm) for size, mm in zip(sizes_mm, spacing(floor_mm), strict=True)]
        return math.prod(sizes) <= most_voxels and max(sizes) <= MOST_PIXELS

    low, high = min(space.spacing_mm), max(sizes_mm)
    if fits(low):
        return space.spacing_mm
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return spacing(high)


def kept_regions(nearest_zyx: np.ndarray, label_zyx: np.ndarray) -> np.ndarray:
    """Returns nearest labels on a coarser grid with a voxel for every region that they miss.

    Label values are uint8 [z, y, x]; `label_zyx` is on the finer grid, which covers the same space.
    """
    result = nearest_zyx.copy()
    for value in range(1, int(label_zyx.max(initial=0)) + 1):
        touched = label_zyx == value
        for axis, size in enumerate(nearest_zyx.shape):
            if touched.shape[axis] > size:
                first = np.ceil(np.arange(size) * touched.shape[axis] / size - 0.5).astype(np.intp)
                first = np.clip(first, 0, None)
                touched = np.logical_or.reduceat(touched, first, axis=axis)
        own = nearest_zyx == value
        regions, count = ndimage.label(touched | own, np.ones((3, 3, 3)))
        seen = np.zeros(count + 1, bool)
        seen[regions[own]] = True
        seen[0] = True
        result[~seen[regions]] = value
    return result


def _labels_on(page_task: Task, volume: geometry.Volume, native: geometry.TargetGrid) -> np.ndarray:
    """Returns label values [z, y, x] on the grid of `page_task`."""
    nearest, grid = geometry.to_target_grid(volume, page_task, label=True)
    if grid.shape_zyx == native.shape_zyx:
        return nearest
    return kept_regions(nearest, geometry.reoriented(volume.voxels, native))


def _file_lines(space: geometry.TargetGrid, starts: Sequence[int]) -> list[tuple[float, float]]:
    """Returns for the page's z, y and x the file's index along that axis as (start, step)."""
    lines = []
    for position, axis in enumerate(space.axes):
        step = space.spacing_mm[position] / space.input_spacing_mm[axis]
        step *= -1 if space.flipped[position] else 1
        size, new_size = space.input_shape[axis], space.shape_zyx[2 - position]
        lines.append((starts[axis] + (size - 1) / 2 - step * (new_size - 1) / 2, step))
    return lines[::-1]


def _page_box(box: Box, space: geometry.TargetGrid, starts: Sequence[int]) -> dict[str, Any]:
    """Returns a box with edges in the page's voxels z, y, x; voxel i spans i - 1/2 to i + 1/2."""
    edges = []
    for axis, (start, step) in zip(reversed(space.axes), _file_lines(space, starts), strict=True):
        ends = (box.low[axis] - 0.5, box.low[axis] + box.size[axis] - 0.5)
        edges.append(sorted((end - start) / step for end in ends))
    return {
        "kind": box.kind,
        "low": [low for low, _ in edges],
        "high": [high for _, high in edges],
        "text": box.text,
        "score": box.score,
    }


def _grid_note(native: geometry.TargetGrid, space: geometry.TargetGrid, *, cropped: bool) -> str:
    """Returns in words how the page's grid differs from the file's."""
    own, shown = (
        " x ".join(f"{mm:.3g}" for mm in each.spacing_mm) + " mm" for each in (native, space)
    )
    if native.shape_zyx == space.shape_zyx:
        note = f"Shown at its own spacing, {own}."
    else:
        note = f"Shown at {shown} (x, y, z); the case has {own}."
    if cropped:
        note += f" Cropped to the labels with {MARGIN_MM:g} mm around them."
    return note
