"""Lesions inside TFMA: each case's heat map put together from its patches, its peaks scored by FROC."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import tensorflow_model_analysis as tfma
from scipy import ndimage

from ahnet_tf.evaluation.froc import ScoredVolume, count, froc_scores, match_volume, score_names
from ahnet_tf.inference.lesion_nms import DetectionSettings, detect_lesions
from preprocessing.datasets.detection_table import Detection
from preprocessing.records.schema import CASE_ID, HEAT_MAP
from preprocessing.volumes.lesions import LESION_THRESHOLD, LesionBox

# The model's output that this looks at, see `serving.export.signatures`.
LESION_PROBABILITY = "lesion_probability"
# The challenge's rule counts in voxels of BCS-DBT's planes: a hit may lie 100 of them, 8.5 mm, away.
CHALLENGE_PIXEL_MM = 0.085
# Of a peak's surroundings those of at least half its height belong to it.
LEAST_KEPT = DetectionSettings().threshold / 2
# Bounds the memory where a network is unsure everywhere: of a patch the highest voxels stay.
MOST_KEPT = 200_000

_AXES = "zyx"
FEATURES = (
    CASE_ID,
    HEAT_MAP,
    *(f"{name}_{axis}" for name in ("shape", "origin", "valid", "volume") for axis in _AXES),
    *(f"spacing_{axis}_mm" for axis in "xyz"),
)


@dataclass
class CaseMaps:
    """What is known of one case: its grid, and the voxels of its two maps that matter.

    Attributes:
      shape_zyx: of the volume.
      spacing_mm: x, y, z.
      places: voxels of at least `LEAST_KEPT` as places in the flattened volume, an array a patch.
      heights: their probabilities.
      lesions: places of the voxels that belong to reference lesions, an array a patch.
    """

    shape_zyx: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    places: list[np.ndarray]
    heights: list[np.ndarray]
    lesions: list[np.ndarray]


Cases = dict[bytes, CaseMaps]


class LesionsPerCase(tfma.metrics.Metric):
    """FROC of the lesions in the cases of a slice (see `lesion_summary` for the names)."""

    def __init__(self, name: str = "lesions_per_case"):
        super().__init__(_computations, name=name)


def lesion_score_names() -> tuple[str, ...]:
    """Returns the names of the scores."""
    return ("lesions", "lesion_recall", "false_positives_per_volume", *score_names())


def lesion_summary(volumes: Sequence[ScoredVolume]) -> dict[str, float]:
    """Returns the scores of volumes whose detections are matched with their boxes.

    `lesions` in the reference; `lesion_recall`, the share of them that any detection hits, and
    `false_positives_per_volume` of all detections; and FROC's sensitivities. NaN without lesions.
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


def score_maps(case: CaseMaps) -> ScoredVolume:
    """Detects lesions in a case's heat map and matches them with those of the reference.

    Both are moved to the challenge's pixels first, so that its rule for a hit means the same
    distance in mm on every grid.
    """
    heat_map = np.zeros(int(np.prod(case.shape_zyx)), np.float32)
    for places, heights in zip(case.places, case.heights, strict=True):
        heat_map[places] = heights
    heat_map_xyz = heat_map.reshape(case.shape_zyx).transpose()
    scale = [size / CHALLENGE_PIXEL_MM for size in case.spacing_mm[:2]]
    detections = [
        Detection(
            found.score,
            found.x * scale[0],
            found.y * scale[1],
            found.z,
            found.width * scale[0],
            found.height * scale[1],
            found.depth,
        )
        for found in detect_lesions(heat_map_xyz, case.spacing_mm)
    ]
    return match_volume(detections, _boxes(case, scale))


def cut_maps(patch: tfma.metrics.StandardMetricInputs, probability: np.ndarray) -> CaseMaps:
    """Returns what one patch says of its case.

    Args:
      patch: its features (`FEATURES`).
      probability: of a lesion [z, y, x].
    """

    def triple(name: str) -> tuple[int, ...]:
        return tuple(int(np.asarray(patch.features[f"{name}_{axis}"]).item()) for axis in _AXES)

    volume, origin, valid = triple("volume"), triple("origin"), triple("valid")
    inside = tuple(slice(size) for size in valid)
    stored = np.frombuffer(np.asarray(patch.features[HEAT_MAP]).item(), np.uint8)
    reference = stored.reshape(triple("shape"))[inside] >= LESION_THRESHOLD
    probability = probability[inside]
    kept = probability >= LEAST_KEPT
    if np.count_nonzero(kept) > MOST_KEPT:
        least = np.partition(probability, -MOST_KEPT, axis=None)[-MOST_KEPT]
        kept = probability > least

    def places(mask: np.ndarray) -> np.ndarray:
        voxels = [
            np.asarray(index) + start for index, start in zip(mask.nonzero(), origin, strict=True)
        ]
        return np.ravel_multi_index(voxels, volume)

    return CaseMaps(
        volume,
        tuple(float(np.asarray(patch.features[f"spacing_{axis}_mm"]).item()) for axis in "xyz"),
        [places(kept)],
        [probability[kept].astype(np.float32)],
        [places(reference)],
    )


def _boxes(case: CaseMaps, scale: Sequence[float]) -> list[LesionBox]:
    """Returns the box of each connected reference lesion, at its middle slice."""
    lesions = np.zeros(int(np.prod(case.shape_zyx)), bool)
    for places in case.lesions:
        lesions[places] = True
    regions, _ = ndimage.label(lesions.reshape(case.shape_zyx), np.ones((3, 3, 3), bool))
    boxes = []
    for z, y, x in ndimage.find_objects(regions):
        boxes.append(
            LesionBox(
                x=x.start * scale[0],
                y=y.start * scale[1],
                width=(x.stop - x.start) * scale[0],
                height=(y.stop - y.start) * scale[1],
                slice_index=(z.start + z.stop) / 2,
                volume_slices=case.shape_zyx[0],
                lesion_class="",
            )
        )
    return boxes


def _computations(
    name: str, model_names: list[str] | None = None
) -> tfma.metrics.MetricComputations:
    preprocessor = tfma.metrics.FeaturePreprocessor(list(FEATURES))
    computations = []
    for model_name in model_names or [""]:
        keys = {
            score: tfma.metrics.MetricKey(score, model_name=model_name, example_weighted=None)
            for score in lesion_score_names()
        }
        computations.append(
            tfma.metrics.MetricComputation(
                [*keys.values()], [preprocessor], CollectMaps(model_name, keys)
            )
        )
    return computations


class CollectMaps(beam.CombineFn):
    """Puts the patches of each case together, then scores the cases."""

    def __init__(self, model_name: str, keys: Mapping[str, tfma.metrics.MetricKey]):
        self._model_name = model_name
        self._keys = keys

    def create_accumulator(self) -> Cases:
        return {}

    def add_input(self, cases: Cases, patch: tfma.metrics.StandardMetricInputs) -> Cases:
        case_id = bytes(np.asarray(patch.features[CASE_ID]).item())
        probability = np.asarray(patch.get_predictions(self._model_name)[LESION_PROBABILITY])
        found = cut_maps(patch, probability.reshape(probability.shape[-3:]))
        return self.merge_accumulators([cases, {case_id: found}])

    def merge_accumulators(self, accumulators: Iterable[Cases]) -> Cases:
        merged: Cases = {}
        for cases in accumulators:
            for case_id, maps in cases.items():
                if case_id in merged:
                    for name in ("places", "heights", "lesions"):
                        getattr(merged[case_id], name).extend(getattr(maps, name))
                else:
                    merged[case_id] = maps
        return merged

    def extract_output(self, cases: Cases) -> dict[tfma.metrics.MetricKey, float]:
        volumes = [score_maps(cases[case_id]) for case_id in sorted(cases)]
        return {self._keys[name]: score for name, score in lesion_summary(volumes).items()}
