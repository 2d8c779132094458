"""Which patches: foreground-balanced ones for training, an exact tiling for the evaluation."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator

import numpy as np

from preprocessing.records.schema import INTENSITY_QUANTILES, Patch
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import TargetGrid, contiguous

# Quantiles of so many voxels are as good as the volume's own: drawn at random, they would be off by a
# thousandth in rank.
QUANTILE_VOXELS = 2**18


def training_patches(
    image_zyx: np.ndarray,
    label_zyx: np.ndarray,
    counts: np.ndarray,
    space: TargetGrid,
    task: Task,
    *,
    case_id: str,
    source: str,
    seed: int,
    heat_map_zyx: np.ndarray | None = None,
) -> Iterator[Patch]:
    """Yields `task.patches_per_case` patches; the same case, seed and task give the same ones.

    The first `task.foreground_fraction` of them are centred on a voxel of a foreground class, each
    class present being equally likely, and so is each of its voxels; the rest lie anywhere. Patches
    are moved into the volume where they would stick out; where the volume is smaller, they are
    padded behind it. `counts` are the label map's, see `volume.count_labels_by_slice`.
    """
    random = np.random.default_rng([seed, *_words_of(case_id)])
    present = [value for value in range(1, counts.shape[1]) if counts[:, value].any()]
    foreground = round(task.foreground_fraction * task.patches_per_case) if present else 0
    cut = _Cutter(image_zyx, label_zyx, space, task, case_id, source, counts, heat_map_zyx)
    for index in range(task.patches_per_case):
        last_origin = np.maximum(0, np.array(image_zyx.shape) - task.patch_shape_zyx)
        if index < foreground:
            value = present[int(random.integers(len(present)))]
            centre = _voxel_of_class(label_zyx, counts[:, value], value, random)
            origin = np.clip(centre - np.array(task.patch_shape_zyx) // 2, 0, last_origin)
        else:
            origin = random.integers(0, last_origin, endpoint=True)
        yield cut(index, tuple(int(start) for start in origin))


def evaluation_tiles(
    image_zyx: np.ndarray,
    label_zyx: np.ndarray,
    counts: np.ndarray,
    space: TargetGrid,
    task: Task,
    *,
    case_id: str,
    source: str,
    heat_map_zyx: np.ndarray | None = None,
) -> Iterator[Patch]:
    """Yields patches that hold every voxel of the volume exactly once, padded behind its edges.

    `counts` are the label map's, see `volume.count_labels_by_slice`.
    """
    cut = _Cutter(image_zyx, label_zyx, space, task, case_id, source, counts, heat_map_zyx)
    steps = (
        range(0, size, step)
        for size, step in zip(image_zyx.shape, task.patch_shape_zyx, strict=True)
    )
    for index, origin in enumerate(itertools.product(*steps)):
        yield cut(index, origin)


def intensity_quantiles(image_zyx: np.ndarray) -> tuple[float, ...]:
    """Returns quantiles (lower ones, `INTENSITY_QUANTILES`) of 16-bit intensities [z, y, x].

    They are exact below four times `QUANTILE_VOXELS`; of larger volumes a regular grid of at least
    `QUANTILE_VOXELS` is looked at: every second, third, ... row and column of each slice.
    """
    step = max(1, math.isqrt(image_zyx.size // QUANTILE_VOXELS))
    sample = image_zyx[:, ::step, ::step].astype(np.int64)
    lowest = np.iinfo(image_zyx.dtype).min
    sample -= lowest
    cumulated = np.cumsum(np.bincount(sample.ravel(order="K")))
    ranks = [share * (sample.size - 1) for share in INTENSITY_QUANTILES.values()]
    return tuple(float(np.searchsorted(cumulated, int(r), "right") + lowest) for r in ranks)


class _Cutter:
    """Cuts patches from one case; what all its patches share is found once."""

    def __init__(
        self, image_zyx, label_zyx, space, task, case_id, source, counts, heat_map_zyx=None
    ):
        self.image_zyx, self.label_zyx, self.task = image_zyx, label_zyx, task
        self.heat_map_zyx = heat_map_zyx
        self.shared = {
            "case_id": case_id,
            "source": source,
            "volume_shape_zyx": tuple(image_zyx.shape),
            "spacing_mm": space.spacing_mm,
            "intensity_quantiles": intensity_quantiles(image_zyx),
            "case_label_voxels": tuple(int(n) for n in counts.sum(axis=0)),
        }

    def __call__(self, index: int, origin_zyx: tuple[int, int, int]) -> Patch:
        patch_shape = self.task.patch_shape_zyx
        box = tuple(slice(o, o + n) for o, n in zip(origin_zyx, patch_shape, strict=True))
        image, label = contiguous(self.image_zyx[box]), contiguous(self.label_zyx[box])
        heat_map = None if self.heat_map_zyx is None else contiguous(self.heat_map_zyx[box])
        valid = tuple(image.shape)
        if valid != tuple(patch_shape):
            behind = [(0, n - v) for n, v in zip(patch_shape, valid, strict=True)]
            image = np.pad(image, behind, constant_values=self.task.outside_value)
            label = np.pad(label, behind)
            heat_map = None if heat_map is None else np.pad(heat_map, behind)
        return Patch(
            image_zyx=image,
            label_zyx=label,
            index=index,
            origin_zyx=origin_zyx,
            valid_zyx=valid,
            heat_map_zyx=heat_map,
            **self.shared,
        )


def _voxel_of_class(label_zyx, voxels_by_slice, value, random) -> np.ndarray:
    """Returns a voxel [z, y, x] of a class; all its voxels are equally likely.

    The drawn voxel's slice follows from the counts, so only that slice is searched.
    """
    cumulated = np.cumsum(voxels_by_slice)
    rank = int(random.integers(cumulated[-1]))
    z = int(np.searchsorted(cumulated, rank, "right"))
    in_slice = np.flatnonzero(label_zyx[z] == value)[rank - (cumulated[z] - voxels_by_slice[z])]
    return np.array([z, *np.unravel_index(in_slice, label_zyx.shape[1:])])


def _words_of(case_id: str) -> list[int]:
    """Returns 32-bit words that stand for a case id in a random seed, on every machine the same."""
    digest = hashlib.sha256(case_id.encode()).digest()
    return [int.from_bytes(digest[start : start + 4], "little") for start in range(0, 16, 4)]
