"""Overlay pictures: slices of a case with prediction and reference drawn on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

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


def overlay_png(
    path: str | Path,
    image_zyx: np.ndarray,
    prediction_zyx: np.ndarray,
    reference_zyx: np.ndarray | None,
    *,
    spacing_mm: tuple[float, float, float],
    intensity_window: tuple[float, float],
    class_names: Sequence[str],
    title: str,
    orientation: str = "RAS",
) -> None:
    """Draws a case as a PNG: slices chosen by their content, and two planes across them.

    Predictions are translucent areas (outlined too if there is no reference), references are
    outlines of the same colour. Slices are chosen where labels and disagreement are; the two planes
    go through the last class. All are drawn at true aspect ratio in radiological convention.

    Args:
      path: output, written atomically.
      image_zyx: raw intensities [z, y, x], z being the slice axis.
      prediction_zyx: label values [z, y, x].
      reference_zyx: label values [z, y, x], or None.
      spacing_mm: voxel spacing (x, y, z).
      intensity_window: raw intensities shown as black and white.
      class_names: a name for each label value, background first.
      title: headline of the picture.
      orientation: direction in which x, y and z grow, as in "RAS".

    Raises:
      InputError: the arrays differ in shape.
    """
    for name, labels in (("prediction", prediction_zyx), ("reference", reference_zyx)):
        if labels is not None and labels.shape != image_zyx.shape:
            raise InputError(name, f"the image's shape {image_zyx.shape}", labels.shape)
    arrays = (image_zyx, prediction_zyx, reference_zyx)
    slices = slices_to_show(prediction_zyx, reference_zyx, len(class_names), SLICES)
    focus = focus_voxel(prediction_zyx, reference_zyx, len(class_names))
    given = [labels for labels in arrays[1:] if labels is not None]
    region = foreground_region(given, spacing_mm[::-1], MARGIN_MM)
    closeups = [reformatted_plane(arrays, 0, z, region, spacing_mm, orientation) for z in slices]
    tall = (slice(None), *region[1:])
    across = [
        reformatted_plane(arrays, axis, focus[axis], tall, spacing_mm, orientation)
        for axis in (1, 2)
    ]
    figure, axes = _layout(closeups, across)
    for own, plane in zip(axes, closeups + across, strict=True):
        _draw(own, plane, intensity_window, len(class_names))
    _describe(figure, title, class_names, arrays[1:], spacing_mm)
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


def overlay_case(
    path: str | Path,
    image: Volume,
    prediction: np.ndarray,
    reference: np.ndarray | None,
    task: Task,
    title: str,
) -> None:
    """Draws a case at its own resolution, see `overlay_png`.

    Args:
      path: output, written atomically.
      image: the case as read from disk.
      prediction: label values [x, y, z] on the image's grid.
      reference: label values on the same grid, or None.
      task: gives class names and intensity window.
      title: headline of the picture.
    """
    keep = dataclasses.replace(task, resampling="keep", spacing_mm=None)
    image_zyx, grid = to_target_grid(image, keep)
    prediction_zyx, reference_zyx = (
        None
        if voxels is None
        else to_target_grid(Volume(voxels, image.affine), keep, label=True)[0]
        for voxels in (prediction, reference)
    )
    overlay_png(
        path,
        image_zyx,
        prediction_zyx,
        reference_zyx,
        spacing_mm=grid.spacing_mm,
        intensity_window=task.intensity_window,
        class_names=task.class_names,
        title=title,
        orientation=axis_codes(np.array(grid.affine)),
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
    extent = (0, width, 0, height)
    low, high = intensity_window
    axes.imshow(
        plane.image, cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent,
        interpolation="bilinear",
    )  # fmt: skip
    outlined = plane.prediction if plane.reference is None else plane.reference
    for value in range(1, classes):
        area = np.zeros((*plane.prediction.shape, 4))
        area[plane.prediction == value] = to_rgba(class_colour(value), FILL_OPACITY)
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
    labels: tuple[np.ndarray, np.ndarray | None],
    spacing_mm: tuple[float, float, float],
) -> None:
    """Writes the headline and, in the free corner, the legend with the volume of each class."""
    width, height = figure.get_size_inches()
    figure.text(
        0.12 / width, 1 - 0.14 / height, title, color=TEXT, fontsize=15, weight="bold", va="top"
    )
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    handles: list[Patch | Line2D] = []
    for value, name in enumerate(class_names):
        for kind, array in zip(("prediction", "reference"), labels, strict=True):
            if value == 0 or array is None:
                continue
            text = f"{name}, {kind}: {np.count_nonzero(array == value) * voxel_ml:,.1f} ml"
            colour = class_colour(value)
            if kind == "prediction":
                edge = colour if labels[1] is None else "none"
                handles.append(Patch(facecolor=to_rgba(colour, 0.6), edgecolor=edge, label=text))
            else:
                handles.append(Line2D([], [], color=colour, linewidth=2, label=text))
    figure.legend(
        handles=handles, loc="lower right", frameon=False, labelcolor=TEXT, fontsize=11,
        bbox_to_anchor=(1 - 0.2 / width, 0.25 / height), handlelength=2.2, labelspacing=0.7,
    )  # fmt: skip
