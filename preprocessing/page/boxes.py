"""Lesion boxes of a data set as a page draws them."""

from __future__ import annotations

from collections.abc import Sequence

from preprocessing.page.volumes import Box
from preprocessing.volumes.lesions import LesionBox, box_ellipsoid


def reference_boxes(
    boxes: Sequence[LesionBox], spacing_mm: tuple[float, float, float]
) -> list[Box]:
    """Returns reference boxes, as deep as their lesions are taken to be (`box_ellipsoid`).

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
