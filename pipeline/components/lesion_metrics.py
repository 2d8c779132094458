"""FROC of lesions inside TFMA: each case's heat map is assembled from its patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_model_analysis as tfma

from ahnet_tf.evaluation.froc import ScoredVolume, count, froc_scores, match_heat_map, score_names
from ahnet_tf.inference.lesion_nms import DetectionSettings
from pipeline.components.evaluator import case_computations
from preprocessing.records.schema import HEAT_MAP
from preprocessing.volumes.lesions import LESION_THRESHOLD

# Output of the model, see `serving.export.signatures`.
LESION_PROBABILITY = "lesion_probability"
# A detected lesion extends to half the height of its peak.
LEAST_KEPT = DetectionSettings().threshold / 2
# Bounds the memory if a network is unsure everywhere: the highest voxels of a patch are kept, of equal
# ones the first.
MOST_KEPT = 200_000

FEATURES = (
    HEAT_MAP,
    *(f"{name}_{axis}" for name in ("shape", "origin", "valid", "volume") for axis in "zyx"),
    *(f"spacing_{axis}_mm" for axis in "xyz"),
)


@dataclass(frozen=True, eq=False)
class PatchMaps:
    """The relevant voxels of one patch, as indices into the flattened volume of its case."""

    shape_zyx: tuple[int, ...]  # of the volume
    spacing_mm: tuple[float, float, float]  # x, y, z
    places: np.ndarray  # voxels with a probability of at least `LEAST_KEPT`
    heights: np.ndarray  # their probabilities
    lesions: np.ndarray  # voxels of the reference lesions


class LesionsPerCase(tfma.metrics.Metric):
    """FROC of the lesions in the cases of a slice (see `lesion_summary` for the names)."""

    def __init__(self, name: str = "lesions_per_case"):
        super().__init__(_lesion_computations, name=name)


def lesion_score_names() -> tuple[str, ...]:
    """Returns the names of the scores."""
    return ("lesions", "lesion_recall", "false_positives_per_volume", *score_names())


def lesion_summary(volumes: Sequence[ScoredVolume]) -> dict[str, float]:
    """Returns the scores of volumes whose detections are matched with the reference lesions.

    The scores are `lesions`, the number in the reference; `lesion_recall`, the fraction of them that
    any detection hits; `false_positives_per_volume` of all detections; and FROC's sensitivities.
    Recall and sensitivities are NaN without lesions.
    """
    boxes = sum(volume.boxes for volume in volumes)
    hit = sum(len(np.unique(volume.hits[volume.hits >= 0])) for volume in volumes)
    missed = sum(int(np.sum(volume.hits < 0)) for volume in volumes)
    (points,) = froc_scores(count(volumes))
    return {
        "lesions": float(boxes),
        "lesion_recall": hit / boxes if boxes else float("nan"),
        "false_positives_per_volume": missed / len(volumes),
        **dict(zip(score_names(), map(float, points), strict=True)),
    }


def score_cases(cases: Sequence[Sequence[PatchMaps]]) -> dict[str, float]:
    """Returns the scores of cases (see `lesion_summary`)."""
    return lesion_summary([score_maps(patches) for patches in cases])


def score_maps(patches: Sequence[PatchMaps]) -> ScoredVolume:
    """Detects lesions in a case's heat map and matches them with the reference lesions."""
    shape_zyx, spacing_mm = patches[0].shape_zyx, patches[0].spacing_mm
    heat_map, lesions = np.zeros(shape_zyx, np.float32), np.zeros(shape_zyx, bool)
    for patch in patches:
        np.put(heat_map, patch.places, patch.heights)
        np.put(lesions, patch.lesions, True)
    return match_heat_map(heat_map, lesions, spacing_mm)


def cut_maps(
    features: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]
) -> list[PatchMaps]:
    """Returns one patch's part of the heat maps of its case.

    The features are `FEATURES`; the outputs hold `LESION_PROBABILITY` [1, z, y, x].
    """

    def value(name: str) -> Any:
        return np.asarray(features[name]).item()

    volume, origin, shape, valid = (
        tuple(int(value(f"{name}_{axis}")) for axis in "zyx")
        for name in ("volume", "origin", "shape", "valid")
    )
    inside = tuple(slice(size) for size in valid)
    stored = np.frombuffer(value(HEAT_MAP), np.uint8).reshape(shape)
    reference = stored[inside] >= LESION_THRESHOLD
    probability = np.asarray(outputs[LESION_PROBABILITY])
    probability = probability.reshape(probability.shape[-3:])[inside]
    kept = probability >= LEAST_KEPT
    if np.count_nonzero(kept) > MOST_KEPT:
        least = np.partition(probability, -MOST_KEPT, axis=None)[-MOST_KEPT]
        kept = probability > least
        tied = np.flatnonzero(probability == least)
        np.put(kept, tied[: MOST_KEPT - np.count_nonzero(kept)], True)

    def places(mask: np.ndarray) -> np.ndarray:
        voxels = [index + start for index, start in zip(mask.nonzero(), origin, strict=True)]
        return np.ravel_multi_index(voxels, volume)

    spacing_mm = (value("spacing_x_mm"), value("spacing_y_mm"), value("spacing_z_mm"))
    heights = probability[kept].astype(np.float32)
    return [PatchMaps(volume, spacing_mm, places(kept), heights, places(reference))]


def _lesion_computations(
    name: str, model_names: list[str] | None = None
) -> tfma.metrics.MetricComputations:
    return case_computations(cut_maps, score_cases, FEATURES, lesion_score_names(), model_names)
