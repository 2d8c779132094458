"""FROC of a heat-map network while training, from tiles that cover each volume exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from ahnet_tf.evaluation.froc import (
    CHALLENGE_SPACING_MM,
    SMALLEST_REACH,
    ScoredVolume,
    count,
    froc_scores,
    match_volume,
    score_names,
)
from ahnet_tf.inference.lesion_nms import detect_lesions
from preprocessing.volumes.lesions import LesionBox

# The challenge's mean sensitivity at 1 to 4 false positives per volume, over volumes with lesions.
FROC = "froc_mean_sensitivity"
_SCORE = score_names().index("sensitivity_mean_volumes_with_boxes")


class VolumeDetections:
    """Detects the lesions of each volume once its tiles are complete, and matches them with its own."""

    def __init__(self) -> None:
        self.volumes: dict[str, ScoredVolume] = {}  # complete ones, by case id
        # Heat map and label map [z, y, x] of others, by case id, and the voxels they still lack.
        self._maps: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._missing: dict[str, int] = {}

    def add(self, tiles: Mapping[str, np.ndarray]) -> None:
        """Adds a batch of tiles of `evaluation_dataset` with their `probability` [b, z, y, x]."""
        for row, case in enumerate(tiles["case_id"]):
            # Copies that fill the last batch have no weight.
            if tiles["weight"][row, 0, 0, 0]:
                self._add(case.decode(), {name: values[row] for name, values in tiles.items()})

    def _add(self, case_id: str, tile: Mapping[str, np.ndarray]) -> None:
        origin, valid, shape = (tile[f"{name}_zyx"] for name in ("origin", "valid", "volume"))
        if case_id not in self._maps:
            self._maps[case_id] = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
            self._missing[case_id] = math.prod(shape)
        inside = tuple(map(slice, valid))
        place = tuple(map(slice, origin, origin + valid))
        for target, name in zip(self._maps[case_id], ("probability", "label"), strict=True):
            target[place] = tile[name][inside]
        self._missing[case_id] -= math.prod(valid)
        if not self._missing[case_id]:
            self.volumes[case_id] = _scored(*self._maps.pop(case_id), tile["spacing_mm"].tolist())

    def score(self) -> float:
        """Returns the mean sensitivity of `FROC`; NaN without lesions."""
        volumes = [self.volumes[case_id] for case_id in sorted(self.volumes)]
        return float(froc_scores(count(volumes))[0, _SCORE])


def _scored(
    heat_map_zyx: np.ndarray, label_zyx: np.ndarray, spacing_mm: tuple[float, float, float]
) -> ScoredVolume:
    """Matches as the challenge does, with its smallest reach in mm instead of voxels."""
    found = detect_lesions(heat_map_zyx.T, spacing_mm)
    reach = SMALLEST_REACH * CHALLENGE_SPACING_MM / spacing_mm[0]
    return match_volume(found, lesion_boxes(label_zyx), reach)


def lesion_boxes(label_zyx: np.ndarray) -> list[LesionBox]:
    """Returns the boxes of the connected regions (26 neighbours) of a lesion mask [z, y, x]."""
    regions, _ = ndimage.label(label_zyx > 0, np.ones((3, 3, 3)))
    boxes = []
    for z, y, x in ndimage.find_objects(regions):
        width, height, middle = x.stop - x.start, y.stop - y.start, (z.start + z.stop) // 2
        boxes.append(LesionBox(x.start, y.start, width, height, middle, len(label_zyx), ""))
    return boxes
