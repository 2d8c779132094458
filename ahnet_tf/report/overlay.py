"""Overlay pictures: slices of a case with prediction and reference drawn on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from ahnet_tf.report.reformat import Plane, focus_voxel, reformatted_plane, slices_to_show
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
# Around planes and above them, in inches.
_GAP, _TITLE, _HEADER = 0.12, 0.3, 0.45


def overlay_case(
    path: str | Path,
    image: Volume,
    prediction: np.ndarray,
    reference: np.ndarray | None,
    task: Task,
    title: str,
) -> None:
    """Draws a case as a PNG at its own resolution: slices chosen by content, two planes across them.

    Predictions are translucent areas (outlined too if there is no reference), references are
    outlines of the same colour. Slices are chosen where labels and disagreement are; the two planes
    go through the last class. All are drawn at true aspect ratio in radiological convention.

    Args:
      path: output, written atomically.
      image: raw intensities.
      prediction: label values [x, y, z] on the image's grid.
      reference: label values on the same grid, or None.
      task: gives class names and intensity window.
      title: headline of the picture.

    Raises:
      InputError: the shapes differ.
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
    arrays = (image_zyx, *labels_zyx)
    classes, orientation = len(task.class_names), axis_codes(np.array(grid.affine))
    slices = slices_to_show(labels_zyx, classes, SLICES)
    focus = focus_voxel(labels_zyx, classes)
    region = foreground_region(labels_zyx, grid.spacing_mm[::-1], MARGIN_MM)
    tall = (slice(None), *region[1:])
    closeups = [
        reformatted_plane(arrays, 0, index, region, grid.spacing_mm, orientation)
        for index in slices
    ]
    across = [
        reformatted_plane(arrays, axis, focus[axis], tall, grid.spacing_mm, orientation)
        for axis in (1, 2)
    ]
    figure, axes = _layout(closeups, across)
    for own, plane in zip(axes, closeups + across, strict=True):
        _draw(own, plane, task.intensity_window, classes)
    _describe(figure, title, task.class_names, labels_zyx, float(np.prod(grid.spacing_mm)) / 1000)
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


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
    extent = (0, width, 0, height)
    low, high = intensity_window
    axes.imshow(
        plane.image, cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent,
        interpolation="bilinear",
    )  # fmt: skip
    prediction, outlined = plane.labels[0], plane.labels[-1]
    for value in range(1, classes):
        area = np.zeros((*prediction.shape, 4))
        area[prediction == value] = to_rgba(class_colour(value), FILL_OPACITY)
        axes.imshow(area, origin="lower", extent=extent, interpolation="nearest")
        _outline(axes, outlined == value, plane.size_mm, class_colour(value))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_title(plane.name, color=TEXT, fontsize=10, loc="left", pad=4)
    left, right, bottom, top = plane.letters
    places = (
        (left, 0.015, 0.5, "left", "center"),
        (right, 0.985, 0.5, "right", "center"),
        (bottom, 0.5, 0.015, "center", "bottom"),
        (top, 0.5, 0.985, "center", "top"),
    )
    for letter, x, y, horizontal, vertical in places:
        axes.text(
            x, y, letter, transform=axes.transAxes, color=TEXT, fontsize=9, weight="bold",
            ha=horizontal, va=vertical,
            path_effects=[patheffects.withStroke(linewidth=2, foreground=BACKGROUND)],
        )  # fmt: skip


def _outline(axes: Axes, mask: np.ndarray, size_mm: tuple[float, float], colour: str) -> None:
    """Draws the mask's border along its voxels on a dark rim, visible on bright tissue."""
    if not mask.any():
        return
    # A rim of background closes outlines at the edge of the picture.
    padded = np.pad(mask, 1).astype(np.float64)
    x, y = (
        (np.arange(-1, count + 1) + 0.5) * size / count
        for count, size in zip(mask.shape[::-1], size_mm, strict=True)
    )
    lines = axes.contour(x, y, padded, levels=[0.5], colors=[colour], linewidths=1.4)
    lines.set_path_effects(
        [patheffects.Stroke(linewidth=2.4, foreground="#00000080"), patheffects.Normal()]
    )


def _describe(
    figure: Figure,
    title: str,
    class_names: Sequence[str],
    labels: Sequence[np.ndarray],
    voxel_ml: float,
) -> None:
    """Writes the headline and, in the free corner, the legend with the volume of each class."""
    width, height = figure.get_size_inches()
    figure.text(
        0.12 / width, 1 - 0.14 / height, title, color=TEXT, fontsize=15, weight="bold", va="top"
    )
    handles: list[Patch | Line2D] = []
    for value, name in enumerate(class_names[1:], start=1):
        colour = class_colour(value)
        # Short where there is no reference.
        for kind, array in zip(("prediction", "reference"), labels, strict=False):
            text = f"{name}, {kind}: {np.count_nonzero(array == value) * voxel_ml:,.1f} ml"
            if kind == "prediction":
                handles.append(Patch(facecolor=to_rgba(colour, 0.6), label=text))
            else:
                handles.append(Line2D([], [], color=colour, linewidth=2, label=text))
    figure.legend(
        handles=handles, loc="lower right", frameon=False, labelcolor=TEXT, fontsize=11,
        bbox_to_anchor=(1 - 0.2 / width, 0.25 / height), handlelength=2.2, labelspacing=0.7,
    )  # fmt: skip
