"""Overlay pictures: slices and planes of a case with prediction and reference drawn on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from preprocessing.datasets.detection_table import Detection
from preprocessing.errors import InputError
from preprocessing.files import atomic_write
from preprocessing.page.contents import class_colour
from preprocessing.page.volumes import foreground_region
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import Volume, axis_codes, to_target_grid

BACKGROUND, TEXT = "#000000", "#F2F2F2"
SLICES = 4
# Margin around the foreground.
MARGIN_MM = 25.0
WIDTH_INCHES, MAX_HEIGHT_INCHES, DPI = 15.0, 5.2, 110
FILL_OPACITY = 0.36
# Boxes of detected lesions: the strongest ones, in a colour of no class of a lesion task.
BOXES, BOX_COLOUR = 5, "#F0E442"
# Around planes and above them, in inches.
_GAP, _TITLE, _HEADER = 0.12, 0.3, 0.45
_TEXT_STYLE: dict[str, Any] = {"color": TEXT, "weight": "bold"}

# Directions that point right or up in a picture; the patient's left is at the right.
_TO_THE_RIGHT, _UPWARD = "LPI", "SAR"
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
_PLANES = {"R": "sagittal", "L": "sagittal", "A": "coronal", "P": "coronal"}


@dataclass(frozen=True)
class Plane:
    """One plane through a case; row 0 is at the bottom."""

    name: str
    image: np.ndarray  # raw intensities [row, column]
    labels: Sequence[np.ndarray]  # [row, column] of prediction and, if any, reference
    size_mm: tuple[float, float]  # width and height
    letters: tuple[str, str, str, str]  # directions at the left, right, bottom and top edges
    boxes: np.ndarray | None = None  # number of the detection whose box it is [row, column], else 0


def overlay_case(
    path: str | Path,
    image: Volume,
    prediction: np.ndarray,
    reference: np.ndarray | None,
    task: Task,
    title: str,
    detections: Sequence[Detection] = (),
) -> None:
    """Draws a case as a PNG at its own resolution: slices chosen by content, two planes across them.

    Predictions are translucent areas (outlined too if there is no reference), references are
    outlines of the same colour; both are label values [x, y, z] on the image's grid. Slices are
    chosen where labels and disagreement are; the two planes go through the last class. All are drawn
    at true aspect ratio in radiological convention. Of the detections, in voxels of the image and the
    highest score first, the first `BOXES` are drawn as boxes with their scores; without any label
    they choose the slices. Raises InputError if the shapes differ.
    """
    for name, labels in (("prediction", prediction), ("reference", reference)):
        if labels is not None and labels.shape != image.voxels.shape:
            raise InputError(name, f"the image's shape {image.voxels.shape}", labels.shape)
    keep = attrs.evolve(task, resampling="keep", spacing_mm=None)
    image_zyx, grid = to_target_grid(image, keep)
    labels_zyx = [
        to_target_grid(Volume(labels, image.affine), keep, label=True)[0]
        for labels in (prediction, reference)
        if labels is not None
    ]
    drawn = detections[:BOXES]
    numbers = Volume(_box_numbers(image.voxels.shape, drawn), image.affine)
    boxes_zyx = to_target_grid(numbers, keep, label=True)[0]
    arrays = (image_zyx, *labels_zyx, boxes_zyx)
    classes, orientation = len(task.class_names), axis_codes(np.array(grid.affine))
    has_labels = any(labels.any() for labels in labels_zyx)
    contents = labels_zyx if has_labels else [(boxes_zyx > 0).astype(np.uint8)]
    slices = slices_to_show(contents, classes, SLICES)
    focus = focus_voxel(contents, classes)
    region = foreground_region([*labels_zyx, boxes_zyx], grid.spacing_mm[::-1], MARGIN_MM)

    def plane_at(axis: int, index: int) -> Plane:
        shown = region if axis == 0 else (slice(None), *region[1:])
        plane = reformatted_plane(arrays, axis, index, shown, grid.spacing_mm, orientation)
        *labels, boxes = plane.labels
        return replace(plane, labels=labels, boxes=boxes)

    closeups = [plane_at(0, index) for index in slices]
    across = [plane_at(axis, focus[axis]) for axis in (1, 2)]
    figure, axes = _layout(closeups, across)
    for own, plane in zip(axes, closeups + across, strict=True):
        _draw(own, plane, task.intensity_window, classes)
        _draw_boxes(own, plane, [each.score for each in drawn])
    voxel_ml = float(np.prod(grid.spacing_mm)) / 1000
    _describe(figure, title, task.class_names, labels_zyx, voxel_ml, has_boxes=bool(drawn))
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


def _box_numbers(shape: tuple[int, ...], detections: Sequence[Detection]) -> np.ndarray:
    """Returns for each voxel [x, y, z] the number of the first detection, from 1, in whose box it is."""
    numbers = np.zeros(shape, np.uint8)
    for number, each in reversed(list(enumerate(detections, start=1))):
        low = [max(0, round(start)) for start in (each.x, each.y, each.z)]
        size = [max(1, round(length)) for length in (each.width, each.height, each.depth)]
        numbers[tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))] = number
    return numbers


def slices_to_show(labels: Sequence[np.ndarray], classes: int, count: int) -> list[int]:
    """Returns up to `count` slices, spread over the content of label maps [z, y, x].

    Every class and the disagreement with the reference have the same weight, whatever their size.
    """
    highest = np.maximum(labels[0], labels[-1])
    contents = [highest == value for value in range(1, classes)]
    contents.append(labels[0] != labels[-1])
    areas = np.array([content.sum(axis=(1, 2)) for content in contents], np.float64)
    shares = areas / np.maximum(areas.sum(axis=1, keepdims=True), 1)
    weight = shares.sum(axis=0)
    if not weight.any():
        weight = np.ones(len(highest))
    middles = (np.arange(count) + 0.5) / count
    found = np.searchsorted(np.cumsum(weight) / weight.sum(), middles)
    return sorted({int(min(z, len(weight) - 1)) for z in found})


def focus_voxel(labels: Sequence[np.ndarray], classes: int) -> tuple[int, ...]:
    """Returns the z, y, x whose planes hold most of the last class that exists, or the centre."""
    highest = np.maximum(labels[0], labels[-1])
    for value in range(classes - 1, 0, -1):
        mask = highest == value
        if mask.any():
            others = ((1, 2), (0, 2), (0, 1))
            return tuple(int(mask.sum(axis=axes).argmax()) for axes in others)
    return tuple(size // 2 for size in highest.shape)


def reformatted_plane(
    arrays: Sequence[np.ndarray],
    axis: int,
    index: int,
    region: tuple[slice, ...],
    spacing_mm: tuple[float, float, float],
    orientation: str,
) -> Plane:
    """Returns the plane at an index of an axis (0, 1, 2 for z, y, x), turned upright.

    The arrays are image and label maps [z, y, x]; `region`, the part of them to show, is ignored along
    `axis`. Spacing is (x, y, z), and the orientation how x, y and z grow, as in "RAS".
    """
    where = tuple(index if other == axis else region[other] for other in range(3))
    rows, columns = (2 - other for other in range(3) if other != axis)
    right, up = orientation[columns], orientation[rows]
    flip_columns, flip_rows = right not in _TO_THE_RIGHT, up not in _UPWARD
    steps = slice(None, None, -1 if flip_rows else 1), slice(None, None, -1 if flip_columns else 1)
    image, *labels = (array[where][steps] for array in arrays)
    right = _OPPOSITE[right] if flip_columns else right
    up = _OPPOSITE[up] if flip_rows else up
    height, width = image.shape
    direction = _PLANES.get(orientation[2 - axis], "axial")
    return Plane(
        name=f"{direction} {index + 1} of {arrays[0].shape[axis]}",
        image=image,
        labels=labels,
        size_mm=(width * spacing_mm[columns], height * spacing_mm[rows]),
        letters=(_OPPOSITE[right], right, _OPPOSITE[up], up),
    )


def _layout(closeups: Sequence[Plane], across: Sequence[Plane]) -> tuple[Figure, list[Axes]]:
    """Returns a figure with axes for two rows of planes; the second leaves room for the legend."""
    rows = ((closeups, WIDTH_INCHES), (across, WIDTH_INCHES * 0.7))
    heights = []
    for planes, width in rows:
        aspect = sum(plane.size_mm[0] / plane.size_mm[1] for plane in planes)
        heights.append(min(MAX_HEIGHT_INCHES, (width - _GAP * (len(planes) + 1)) / aspect))
    total = _HEADER + sum(heights) + 2 * _TITLE + _GAP
    figure = Figure(figsize=(WIDTH_INCHES, total), dpi=DPI, facecolor=BACKGROUND)
    axes, bottom = [], total - _HEADER
    for (planes, _), height in zip(rows, heights, strict=True):
        left, bottom = _GAP, bottom - _TITLE - height
        for plane in planes:
            width = height * plane.size_mm[0] / plane.size_mm[1]
            box = (left / WIDTH_INCHES, bottom / total, width / WIDTH_INCHES, height / total)
            axes.append(figure.add_axes(box))
            left += width + _GAP
    return figure, axes


def _draw(axes: Axes, plane: Plane, intensity_window: tuple[float, float], classes: int) -> None:
    width, height = plane.size_mm
    placed: dict[str, Any] = {"origin": "lower", "extent": (0, width, 0, height)}
    low, high = intensity_window
    axes.imshow(plane.image, "gray", vmin=low, vmax=high, interpolation="bilinear", **placed)
    prediction, outlined = plane.labels[0], plane.labels[-1]
    for value in range(1, classes):
        area = np.zeros((*prediction.shape, 4))
        area[prediction == value] = to_rgba(class_colour(value), FILL_OPACITY)
        axes.imshow(area, interpolation="nearest", **placed)
        _outline(axes, outlined == value, plane.size_mm, class_colour(value))
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.set_axis_off()
    # With y its place does not depend on ticks, which are off but would be measured for it.
    axes.set_title(plane.name, color=TEXT, fontsize=10, loc="left", pad=4, y=1.0)
    left, right, bottom, top = plane.letters
    places = (
        (left, 0.015, 0.5, "left", "center"),
        (right, 0.985, 0.5, "right", "center"),
        (bottom, 0.5, 0.015, "center", "bottom"),
        (top, 0.5, 0.985, "center", "top"),
    )
    for letter, x, y, horizontal, vertical in places:
        aligned: dict[str, Any] = {"ha": horizontal, "va": vertical, "transform": axes.transAxes}
        text = axes.text(x, y, letter, fontsize=9, **aligned, **_TEXT_STYLE)
        text.set_path_effects([patheffects.withStroke(linewidth=2, foreground=BACKGROUND)])


def _draw_boxes(axes: Axes, plane: Plane, scores: Sequence[float]) -> None:
    """Draws the boxes in a plane, each with the score of its detection."""
    if plane.boxes is None:
        return
    (width, height), (rows, columns) = plane.size_mm, plane.boxes.shape
    for number, score in enumerate(scores, start=1):
        mask = plane.boxes == number
        if mask.any():
            _outline(axes, mask, plane.size_mm, BOX_COLOUR)
            row, column = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
            corner = (column[0] * width / columns, (row[-1] + 1) * height / rows)
            aligned: dict[str, Any] = {"ha": "left", "va": "bottom", "clip_on": True}
            text = axes.text(*corner, f"{score:.2f}", color=BOX_COLOUR, fontsize=8, **aligned)
            text.set_path_effects([patheffects.withStroke(linewidth=2, foreground=BACKGROUND)])


def _outline(axes: Axes, mask: np.ndarray, size_mm: tuple[float, float], colour: str) -> None:
    """Draws the mask's border along its voxels on a dark rim, visible on bright tissue."""
    if not mask.any():
        return
    # A rim of background closes outlines at the edge of the picture.
    padded = np.pad(mask, 1).astype(np.float64)
    (width, height), (rows, columns) = size_mm, mask.shape
    x, y = width / columns, height / rows
    placed: dict[str, Any] = {"origin": "lower", "extent": (-x, width + x, -y, height + y)}
    lines = axes.contour(padded, levels=[0.5], colors=[colour], linewidths=1.4, **placed)
    lines.set_path_effects(
        [patheffects.Stroke(linewidth=2.4, foreground="#00000080"), patheffects.Normal()]
    )


def _describe(
    figure: Figure,
    title: str,
    names: Sequence[str],
    labels: Sequence[np.ndarray],
    voxel_ml: float,
    *,
    has_boxes: bool,
) -> None:
    """Writes the headline and, in the free corner, the legend with the volume of each class."""
    width, height = figure.get_size_inches()
    figure.text(0.12 / width, 1 - 0.14 / height, title, fontsize=15, va="top", **_TEXT_STYLE)
    handles: list[Patch | Line2D] = []
    for value, name in enumerate(names[1:], start=1):
        colour = class_colour(value)
        # Short where there is no reference.
        for kind, array in zip(("prediction", "reference"), labels, strict=False):
            text = f"{name}, {kind}: {np.count_nonzero(array == value) * voxel_ml:,.1f} ml"
            if kind == "prediction":
                handles.append(Patch(facecolor=to_rgba(colour, 0.6), label=text))
            else:
                handles.append(Line2D([], [], color=colour, linewidth=2, label=text))
    if has_boxes:
        handles.append(Line2D([], [], color=BOX_COLOUR, linewidth=2, label="detection, score"))
    corner = (1 - 0.2 / width, 0.25 / height)
    legend = figure.legend(handles=handles, loc="lower right", bbox_to_anchor=corner, fontsize=11)
    legend.set_frame_on(False)
    for entry in legend.get_texts():
        entry.set_color(TEXT)
