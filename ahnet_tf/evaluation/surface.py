"""Distances between the surfaces of two masks: measures of LiTS, surface Dice, HD95.

The surface of LiTS consists of the voxels at a mask's border, all of the same weight. That of surface
Dice and HD95 consists of marching-cubes elements between the voxels, weighted by area, as in
google-deepmind/surface-distance (Nikolov et al. 2018, arXiv 1809.04430).

Masks are bool [any 3 axes], and spacings in mm are along these axes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree
from surface_distance.lookup_tables import create_table_neighbour_code_to_surface_area


def surface_distances_mm(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distance of every surface voxel of one mask to the nearest of the other.

    Surface voxels have a background voxel among their 18 neighbours; outside the array is
    background (Heimann et al. 2009; surface.py of lits-challenge-scoring). The distances in mm,
    float64, are those from prediction to reference and back; both empty if either mask is.
    """
    neighbours = ndimage.generate_binary_structure(3, 2)
    predicted_mm, reference_mm = (
        np.argwhere(mask & ~ndimage.binary_erosion(mask, neighbours))
        * np.asarray(spacing_mm, float)
        for mask in (prediction, reference)
    )
    if len(predicted_mm) == 0 or len(reference_mm) == 0:
        return np.empty(0), np.empty(0)
    return _nearest_mm(predicted_mm, reference_mm), _nearest_mm(reference_mm, predicted_mm)


def symmetric_distances_mm(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float]
) -> dict[str, float]:
    """Returns ASSD, RMSD and MSD of two masks in mm; NaN if either is empty.

    With d the distances of `surface_distances_mm` in both directions: assd = mean(d),
    rmsd = sqrt(mean(d^2)), msd = max(d), also known as Hausdorff distance.
    """
    distances = np.concatenate(surface_distances_mm(prediction, reference, spacing_mm))
    if len(distances) == 0:
        return dict.fromkeys(("assd_mm", "rmsd_mm", "msd_mm"), math.nan)
    return {
        "assd_mm": float(distances.mean()),
        "rmsd_mm": float(np.sqrt(np.mean(distances**2))),
        "msd_mm": float(distances.max()),
    }


def surface_dice_and_hd95(
    prediction: np.ndarray, reference: np.ndarray, spacing_mm: Sequence[float], tolerance_mm: float
) -> dict[str, float]:
    """Returns surface Dice and HD95 of two masks.

    surface_dice is the share of the area of both surfaces that lies within the tolerance of the other
    surface: NaN if both masks are empty, 0 if one is. hd95_mm is the larger of the two distances
    within which 95 % of one surface's area lies to the other surface; NaN if either mask is empty.
    """
    predicted_mm, predicted_areas = _surface_elements(prediction, spacing_mm)
    reference_mm, reference_areas = _surface_elements(reference, spacing_mm)
    total = predicted_areas.sum() + reference_areas.sum()
    if len(predicted_mm) == 0 or len(reference_mm) == 0:
        return {"surface_dice": 0.0 if total else math.nan, "hd95_mm": math.nan}
    there = _nearest_mm(predicted_mm, reference_mm)
    back = _nearest_mm(reference_mm, predicted_mm)
    within = predicted_areas[there <= tolerance_mm].sum()
    within += reference_areas[back <= tolerance_mm].sum()
    return {
        "surface_dice": float(within / total),
        "hd95_mm": max(_percentile(there, predicted_areas), _percentile(back, reference_areas)),
    }


def _percentile(distances: np.ndarray, areas: np.ndarray) -> float:
    """Returns the smallest distance within which at least 95 % of the area lies."""
    order = np.argsort(distances)
    shares = np.cumsum(areas[order]) / areas.sum()
    last = min(int(np.searchsorted(shares, 0.95)), len(order) - 1)
    return float(distances[order[last]])


def _surface_elements(
    mask: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions in mm and the areas in mm^2 of a mask's surface elements.

    An element lies between eight voxels, some inside and some outside, whose bits make up a code;
    its area is that of the marching-cubes triangles of the code.
    """
    codes = np.pad(mask, 1).view(np.uint8)
    codes = 2 * codes[:, :, :-1] + codes[:, :, 1:]
    codes = 4 * codes[:, :-1] + codes[:, 1:]
    codes = 16 * codes[:-1] + codes[1:]
    surface = (codes != 0) & (codes != 255)
    areas = _areas_by_code(tuple(map(float, spacing_mm)))[codes[surface]]
    return np.argwhere(surface) * np.asarray(spacing_mm, float), areas


# Cached: a case with many lesions needs the table for each of them.
@functools.lru_cache(maxsize=4)
def _areas_by_code(spacing_mm: tuple[float, ...]) -> np.ndarray:
    return create_table_neighbour_code_to_surface_area(spacing_mm)


def _nearest_mm(points_mm: np.ndarray, others_mm: np.ndarray) -> np.ndarray:
    # Voxel centres lie on a grid; an unbalanced tree is faster to build there.
    tree = cKDTree(others_mm, balanced_tree=False, compact_nodes=False)
    return tree.query(points_mm, workers=-1)[0]
