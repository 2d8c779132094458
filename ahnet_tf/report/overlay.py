"""Pictures of segmentations: slices of a case with prediction and reference drawn on them."""

from __future__ import annotations

import itertools
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

from ahnet_tf.report.reformat import (
    UPWARD,
    Cut,
    cut_plane,
    focus_voxel,
    foreground_box,
    slices_to_show,
)
from preprocessing.errors import InputError
from preprocessing.files import atomic_write
from preprocessing.page.colours import class_colour
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import Volume, axis_codes, to_target_grid

BACKGROUND, TEXT = "#000000", "#F2F2F2"
SLICES = 4
WIDTH_INCHES, MAX_HEIGHT_INCHES, DPI = 15.0, 5.2, 110
FILL_OPACITY = 0.36


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
    """Draws a case as a PNG: slices chosen by their content, and two cuts across them.

    Predictions are translucent areas (outlined too if there is no reference), references are
    outlines of the same colour. Slices lie where labels and disagreement are; the two cuts go
    through the rarest class. Everything is drawn at true aspect ratio in radiological convention.

    Args:
      path: output; appears whole or not at all.
      image_zyx: raw intensities [z, y, x], z being the slice axis.
      prediction_zyx: label values [z, y, x].
      reference_zyx: label values [z, y, x], or None.
      spacing_mm: voxel spacing (x, y, z).
      intensity_window: raw intensities shown as black and white.
      class_names: a name a label value, background first.
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
    box = foreground_box(prediction_zyx, reference_zyx, spacing_mm)
    closeups = [cut_plane(arrays, 0, z, box, spacing_mm, orientation) for z in slices]
    tall = (slice(None), *box[1:])
    across = [
        cut_plane(arrays, axis, focus[axis], tall, spacing_mm, orientation) for axis in (1, 2)
    ]

    figure, rows = _layout(closeups, across)
    for axes, cut in zip(rows[0] + rows[1], closeups + across, strict=True):
        _draw(axes, cut, intensity_window, len(class_names))
    for axes in rows[1]:
        _mark_slices(axes, slices, spacing_mm[2], upward=orientation[2] in UPWARD)
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
    """Draws a case in its own resolution, see `overlay_png`.

    Args:
      path: output; appears whole or not at all.
      image: the case as read from disk.
      prediction: label values [x, y, z] on the image's grid.
      reference: label values on the same grid, or None.
      task: gives the classes' names and the intensity window.
      title: headline of the picture.
    """
    keep = attrs.evolve(task, resampling="keep", spacing_mm=None)
    image_zyx, space = to_target_grid(image, keep)
    labels = [
        None
        if voxels is None
        else to_target_grid(Volume(voxels, image.affine), keep, label=True)[0]
        for voxels in (prediction, reference)
    ]
    overlay_png(
        path,
        image_zyx,
        *labels,
        spacing_mm=space.spacing_mm,
        intensity_window=task.intensity_window,
        class_names=task.class_names,
        title=title,
        orientation=axis_codes(np.array(space.affine)),
    )


def _layout(closeups: Sequence[Cut], across: Sequence[Cut]) -> tuple[Figure, list[list[Axes]]]:
    """Returns a figure with a row of axes for each list, each row filling the width it has."""
    header, label = 0.45, 0.3
    # The second row leaves room for the slices' numbers in its gaps and for the legend at its right.
    rows = ((closeups, 0.12, WIDTH_INCHES), (across, 0.5, WIDTH_INCHES * 0.7))
    heights = []
    for cuts, gap, room in rows:
        shape = sum(cut.size_mm[0] / cut.size_mm[1] for cut in cuts)
        heights.append(min(MAX_HEIGHT_INCHES, (room - gap * (len(cuts) + 1)) / shape))
    total = header + sum(heights) + 2 * label + 0.12
    figure = Figure(figsize=(WIDTH_INCHES, total), dpi=DPI, facecolor=BACKGROUND)
    axes, top = [], total - header
    for (cuts, gap, _), height in zip(rows, heights, strict=True):
        left, bottom = 0.12, top - label - height
        axes.append([])
        for cut in cuts:
            width = height * cut.size_mm[0] / cut.size_mm[1]
            box = (left / WIDTH_INCHES, bottom / total, width / WIDTH_INCHES, height / total)
            axes[-1].append(figure.add_axes(box))
            left += width + gap
        top = bottom
    return figure, axes


def _draw(axes: Axes, cut: Cut, intensity_window: tuple[float, float], classes: int) -> None:
    width, height = cut.size_mm
    extent = (0, width, 0, height)
    low, high = intensity_window
    axes.imshow(
        cut.image, cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent,
        interpolation="bilinear",
    )  # fmt: skip
    outlined = cut.prediction if cut.reference is None else cut.reference
    for value in range(1, classes):
        colour = class_colour(value)
        area = np.zeros((*cut.prediction.shape, 4))
        area[cut.prediction == value] = _rgba(value)
        axes.imshow(area, origin="lower", extent=extent, interpolation="nearest")
        _outline(axes, outlined == value, cut.size_mm, colour)
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.set_title(cut.name, color=TEXT, fontsize=10, loc="left", pad=4)
    left, right, bottom, top = cut.letters
    places = ((left, 0.015, 0.5), (right, 0.985, 0.5), (bottom, 0.5, 0.015), (top, 0.5, 0.985))
    for letter, x, y in places:
        axes.text(
            x, y, letter, transform=axes.transAxes, color=TEXT, fontsize=9, weight="bold",
            ha={0.015: "left", 0.985: "right"}.get(x, "center"),
            va={0.015: "bottom", 0.985: "top"}.get(y, "center"),
            path_effects=[patheffects.withStroke(linewidth=2, foreground=BACKGROUND)],
        )  # fmt: skip


def _outline(axes: Axes, mask: np.ndarray, size_mm: tuple[float, float], colour: str) -> None:
    """Draws the mask's border along its voxels, dark beneath so that it shows on bright tissue."""
    if not mask.any():
        return
    # A rim of background closes outlines that run into the picture's edge.
    padded = np.pad(mask, 1).astype(np.float64)
    x, y = (
        (np.arange(-1, count + 1) + 0.5) * size / count
        for count, size in zip(mask.shape[::-1], size_mm, strict=True)
    )
    lines = axes.contour(x, y, padded, levels=[0.5], colors=[colour], linewidths=1.4)
    lines.set_path_effects(
        [patheffects.Stroke(linewidth=2.4, foreground="#00000080"), patheffects.Normal()]
    )


def _mark_slices(axes: Axes, slices: Sequence[int], step_mm: float, *, upward: bool) -> None:
    """Ticks at the right of a cut say where the slices of the first row lie, by their numbers."""
    height_mm = axes.get_ylim()[1]
    height_inches = axes.get_position().height * axes.figure.get_size_inches()[1]
    apart_mm = 0.15 * height_mm / height_inches
    heights_mm = [(index + 0.5) * step_mm for index in slices]
    if not upward:
        heights_mm = [height_mm - y for y in heights_mm]
    below = -np.inf
    for y, index in sorted(zip(heights_mm, slices, strict=True)):
        # Numbers of neighbouring slices make room for each other.
        below = max(y, below + apart_mm)
        axes.annotate(
            str(index + 1), xy=(1, y), xytext=(1.06, below), xycoords=axes.get_yaxis_transform(),
            textcoords=axes.get_yaxis_transform(), color=TEXT, fontsize=8, va="center",
            arrowprops={"arrowstyle": "-", "color": TEXT, "linewidth": 0.8, "shrinkB": 0},
            annotation_clip=False,
        )  # fmt: skip


def _describe(
    figure: Figure,
    title: str,
    class_names: Sequence[str],
    labels: tuple[np.ndarray, np.ndarray | None],
    spacing_mm: tuple[float, float, float],
) -> None:
    """Writes the headline and, in the free corner, the legend with each class' volume."""
    width, height = figure.get_size_inches()
    figure.text(
        0.12 / width, 1 - 0.14 / height, title, color=TEXT, fontsize=15, weight="bold", va="top"
    )
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    kinds = ("prediction", "reference")
    handles: list[Patch | Line2D] = []
    for value, name in itertools.islice(enumerate(class_names), 1, None):
        for kind, array in zip(kinds, labels, strict=True):
            if array is None:
                continue
            volume_ml = np.count_nonzero(array == value) * voxel_ml
            text = f"{name}, {kind}: {volume_ml:,.1f} ml"
            colour = class_colour(value)
            if kind == "prediction":
                edge = colour if labels[1] is None else "none"
                handles.append(Patch(facecolor=_on_tissue(value), edgecolor=edge, label=text))
            else:
                handles.append(Line2D([], [], color=colour, linewidth=2, label=text))
    figure.legend(
        handles=handles, loc="lower right", frameon=False, labelcolor=TEXT, fontsize=11,
        bbox_to_anchor=(1 - 0.2 / width, 0.25 / height), handlelength=2.2, labelspacing=0.7,
    )  # fmt: skip


def _rgba(value: int) -> tuple[float, float, float, float]:
    return to_rgba(class_colour(value), FILL_OPACITY)


def _on_tissue(value: int) -> tuple[float, ...]:
    """Returns the colour that a class' area has over mid-grey, so that the legend looks like it."""
    *rgb, opacity = _rgba(value)
    return tuple(opacity * channel + (1 - opacity) * 0.55 for channel in rgb)
