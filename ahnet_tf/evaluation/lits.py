"""The measures of the Liver Tumor Segmentation challenge (LiTS) for one case, or class by class.

Follows the challenge's scorer (PatrickChrist/lits-challenge-scoring) on label maps with 0
background, 1 liver, 2 tumour: the liver mask is label >= 1, the lesion mask label 2. Unlike there, a
case without reference lesions is scored like any other, lesions keep their identity when they are
merged, and undefined values are NaN. Surface Dice and HD95 are not part of the challenge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ahnet_tf.evaluation.surface import surface_dice_and_hd95, symmetric_distances_mm
from preprocessing.errors import InputError

LIVER, TUMOUR = 1, 2

# Measures of one pair of masks, in the order of tables.
TOLERANCE_MEASURES = ("surface_dice", "hd95_mm")
MEASURES = ("dice", "jaccard", "voe", "rvd", "assd_mm", "rmsd_mm", "msd_mm", *TOLERANCE_MEASURES)
DETECTION_IOUS = (0.5, 0.0)
TOLERANCE_MM = 2.0


@dataclass(frozen=True)
class ClassScores:
    """The scores of one case by class; a summary needs nothing else."""

    classes: dict[str, dict[str, float]]  # `MEASURES` of each class but the background
    voxels: dict[str, int]  # sizes and intersection of each class


@dataclass(frozen=True)
class LesionPair:
    """Component numbers of predicted and reference lesions that match, and the IoU of their unions."""

    predicted: tuple[int, ...]
    reference: tuple[int, ...]
    iou: float


@dataclass(frozen=True)
class CaseScores:
    """The scores of one case; a summary needs nothing else."""

    liver: dict[str, float]  # `MEASURES` of the liver mask
    lesion_dice: float  # Dice of the lesion mask
    lesion_surface: dict[str, float]  # surface Dice and HD95 of the lesion mask
    lesions: tuple[dict[str, float], ...]  # `MEASURES` of each pair detected at IoU > 0.5
    predicted_lesions: int  # number of 6-connected components
    reference_lesions: int  # number of 6-connected components
    detected_lesions: dict[float, int]  # number of pairs above each IoU of `DETECTION_IOUS`
    lesion_ious: tuple[float, ...]  # IoU of each matched pair
    voxels: dict[str, int]  # sizes and intersections of the liver and lesion masks
    # Lesion voxels / liver voxels, predicted and reference, and their error (reference -
    # prediction, the scorer's sign).
    tumour_burden: dict[str, float]


def score_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float],
    tolerance_mm: float = TOLERANCE_MM,
) -> CaseScores:
    """Scores one case: label maps, integers [any 3 axes], with the spacing along these axes.

    Raises InputError if the shapes differ or are not three-dimensional.
    """
    prediction, reference = _cropped(prediction, reference)
    liver = prediction >= LIVER, reference >= LIVER
    lesion = prediction == TUMOUR, reference == TUMOUR
    (predicted, predicted_count), (true, true_count) = (ndimage.label(mask) for mask in lesion)
    pairs = match_lesions(predicted, true)
    detected = [pair for pair in pairs if pair.iou > DETECTION_IOUS[0]]
    voxels = _count_voxels("liver", *liver) | _count_voxels("lesion", *lesion)
    burden = {
        kind: _ratio(voxels[f"lesion_{kind}"], voxels[f"liver_{kind}"])
        for kind in ("predicted", "reference")
    }
    return CaseScores(
        liver=mask_measures(*liver, spacing_mm, tolerance_mm),
        lesion_dice=dice(*lesion),
        lesion_surface=surface_dice_and_hd95(*lesion, spacing_mm, tolerance_mm),
        lesions=_lesion_measures(predicted, true, detected, spacing_mm, tolerance_mm),
        predicted_lesions=predicted_count,
        reference_lesions=true_count,
        detected_lesions={iou: sum(pair.iou > iou for pair in pairs) for iou in DETECTION_IOUS},
        lesion_ious=tuple(pair.iou for pair in pairs),
        voxels=voxels,
        tumour_burden=burden | {"error": burden["reference"] - burden["predicted"]},
    )


def score_classes(
    prediction: np.ndarray,
    reference: np.ndarray,
    class_names: Sequence[str],
    spacing_mm: Sequence[float],
    tolerance_mm: float = TOLERANCE_MM,
) -> ClassScores:
    """Scores one case class by class, with a name for each label value; otherwise as `score_case`."""
    prediction, reference = _cropped(prediction, reference)
    classes: dict[str, dict[str, float]] = {}
    voxels: dict[str, int] = {}
    for value, name in enumerate(class_names[1:], start=1):
        masks = prediction == value, reference == value
        classes[name] = mask_measures(*masks, spacing_mm, tolerance_mm)
        voxels |= _count_voxels(name, *masks)
    return ClassScores(classes, voxels)


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """Returns 2 |P and R| / (|P| + |R|) of two masks: 1 if both are empty, 0 if one is."""
    sizes = _count(prediction) + _count(reference)
    return 2 * _count(prediction & reference) / sizes if sizes else 1.0


def mask_measures(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing_mm: Sequence[float],
    tolerance_mm: float = TOLERANCE_MM,
) -> dict[str, float]:
    """Returns the `MEASURES` of two masks.

    jaccard = dice / (2 - dice); voe = 1 - jaccard; rvd = (|R| - |P|) / |P|, the scorer's sign (papers
    often print the opposite one), NaN without a prediction; the others as in `surface`.
    """
    overlap = dice(prediction, reference)
    jaccard = overlap / (2 - overlap)
    predicted, true = _count(prediction), _count(reference)
    return {
        "dice": overlap,
        "jaccard": jaccard,
        "voe": 1 - jaccard,
        "rvd": _ratio(true - predicted, predicted),
        **symmetric_distances_mm(prediction, reference, spacing_mm),
        **surface_dice_and_hd95(prediction, reference, spacing_mm, tolerance_mm),
    }


def match_lesions(predicted: np.ndarray, reference: np.ndarray) -> list[LesionPair]:
    """Matches lesion components of a prediction with those of the reference.

    A reference lesion belongs to the prediction that overlaps it most; reference lesions of one
    prediction are merged. Each prediction then belongs to the (merged) reference it overlaps most;
    predictions of one reference are merged. Ties go to the lower component number.

    Arrays hold component numbers [any axes], 0 for background; pairs are in the reference's order.
    """
    both = (predicted > 0) & (reference > 0)
    predicted_ids, rows = np.unique(predicted[both], return_inverse=True)
    reference_ids, columns = np.unique(reference[both], return_inverse=True)
    if len(predicted_ids) == 0:
        return []
    shape = (len(predicted_ids), len(reference_ids))
    overlap = np.bincount(rows * shape[1] + columns, minlength=shape[0] * shape[1]).reshape(shape)
    groups: dict[int, list[int]] = {}
    for column, row in enumerate(overlap.argmax(axis=0)):
        groups.setdefault(int(row), []).append(column)
    # In the order of their first members, which decides ties.
    merged_references = sorted(groups.values())
    merged_overlap = np.stack([overlap[:, g].sum(axis=1) for g in merged_references], axis=1)
    choices = merged_overlap.argmax(axis=1)
    predicted_sizes = np.bincount(predicted.ravel())
    reference_sizes = np.bincount(reference.ravel())
    pairs = []
    for group, members in enumerate(merged_references):
        own_rows = np.flatnonzero(choices == group)
        if len(own_rows) == 0:
            continue
        p, r = predicted_ids[own_rows], reference_ids[members]
        common = int(merged_overlap[own_rows, group].sum())
        union = int(predicted_sizes[p].sum() + reference_sizes[r].sum()) - common
        pairs.append(LesionPair(tuple(p.tolist()), tuple(r.tolist()), common / union))
    return pairs


def _cropped(prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns two label maps in the bounding box of their foreground; raises as `score_case`."""
    if prediction.shape != reference.shape or reference.ndim != 3:
        expected = f"one 3D shape, {reference.shape}"
        raise InputError("prediction and reference", expected, prediction.shape)
    boxes = ndimage.find_objects(((prediction > 0) | (reference > 0)).astype(np.uint8))
    box = boxes[0] if boxes else (slice(0, 1),) * 3
    return prediction[box], reference[box]


def _count_voxels(name: str, prediction: np.ndarray, reference: np.ndarray) -> dict[str, int]:
    """Returns NAME_predicted, NAME_reference and NAME_intersection of two masks."""
    return {
        f"{name}_predicted": _count(prediction),
        f"{name}_reference": _count(reference),
        f"{name}_intersection": _count(prediction & reference),
    }


def _count(mask: np.ndarray) -> int:
    # NumPy 2.4 returns a number of its own, which JSON can't hold.
    return int(np.count_nonzero(mask))


def _lesion_measures(
    predicted: np.ndarray,
    reference: np.ndarray,
    pairs: Sequence[LesionPair],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> tuple[dict[str, float], ...]:
    """Returns the measures of each pair, computed in the bounding box of its components."""
    predicted_boxes, reference_boxes = map(ndimage.find_objects, (predicted, reference))
    measures = []
    for pair in pairs:
        boxes = [predicted_boxes[number - 1] for number in pair.predicted]
        boxes += [reference_boxes[number - 1] for number in pair.reference]
        box = tuple(
            slice(min(axis.start for axis in axes), max(axis.stop for axis in axes))
            for axes in zip(*boxes, strict=True)
        )
        masks = np.isin(predicted[box], pair.predicted), np.isin(reference[box], pair.reference)
        measures.append(mask_measures(*masks, spacing_mm, tolerance_mm))
    return tuple(measures)


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom else math.nan
