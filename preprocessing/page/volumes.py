"""Prepares a case's volume for a page: cropped, on a grid that fits the budget, encoded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from preprocessing.page.coding import code_image, code_labels
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import (
    TargetGrid,
    Volume,
    axis_codes,
    reoriented,
    target_grid,
    to_target_grid,
)
from preprocessing.volumes.lesions import LesionBox, box_ellipsoid

# Margin around the foreground if a volume is cropped to it.
MARGIN_MM = 30.0
# Size of a CT voxel at a quality that looks like the original.
BYTES_PER_VOXEL = 0.18
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
    """A box to draw, in voxels of the volume in the order of its file.

    Attributes:
      kind: "reference", "hit", "false positive" or "further hit".
      low: first voxel along the file's axes x, y, z.
      size: voxels along them.
      text: label beside the box.
      score: of a detection; None for a reference.
    """

    kind: str
    low: tuple[float, float, float]
    size: tuple[float, float, float]
    text: str
    score: float | None = None


@dataclass(frozen=True)
class PageVolume:
    """A volume encoded for the page.

    Attributes:
      facts: what the page's scripts need to know, as JSON types.
      blocks: encoded bytes of "image", "reference" and "prediction", those that exist.
      note: how the volume on the page differs from the case, in words.
    """

    facts: dict[str, Any]
    blocks: dict[str, bytes]
    note: str


def reference_boxes(
    boxes: Sequence[LesionBox], spacing_mm: tuple[float, float, float]
) -> list[Box]:
    """Returns reference boxes with the depth that `box_ellipsoid` assumes for their lesions.

    Args:
      boxes: of one volume.
      spacing_mm: voxel spacing (x, y, z) of that volume, in the order of its file.
    """
    drawn = []
    for box in boxes:
        centre, radii = box_ellipsoid(box, spacing_mm)
        depth = max(1.0, 2 * radii[2])
        low = (float(box.x), float(box.y), centre[2] + 0.5 - depth / 2)
        text = f"{box.lesion_class}, slice {box.slice_index + 1}"
        drawn.append(Box("reference", low, (float(box.width), float(box.height), depth), text))
    return drawn


def page_volume(
    image: Volume | None,
    reference: Volume | None,
    prediction: Volume | None,
    task: Task,
    *,
    budget_bytes: int,
    crop: bool = False,
    boxes: Sequence[Box] = (),
) -> PageVolume:
    """Encodes a case for a page; at least one of image, reference and prediction is given.

    The grid is turned to RAS+ and made coarser if it has too many voxels. Labels take the nearest
    voxel, and a region so small that it would vanish keeps one voxel.

    Args:
      image: voxels [x, y, z], or None.
      reference: label values on the same grid, or None.
      prediction: label values on the same grid, or None.
      task: gives the intensity window and the image's dtype.
      budget_bytes: of all blocks together.
      crop: whether to leave out what is further than `MARGIN_MM` from all labels.
      boxes: drawn over the slices.
    """
    named = {"image": image, "reference": reference, "prediction": prediction}
    given = {name: volume for name, volume in named.items() if volume is not None}
    grid = next(iter(given.values()))
    whole_shape = grid.voxels.shape
    region: tuple[slice, ...] = (slice(None),) * 3
    keep = dataclasses.replace(task, resampling="keep", spacing_mm=None)
    if crop:
        spacing_mm = target_grid(whole_shape, grid.affine, keep).input_spacing_mm
        labels = [volume.voxels for name, volume in given.items() if name != "image"]
        region = foreground_region(labels, spacing_mm, MARGIN_MM)
    starts = [axis.start or 0 for axis in region]
    affine = grid.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ starts
    # All parts get the affine of the first: those of one case may differ by a fraction of a voxel.
    parts = {name: Volume(volume.voxels[region], affine) for name, volume in given.items()}
    native = target_grid(next(iter(parts.values())).voxels.shape, affine, keep)
    low, high = task.intensity_window
    margin = _KNEE_SHARE * (high - low)
    most_voxels = min(MOST_VOXELS, budget_bytes * 0.8 / BYTES_PER_VOXEL)
    while True:
        spacing_mm = coarsened(native, most_voxels)
        page_task = dataclasses.replace(task, resampling="full", spacing_mm=spacing_mm)
        blocks, facts, note = _encoded(
            parts, page_task, native, (low - margin, high + margin), budget_bytes
        )
        if sum(map(len, blocks.values())) <= budget_bytes or most_voxels < _FEWEST_VOXELS:
            break
        # Noise in the image or in the labels.
        most_voxels /= 2
    space = target_grid(native.input_shape, affine, page_task)
    facts |= {
        "shape": list(space.shape_zyx),
        "spacing_mm": list(space.spacing_mm),
        "orientation": axis_codes(np.array(space.affine)),
        "file_index": [list(line) for line in _file_lines(space, starts)],
        "file_shape": [whole_shape[axis] for axis in reversed(space.axes)],
        "boxes": [_page_box(box, space, starts) for box in boxes],
    }
    grid_note = _grid_note(native, space, cropped=native.input_shape != whole_shape)
    return PageVolume(facts, blocks, f"{grid_note}{note}")


def foreground_region(
    labels: Sequence[np.ndarray], spacing_mm: Sequence[float], margin_mm: float
) -> tuple[slice, ...]:
    """Returns the region around the foreground of all label maps; everything without foreground.

    Args:
      labels: label values of the same shape [any 3 axes].
      spacing_mm: voxel spacing along these axes.
      margin_mm: margin around the foreground.
    """
    region = []
    for axis, step_mm in enumerate(spacing_mm):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(sum(voxels.any(axis=others) for voxels in labels))
        if not found.size:
            return (slice(None),) * 3
        margin = math.ceil(margin_mm / step_mm)
        region.append(slice(max(0, int(found[0]) - margin), int(found[-1]) + margin + 1))
    return tuple(region)


def coarsened(space: TargetGrid, most_voxels: float) -> tuple[float, float, float]:
    """Returns the finest spacing (x, y, z) in mm at which a grid has at most so many voxels.

    The finest axes become coarser first; no axis becomes finer.
    """
    sizes_mm = [n * mm for n, mm in zip(space.shape_zyx[::-1], space.spacing_mm, strict=True)]

    def spacing(floor_mm: float) -> tuple[float, float, float]:
        return tuple(max(mm, floor_mm) for mm in space.spacing_mm)

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
    """Returns labels on a coarser grid with a voxel for every region that nearest voxels miss.

    Args:
      nearest_zyx: label values on the coarser grid, uint8 [z, y, x].
      label_zyx: label values on the finer grid, which covers the same space.
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


def _encoded(
    parts: Mapping[str, Volume],
    page_task: Task,
    native: TargetGrid,
    knees: tuple[float, float],
    budget_bytes: int,
) -> tuple[dict[str, bytes], dict[str, Any], str]:
    """Returns the blocks, the image's facts and its note on the grid of `page_task`.

    Labels are exact; the image gets the rest of the budget.
    """
    blocks = {}
    for name, volume in parts.items():
        if name != "image":
            nearest, space = to_target_grid(volume, page_task, label=True)
            if space.shape_zyx != native.shape_zyx:
                nearest = kept_regions(nearest, reoriented(volume.voxels, native))
            blocks[name] = code_labels(nearest)
    if "image" not in parts:
        return blocks, {}, ""
    image_zyx, _ = to_target_grid(parts["image"], page_task)
    coded = code_image(image_zyx, knees, budget_bytes - sum(map(len, blocks.values())))
    blocks["image"] = coded.payload
    note = ""
    if not math.isnan(coded.rms_error):
        note = f" Intensities are compressed: {coded.rms_error:.2g} off (RMS) in the task's window."
    return blocks, {"levels": coded.levels, "slice_bytes": coded.slice_bytes}, note


def _file_lines(space: TargetGrid, starts: Sequence[int]) -> list[tuple[float, float]]:
    """Returns for the page's z, y and x the file's index along that axis as (start, step)."""
    lines = []
    for position, axis in enumerate(space.axes):
        step = space.spacing_mm[position] / space.input_spacing_mm[axis]
        step *= -1 if space.flipped[position] else 1
        size, new_size = space.input_shape[axis], space.shape_zyx[2 - position]
        lines.append((starts[axis] + (size - 1) / 2 - step * (new_size - 1) / 2, step))
    return lines[::-1]


def _page_box(box: Box, space: TargetGrid, starts: Sequence[int]) -> dict[str, Any]:
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


def _grid_note(native: TargetGrid, space: TargetGrid, *, cropped: bool) -> str:
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
