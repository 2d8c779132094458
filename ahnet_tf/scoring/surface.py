"""Distances between the surfaces of two masks, as the LiTS challenge measures them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree


def surface_distances_mm(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distance of every surface voxel of one mask to the nearest of the other.

    The surface of a mask are its voxels with a background voxel among their 18 neighbours; beyond
    the array lies background (Heimann et al. 2009; surface.py of lits-challenge-scoring).

    Args:
      prediction: bool [any 3 axes].
      reference: bool, of the same shape.
      spacing_mm: voxel spacing along the arrays' own axes.

    Returns:
      (prediction to reference, reference to prediction), float64 distances in mm; both empty if
      either mask is.
    """
    predicted_mm = _surface_points_mm(prediction, spacing_mm)
    reference_mm = _surface_points_mm(reference, spacing_mm)
    if len(predicted_mm) == 0 or len(reference_mm) == 0:
        return np.empty(0), np.empty(0)
    return _nearest_mm(predicted_mm, reference_mm), _nearest_mm(reference_mm, predicted_mm)


def symmetric_distances_mm(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float]
) -> dict[str, float]:
    """Returns ASSD, RMSD and MSD of two masks in mm; NaN if either is empty.

    With d the distances of both surfaces to each other (see `surface_distances_mm`):
    assd = mean(d), rmsd = sqrt(mean(d^2)), msd = max(d), also known as Hausdorff distance.
    """
    distances = np.concatenate(surface_distances_mm(prediction, reference, spacing_mm))
    if len(distances) == 0:
        return {"assd_mm": math.nan, "rmsd_mm": math.nan, "msd_mm": math.nan}
    return {
        "assd_mm": float(distances.mean()),
        "rmsd_mm": float(np.sqrt(np.mean(distances**2))),
        "msd_mm": float(distances.max()),
    }


def _surface_points_mm(mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    boxes = ndimage.find_objects(mask.astype(np.uint8))
    if not boxes:
        return np.empty((0, 3))
    # Outside its bounding box the mask has nothing, so the box's border is surface either way.
    inside = mask[boxes[0]]
    surface = inside & ~_eroded(inside)
    origin = [axis.start for axis in boxes[0]]
    return (np.argwhere(surface) + origin) * np.asarray(spacing_mm, np.float64)


def _eroded(mask: np.ndarray) -> np.ndarray:
    """Returns the voxels whose 18 neighbours all belong to the mask.

    The 18 neighbours are three 3x3 squares, one in each plane, and a square is a row of rows:
    several times faster than ndimage.binary_erosion with the same answer.
    """
    padded = np.pad(mask, 1)
    along_x, along_y = _threes(padded, 0), _threes(padded[1:-1], 1)
    return _threes(along_x[:, :, 1:-1], 1) & _threes(along_x[:, 1:-1], 2) & _threes(along_y, 2)


def _threes(mask: np.ndarray, axis: int) -> np.ndarray:
    """Returns where a voxel and its two neighbours along an axis are set, without the ends."""
    first, middle, last = (
        mask[(slice(None),) * axis + (part,)]
        for part in (slice(None, -2), slice(1, -1), slice(2, None))
    )
    return first & middle & last


def _nearest_mm(points_mm: np.ndarray, others_mm: np.ndarray) -> np.ndarray:
    # Voxel centres lie on a grid; an unbalanced tree is built faster there and answers the same.
    tree = cKDTree(others_mm, balanced_tree=False, compact_nodes=False)
    return tree.query(points_mm, workers=-1)[0]
