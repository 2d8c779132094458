"""FROC of a heat-map network while training, from tiles that cover each volume exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

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


@dataclass
class _Volume:
    heat_map_zyx: np.ndarray
    label_zyx: np.ndarray
    missing: int  # voxels that no tile has brought yet


@dataclass
class VolumeDetections:
    """Detects the lesions of each volume once its tiles are complete, and matches them with its own."""

    volumes: dict[str, ScoredVolume] = field(default_factory=dict)  # complete ones, by case id
    _incomplete: dict[str, _Volume] = field(default_factory=dict)

    def add(self, tiles: Mapping[str, np.ndarray]) -> None:
        """Adds a batch of tiles of `evaluation_dataset` with their `probability` [b, z, y, x]."""
        for row, case in enumerate(tiles["case_id"]):
            # Copies that fill the last batch have no weight.
            if tiles["weight"][row, 0, 0, 0]:
                self._add(case.decode(), {name: values[row] for name, values in tiles.items()})

    def _add(self, case_id: str, tile: Mapping[str, np.ndarray]) -> None:
        if case_id not in self._incomplete:
            shape = tuple(tile["volume_zyx"].tolist())
            maps = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
            self._incomplete[case_id] = _Volume(*maps, math.prod(shape))
        volume = self._incomplete[case_id]
        inside = tuple(slice(size) for size in tile["valid_zyx"])
        place = tuple(
            slice(o, o + n) for o, n in zip(tile["origin_zyx"], tile["valid_zyx"], strict=True)
        )
        volume.heat_map_zyx[place] = tile["probability"][inside]
        volume.label_zyx[place] = tile["label"][inside]
        volume.missing -= math.prod(tile["valid_zyx"].tolist())
        if not volume.missing:
            del self._incomplete[case_id]
            spacing_mm = tuple(tile["spacing_mm"].tolist())
            self.volumes[case_id] = _scored(volume, spacing_mm)

    def score(self) -> float:
        """Returns the mean sensitivity of `FROC`; NaN without lesions."""
        volumes = [self.volumes[case_id] for case_id in sorted(self.volumes)]
        return float(froc_scores(count(volumes))[0, _SCORE])


def _scored(volume: _Volume, spacing_mm: tuple[float, float, float]) -> ScoredVolume:
    """Matches as the challenge does, with its smallest reach in mm instead of voxels."""
    found = detect_lesions(volume.heat_map_zyx.T, spacing_mm)
    reach = SMALLEST_REACH * CHALLENGE_SPACING_MM / spacing_mm[0]
    return match_volume(found, lesion_boxes(volume.label_zyx), reach)


def lesion_boxes(label_zyx: np.ndarray) -> list[LesionBox]:
    """Returns the boxes of the connected regions (26 neighbours) of a lesion mask [z, y, x]."""
    regions, _ = ndimage.label(label_zyx > 0, np.ones((3, 3, 3)))
    return [
        LesionBox(
            x=x.start,
            y=y.start,
            width=x.stop - x.start,
            height=y.stop - y.start,
            slice_index=(z.start + z.stop) // 2,
            volume_slices=len(label_zyx),
            lesion_class="",
        )
        for z, y, x in ndimage.find_objects(regions)
    ]
