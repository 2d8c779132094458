"""Lesion detection in heat maps: peaks after 3D non-maximum suppression, each with box and score."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.morphology import local_maxima

from preprocessing.datasets.detection_table import Detection
from preprocessing.errors import SettingsError
from preprocessing.settings import is_number, is_whole

# Largest distance of a box's sides from its peak; bounds the work if scores are similar everywhere.
REACH_MM = 40.0

# What a mm along x, y and z counts in the distance of two peaks.
DEPTH_COUNTS = np.array([1.0, 1.0, 1 / 3])

_NEIGHBOURS = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class DetectionSettings:
    """Which peaks of a heat map are lesions."""

    # Lowest peak, above 0 and up to 1. Low by default, because FROC evaluates all thresholds.
    threshold: float = 0.1
    most: int = 10  # lesions per volume; the highest peaks are kept
    # Of two peaks closer than this, the lower one is removed; distances along z count a third, since the
    # missing angles of tomosynthesis smear a lesion along z. The BCS-DBT scorer counts a detection within
    # 100 pixels (8.5 mm) and a quarter of the slices as a hit.
    minimum_distance_mm: float = 10.0

    def __post_init__(self):
        if not is_number(self.threshold) or not 0 < self.threshold <= 1:
            raise SettingsError("threshold", "above 0 and up to 1", self.threshold)
        if not is_whole(self.most) or self.most < 1:
            raise SettingsError("most lesions", "a whole number of at least 1", self.most)
        if not is_number(self.minimum_distance_mm) or self.minimum_distance_mm < 0:
            raise SettingsError("minimum distance", "0 mm or more", self.minimum_distance_mm)


def detect_lesions(
    heat_map: np.ndarray,
    spacing_mm: tuple[float, float, float],
    settings: DetectionSettings | None = None,
) -> list[Detection]:
    """Returns the lesions of a heat map, the highest score first.

    A peak is a local maximum among 26 neighbours; a plateau counts once. From the highest peak down,
    each is kept unless a kept one is closer than the minimum distance. Its box holds the connected
    voxels of at least half its height that are no nearer to another lesion and within `REACH_MM` along
    each axis; on a training target (`preprocessing.volumes.lesions`) that is the lesion itself. A peak
    on a broad foot is no larger than its top: a target is sqrt(2) times as wide at half of its height
    as at three quarters of it, so no side is further away than that.

    The heat map holds probabilities [x, y, z] of any floating dtype, and the spacing is (x, y, z).
    """
    settings = settings or DetectionSettings()
    spacing = np.asarray(spacing_mm)
    peaks, scores = _peaks(heat_map, settings.threshold)
    kept: list[int] = []
    left = np.arange(len(scores))
    while left.size and len(kept) < settings.most:
        highest, left = int(left[0]), left[1:]
        kept.append(highest)
        away_mm = np.linalg.norm((peaks[left] - peaks[highest]) * spacing * DEPTH_COUNTS, axis=1)
        left = left[away_mm >= settings.minimum_distance_mm]
    return [
        _lesion(heat_map, number, peaks[kept], float(scores[peak]), spacing)
        for number, peak in enumerate(kept)
    ]


def _peaks(heat_map: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns local maxima [peak, axis] of at least the threshold and their values, highest first."""
    regions, _ = ndimage.label(heat_map >= threshold, _NEIGHBOURS)
    peaks, scores = [], []
    for number, box in enumerate(ndimage.find_objects(regions), start=1):
        # Padded, because local_maxima finds none in a constant array.
        values = np.pad(np.where(regions[box] == number, heat_map[box], 0), 1)
        plateaus, count = ndimage.label(local_maxima(values, connectivity=3), _NEIGHBOURS)
        middles = _middles(plateaus, count)
        scores.append(values[tuple(middles.T)])
        peaks.append(middles + [side.start - 1 for side in box])
    if not peaks:
        return np.empty((0, 3), int), np.empty(0)
    heights = np.concatenate(scores)
    order = np.argsort(-heights, kind="stable")
    return np.concatenate(peaks)[order], heights[order]


def _middles(plateaus: np.ndarray, count: int) -> np.ndarray:
    """Returns the voxel nearest to the centre of each labelled plateau, [plateau, axis]."""
    voxels = np.argwhere(plateaus)
    numbers = plateaus[tuple(voxels.T)]
    centres = np.array(ndimage.center_of_mass(plateaus > 0, plateaus, np.arange(1, count + 1)))
    off_centre = np.square(voxels - centres[numbers - 1]).sum(axis=1)
    voxels = voxels[np.lexsort((off_centre, numbers))]
    return voxels[np.searchsorted(np.sort(numbers), np.arange(1, count + 1))]


def _lesion(
    heat_map: np.ndarray, number: int, peaks: np.ndarray, score: float, spacing_mm: np.ndarray
) -> Detection:
    """Returns the lesion at `peaks[number]`, see `detect_lesions`."""
    peak = peaks[number]
    most = np.ceil(REACH_MM / spacing_mm).astype(int)
    down, up = _sides(heat_map, number, peaks, score / 2, most, spacing_mm)
    for sides, high in zip(
        (down, up), _sides(heat_map, number, peaks, 3 / 4 * score, most, spacing_mm), strict=True
    ):
        np.minimum(sides, np.floor(math.sqrt(2) * (high + 1)).astype(int), out=sides)
    return Detection(score, *(peak - down).tolist(), *(down + up + 1).tolist())


def _sides(
    heat_map: np.ndarray,
    number: int,
    peaks: np.ndarray,
    level: float,
    most: np.ndarray,
    spacing_mm: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns how far voxels of at least `level` reach below and above a peak, in voxels [axis].

    They are connected to it and no nearer to another peak.
    """
    peak = peaks[number]
    voxels = _region(heat_map, peak, level, most)
    # Seen from the peak, a voxel v is no nearer to another peak q where v q <= q q / 2.
    others_mm = (np.delete(peaks, number, axis=0) - peak) * spacing_mm
    limits = np.square(others_mm).sum(axis=1) / 2
    steps = voxels - peak
    # The small term keeps voxels half-way between two peaks, whatever the rounding.
    steps = steps[(steps @ (others_mm * spacing_mm).T <= limits + 1e-6).all(axis=1)]
    return -steps.min(axis=0), steps.max(axis=0)


def _region(heat_map: np.ndarray, peak: np.ndarray, level: float, most: np.ndarray) -> np.ndarray:
    """Returns the voxels [voxel, axis] of at least `level` that are connected to a peak.

    The searched box grows while the voxels touch its sides, up to `most` voxels from the peak along
    each axis: the cost depends on the lesion, not on the volume.
    """
    reach = np.minimum(8, most)
    while True:
        low = np.maximum(0, peak - reach)
        high = np.minimum(heat_map.shape, peak + reach + 1)
        box = tuple(slice(start, end) for start, end in zip(low, high, strict=True))
        regions, _ = ndimage.label(heat_map[box] >= level, _NEIGHBOURS)
        voxels = np.argwhere(regions == regions[tuple(peak - low)]) + low
        touches = (voxels.min(axis=0) == low) & (low > 0)
        touches |= (voxels.max(axis=0) == high - 1) & (high < heat_map.shape)
        if not (touches & (reach < most)).any():
            return voxels
        reach = np.minimum(2 * reach, most)
