"""FROC of a heat-map network while training, from tiles that cover each volume exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ahnet_tf.evaluation.froc import ScoredVolume, count, froc_scores, match_heat_map, score_names

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
            spacing_mm = tuple(tile["spacing_mm"].tolist())
            self.volumes[case_id] = match_heat_map(*self._maps.pop(case_id), spacing_mm)

    def score(self) -> float:
        """Returns the mean sensitivity of `FROC`; NaN without lesions."""
        volumes = [self.volumes[case_id] for case_id in sorted(self.volumes)]
        return float(froc_scores(count(volumes))[0, _SCORE])
