"""Free-response ROC (FROC) of lesion detections, by the rules of the BCS-DBT challenge.

Follows the challenge's scorer (`evaluate` in duke_dbt_data.py, mazurowski-lab/duke-dbt-data; Buda et
al., JAMA Network Open 2021) in what a hit is, which box it hits, and the curve's points and their
interpolation. A curve is a sum over volumes, each counted once or several times.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage

from ahnet_tf.inference.lesion_nms import detect_lesions
from preprocessing.datasets.bcs_dbt import VolumeKey, dbt_case_id
from preprocessing.datasets.detection_table import Detection
from preprocessing.volumes.lesions import LesionBox

# A detection may miss the centre of a small box by this many in-plane voxels.
SMALLEST_REACH = 100
# The in-plane spacing of the challenge's volumes: a hit is at most 100 of these pixels, 8.5 mm, away.
CHALLENGE_PIXEL_MM = 0.085
# It may miss a box's slice by this share of the volume's slices.
SLICE_SHARE = 1 / 4
# False positives per volume at which sensitivity is reported.
RATES = (1.0, 2.0, 3.0, 4.0)
RATE_OF_ALL = 2.0


@dataclass(frozen=True, eq=False)
class ScoredVolume:
    """The number of reference boxes of a volume, and the scores and hits of its detections.

    Scores are float64 [detection]; hits are the number of the box that each detection hits, -1 for a
    false positive.
    """

    boxes: int
    scores: np.ndarray
    hits: np.ndarray


@dataclass(frozen=True, eq=False)
class Counts:
    """What each volume contributes at each threshold, float64; thresholds fall along the columns.

    They are infinity, the score of every hit, and minus infinity.
    """

    boxes: np.ndarray  # number of reference boxes [volume]
    found: np.ndarray  # boxes hit at or above the threshold [volume, threshold]
    false_positives: np.ndarray  # at or above the threshold, hitting nothing [volume, threshold]
    # 1 where the threshold is infinite or the score of a hit in the volume [volume, threshold].
    own: np.ndarray


def match_heat_map(
    heat_map_zyx: np.ndarray, lesions_zyx: np.ndarray, spacing_mm: tuple[float, float, float]
) -> ScoredVolume:
    """Detects lesions in a heat map [z, y, x] and matches them with the regions of a lesion mask.

    Regions connect 26 neighbours; spacing is (x, y, z). Both are scaled to the challenge's pixels
    first, so that its rule for a hit means the same distance in mm on every grid.
    """
    regions, _ = ndimage.label(lesions_zyx, np.ones((3, 3, 3), bool))
    boxes = []
    for z, y, x in ndimage.find_objects(regions):
        width, height, middle = x.stop - x.start, y.stop - y.start, (z.start + z.stop) / 2
        boxes.append(LesionBox(x.start, y.start, width, height, middle, len(lesions_zyx), ""))
    detections = detect_lesions(heat_map_zyx.transpose(), spacing_mm)
    return match_volume(in_pixels(detections, spacing_mm), in_pixels(boxes, spacing_mm))


def in_pixels(boxes: Sequence[Any], spacing_mm: Sequence[float]) -> list[Any]:
    """Returns boxes or detections, in voxels of a spacing (x, y), in the challenge's pixels."""
    x, y = (size / CHALLENGE_PIXEL_MM for size in spacing_mm[:2])
    return [
        replace(box, x=box.x * x, y=box.y * y, width=box.width * x, height=box.height * y)
        for box in boxes
    ]


def match_volume(detections: Sequence[Detection], boxes: Sequence[LesionBox]) -> ScoredVolume:
    """Matches the detections of one volume with its boxes.

    A detection hits a box if their in-plane centres are at most half the box's diagonal or
    `SMALLEST_REACH` voxels apart, whichever is more, and its middle slice Z + Depth / 2 is at most a
    quarter of the volume's slices from the box's. Of several such boxes it hits the one whose centre
    is nearest in voxel indices (x, y, z), the first one if distances are equal.
    """
    hits = []
    for detection in detections:
        reached = []
        for number, box in enumerate(boxes):
            dx = detection.x + detection.width / 2 - (box.x + box.width / 2)
            dy = detection.y + detection.height / 2 - (box.y + box.height / 2)
            dz = detection.z + detection.depth / 2 - box.slice_index
            reach = max(math.hypot(box.width, box.height) / 2, SMALLEST_REACH)
            if math.hypot(dx, dy) <= reach and abs(dz) <= box.volume_slices * SLICE_SHARE:
                reached.append((math.hypot(dx, dy, dz), number))
        hits.append(min(reached)[1] if reached else -1)
    scores = np.array([detection.score for detection in detections], np.float64)
    return ScoredVolume(len(boxes), scores, np.array(hits, np.int64))


def count(volumes: Sequence[ScoredVolume]) -> Counts:
    """Counts boxes found and false positives of each volume at each threshold of the curve.

    Further hits on a box already hit are neither.
    """
    hit_scores = [volume.scores[volume.hits >= 0] for volume in volumes]
    thresholds = np.unique(np.concatenate([np.empty(0), *hit_scores]))[::-1]
    thresholds = np.concatenate([[math.inf], thresholds, [-math.inf]])
    shape = (len(volumes), len(thresholds))
    found, false_positives, own = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    own[:, [0, -1]] = 1
    for row, volume in enumerate(volumes):
        false_positives[row] = (volume.scores[volume.hits < 0, None] >= thresholds).sum(axis=0)
        for box in set(volume.hits[volume.hits >= 0]):
            found[row] += volume.scores[volume.hits == box].max() >= thresholds
        own[row, np.isin(thresholds, hit_scores[row])] = 1
    boxes = np.array([volume.boxes for volume in volumes], float)
    return Counts(boxes, found, false_positives, own)


def curve(counts: Counts) -> tuple[np.ndarray, np.ndarray]:
    """Returns false positives per volume, rising, and the sensitivity there; NaN without boxes."""
    ((false_positives, found),) = _curves(counts, np.ones((1, len(counts.boxes))))
    return false_positives, found


def score_names() -> tuple[str, ...]:
    """Returns the names of the scores of `froc_scores`."""
    at_rates = tuple(f"sensitivity_at_{rate:g}_fp_volumes_with_boxes" for rate in RATES)
    mean = "sensitivity_mean_volumes_with_boxes"
    return (*at_rates, mean, f"sensitivity_at_{RATE_OF_ALL:g}_fp_all_volumes")


def froc_scores(counts: Counts, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns the challenge's scores, float64 [resample, score] with scores as in `score_names`.

    The sensitivities at 1, 2, 3 and 4 false positives per volume and their mean are over the volumes
    with boxes; the last one, at 2, is over all volumes. Points of the curve are joined by straight
    lines, and its last sensitivity holds for all higher rates, so that a perfect detector scores 1.
    NaN without boxes. `weights` says how often each volume counts [resample, volume]; once if None.
    """
    weights = np.ones((1, len(counts.boxes))) if weights is None else weights
    with_boxes = np.where(counts.boxes > 0, weights, 0.0)
    at_rates = np.array([np.interp(RATES, *points) for points in _curves(counts, with_boxes)])
    of_all = [np.interp(RATE_OF_ALL, *points) for points in _curves(counts, weights)]
    return np.column_stack([at_rates, at_rates.mean(axis=1), of_all])


def volume_rows(volumes: Mapping[VolumeKey, ScoredVolume]) -> dict[str, dict[str, int]]:
    """Returns a row of counts for each volume by case id, the lines of `scores.csv`."""
    rows = {}
    for key, volume in volumes.items():
        hit = len(np.unique(volume.hits[volume.hits >= 0]))
        missed = int(np.count_nonzero(volume.hits < 0))
        rows[dbt_case_id(*key)] = {
            "boxes": volume.boxes,
            "boxes_hit": hit,
            "detections": len(volume.hits),
            "false_positives": missed,
            "further_hits": len(volume.hits) - missed - hit,
        }
    return rows


def _curves(counts: Counts, weights: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the curve of each resample, with a point at each score of its own hits."""
    boxes, volumes = weights @ counts.boxes, weights.sum(axis=1)
    false_positives, found = weights @ counts.false_positives, weights @ counts.found
    own = weights @ counts.own > 0
    for row, kept in enumerate(own):
        if boxes[row]:
            yield false_positives[row, kept] / volumes[row], found[row, kept] / boxes[row]
        else:
            yield np.full(2, math.nan), np.full(2, math.nan)
