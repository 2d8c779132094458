"""A case's volume as a page shows it: cropped, on a grid that fits the budget, coded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import attrs
import numpy as np
from scipy import ndimage

from preprocessing.page.coding import OUTER_SLOPE, code_image, code_labels
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import (
    TargetGrid,
    Volume,
    axis_codes,
    reoriented,
    target_grid,
    to_target_grid,
)

# Room left around the foreground where a volume is cropped to it.
MARGIN_MM = 30.0
# Bytes that a voxel of CT takes at a quality that looks like the original.
BYTES_PER_VOXEL = 0.18
# What a browser decodes in a second or two.
MOST_VOXELS = 16_000_000
# The knees lie this share of the task's window outside it.
_KNEE_SHARE = 0.1
# Labels are stored exactly; the image gets the rest of the budget, at least this share.
_IMAGE_SHARE = 0.4
# Below this no grid is made coarser for the sake of labels.
_FEWEST_VOXELS = 1000


@dataclass(frozen=True)
class Box:
    """A box to be drawn, in voxels of the volume as it is read.

    Attributes:
      kind: "reference", "hit", "false positive" or "further hit".
      low: first voxel along the file's axes x, y, z.
      size: voxels along them.
      text: what is written beside it.
      score: of a detection; None for a reference.
    """

    kind: str
    low: tuple[float, float, float]
    size: tuple[float, float, float]
    text: str
    score: float | None = None


@dataclass(frozen=True)
class PageVolume:
    """What a page carries of one volume.

    Attributes:
      facts: what the page's code has to know, as plain data.
      blocks: deflated bytes of the parts "image", "reference" and "prediction", as far as there.
      note: in words, how what is shown differs from the case.
    """

    facts: dict[str, Any]
    blocks: dict[str, bytes]
    note: str


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
    """Brings a case into the form that a page shows.

    Coarser voxels only where the budget asks for them: first in the finest directions. Intensities
    are averaged, labels take the nearest voxel, and a region so small that it would vanish keeps
    a voxel.

    Args:
      image: voxels [x, y, z], or None.
      reference: label values on the same grid, or None.
      prediction: label values on the same grid, or None.
      task: gives the intensity window and the image's dtype.
      budget_bytes: for all of the case.
      crop: whether to leave out what is further than `MARGIN_MM` from labels and boxes.
      boxes: drawn over the slices.
    """
    parts = {"reference": reference, "prediction": prediction}
    given = {name: volume for name, volume in parts.items() if volume is not None}
    grid = image or next(iter(given.values()))
    # Affines of one case may differ by a share of a voxel.
    labels = {name: Volume(volume.voxels, grid.affine) for name, volume in given.items()}
    keep = attrs.evolve(task, resampling="keep", spacing_mm=None)
    whole_shape = grid.voxels.shape
    region = [slice(0, size) for size in whole_shape]
    if crop:
        space = target_grid(whole_shape, grid.affine, keep)
        region = _around_content(list(labels.values()), boxes, space, region)
    starts = tuple(axis.start for axis in region)
    grid = _cropped(grid, region)
    native = target_grid(grid.voxels.shape, grid.affine, keep)
    most = min(MOST_VOXELS, budget_bytes * 0.8 / BYTES_PER_VOXEL)
    while True:
        page_task = attrs.evolve(task, resampling="full", spacing_mm=coarsened(native, most))
        blocks = {
            name: code_labels(_page_labels(_cropped(volume, region), page_task, native))
            for name, volume in labels.items()
        }
        taken = sum(map(len, blocks.values()))
        if taken <= (1 - _IMAGE_SHARE) * budget_bytes or most < _FEWEST_VOXELS:
            break
        # Labels as ragged as noise.
        most /= 2
    space = target_grid(grid.voxels.shape, grid.affine, page_task)

    low, high = task.intensity_window
    margin = _KNEE_SHARE * (high - low)
    facts = {
        "shape": list(space.shape_zyx),
        "spacing_mm": list(space.spacing_mm),
        "orientation": axis_codes(np.array(space.affine)),
        "file_index": [list(line) for line in _file_lines(space, starts)],
        "file_shape": [whole_shape[axis] for axis in reversed(space.axes)],
        "knees": [low - margin, high + margin],
        "outer_slope": OUTER_SLOPE,
        "boxes": [_page_box(box, space, starts) for box in boxes],
    }
    note = _grid_note(native, space, cropped=native.input_shape != whole_shape)
    if image is not None:
        image_zyx, _ = to_target_grid(_cropped(image, region), page_task)
        coded = code_image(image_zyx, tuple(facts["knees"]), max(1, budget_bytes - taken))
        facts["step"] = coded.step
        blocks["image"] = coded.payload
        if not math.isnan(coded.rms_error):
            note += f" Intensities are compressed: {coded.rms_error:.2g} off (RMS) in the task's window."
    return PageVolume(facts, blocks, note)


def coarsened(space: TargetGrid, most_voxels: float) -> tuple[float, float, float]:
    """Returns the spacing (x, y, z) in mm at which a grid has at most so many voxels.

    No axis becomes finer, and none coarser while another one is finer.
    """
    sizes_mm = [n * mm for n, mm in zip(space.shape_zyx[::-1], space.spacing_mm, strict=True)]
    low, high = min(space.spacing_mm), max(sizes_mm)

    def spacing(floor_mm: float) -> tuple[float, float, float]:
        return tuple(max(mm, floor_mm) for mm in space.spacing_mm)

    def voxels(floor_mm: float) -> float:
        return math.prod(
            max(1.0, size / mm) for size, mm in zip(sizes_mm, spacing(floor_mm), strict=True)
        )

    if voxels(low) <= most_voxels:
        return space.spacing_mm
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if voxels(middle) > most_voxels else (low, middle)
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


def _page_labels(volume: Volume, page_task: Task, native: TargetGrid) -> np.ndarray:
    nearest, space = to_target_grid(volume, page_task, label=True)
    nearest = np.ascontiguousarray(nearest)
    if space.shape_zyx == native.shape_zyx:
        return nearest
    return kept_regions(nearest, reoriented(volume.voxels, native))


def _cropped(volume: Volume, region: Sequence[slice]) -> Volume:
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ [axis.start for axis in region]
    return Volume(volume.voxels[tuple(region)], affine)


def _around_content(
    labels: Sequence[Volume], boxes: Sequence[Box], space: TargetGrid, whole: list[slice]
) -> list[slice]:
    """Returns the region of the file's grid around all labels and boxes; all of it without any."""
    region = []
    for axis, step_mm in enumerate(space.input_spacing_mm):
        others = tuple(other for other in range(3) if other != axis)
        ends = [
            float(end) for box in boxes for end in (box.low[axis], box.low[axis] + box.size[axis])
        ]
        for volume in labels:
            found = np.flatnonzero(volume.voxels.any(axis=others))
            ends += [float(found[0]), float(found[-1])] if found.size else []
        if not ends:
            return whole
        margin = MARGIN_MM / step_mm
        low = max(0, math.floor(min(ends) - margin))
        high = min(whole[axis].stop, math.ceil(max(ends) + margin) + 1)
        region.append(slice(low, high) if low < high else whole[axis])
    return region


def _file_lines(space: TargetGrid, starts: Sequence[int]) -> list[tuple[float, float]]:
    """Returns for the page's z, y and x the file's index there as (start, step)."""
    lines = []
    for position, axis in enumerate(space.axes):
        step = space.spacing_mm[position] / space.input_spacing_mm[axis]
        step *= -1 if space.flipped[position] else 1
        size, new_size = space.input_shape[axis], space.shape_zyx[2 - position]
        lines.append((starts[axis] + (size - 1) / 2 - step * (new_size - 1) / 2, step))
    return lines[::-1]


def _page_box(box: Box, space: TargetGrid, starts: Sequence[int]) -> dict[str, Any]:
    """Returns a box with its edges in the page's voxels, z, y, x; voxel i reaches i - 1/2 to i + 1/2."""
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
        note += f" Cropped to labels and boxes with {MARGIN_MM:g} mm around them."
    return note
