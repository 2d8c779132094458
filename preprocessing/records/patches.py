"""Patches of a case: a foreground-balanced draw for training, an exact tiling for evaluation."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator

import numpy as np

from preprocessing.records.case_volume import CaseVolume
from preprocessing.records.schema import INTENSITY_QUANTILES, Patch
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import contiguous

# In a random sample of this size the standard error of the median's rank is 0.001.
QUANTILE_VOXELS = 2**18


def training_patches(volume: CaseVolume, task: Task, *, seed: int) -> Iterator[Patch]:
    """Yields `task.patches_per_case` patches, the same for the same case, seed and task.

    The first `task.foreground_fraction` of them are centred on a foreground voxel: each class that
    is present is equally likely, and so is each of its voxels. The others are uniformly distributed.
    Patches are moved to lie in the volume; if it is smaller than a patch, they are padded at the end.
    """
    digest = hashlib.sha256(volume.case_id.encode()).digest()
    random = np.random.default_rng([seed, *np.frombuffer(digest[:16], "<u4").tolist()])
    present = [
        value for value in range(1, len(task.class_names)) if volume.label_counts[:, value].any()
    ]
    foreground = round(task.foreground_fraction * task.patches_per_case) if present else 0
    last_origin = np.maximum(0, np.array(volume.image_zyx.shape) - task.patch_shape_zyx)
    origins = []
    for index in range(task.patches_per_case):
        if index < foreground:
            value = present[int(random.integers(len(present)))]
            centre = _random_voxel(volume, value, random)
            origin = np.clip(centre - np.array(task.patch_shape_zyx) // 2, 0, last_origin)
        else:
            origin = random.integers(0, last_origin, endpoint=True)
        origins.append(tuple(origin.tolist()))
    inside = tuple(map(min, volume.image_zyx.shape, task.patch_shape_zyx))
    return _cut(volume, task, ((origin, inside) for origin in origins))


def evaluation_tiles(volume: CaseVolume, task: Task) -> Iterator[Patch]:
    """Yields patches in which every voxel of the volume counts exactly once.

    Along each axis the last ones are whole, and the first one counts for what is left; the rest of it
    is what a window of a prediction would see. Only a volume smaller than a patch is padded.
    """
    return _cut(volume, task, tile_parts(volume.image_zyx.shape, task.patch_shape_zyx))


def tile_parts(
    volume_zyx: tuple[int, ...], patch_zyx: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yields the origin and the size, as in `Patch`, of what counts in each of a volume's `evaluation_tiles`."""
    axes = zip(volume_zyx, patch_zyx, strict=True)
    for parts in itertools.product(*(_axis_parts(size, step) for size, step in axes)):
        yield tuple(start for start, _ in parts), tuple(length for _, length in parts)


def intensity_quantiles(image_zyx: np.ndarray) -> tuple[float, ...]:
    """Returns the lower quantiles `INTENSITY_QUANTILES` of 16-bit intensities [z, y, x].

    They are exact below four times `QUANTILE_VOXELS`. Larger volumes are sampled on a regular grid of
    at least `QUANTILE_VOXELS`: every second, third, ... row and column of each slice.
    """
    step = max(1, math.isqrt(image_zyx.size // QUANTILE_VOXELS))
    sample, shares = image_zyx[:, ::step, ::step], list(INTENSITY_QUANTILES.values())
    return tuple(np.quantile(sample, shares, method="lower").astype(float).tolist())


def _axis_parts(size: int, step: int) -> list[tuple[int, int]]:
    first = size % step or min(size, step)
    return [(0, first), *((start, step) for start in range(first, size, step))]


def _cut(
    volume: CaseVolume, task: Task, parts_zyx: Iterable[tuple[tuple[int, ...], tuple[int, ...]]]
) -> Iterator[Patch]:
    """Yields the patches at some origins, of which some sizes count; they are padded beyond the volume."""
    shape = task.patch_shape_zyx
    quantiles = intensity_quantiles(volume.image_zyx)
    voxels_of_case = tuple(volume.label_counts.sum(axis=0).tolist())
    heat_map = volume.heat_map_zyx
    for index, (origin, valid) in enumerate(parts_zyx):
        box = tuple(slice(o, o + n) for o, n in zip(origin, shape, strict=True))
        yield Patch(
            image_zyx=_padded(volume.image_zyx[box], shape, task.outside_value),
            label_zyx=_padded(volume.label_zyx[box], shape, 0),
            case_id=volume.case_id,
            source=volume.source,
            index=index,
            origin_zyx=origin,
            valid_zyx=valid,
            volume_shape_zyx=volume.image_zyx.shape,
            spacing_mm=volume.grid.spacing_mm,
            intensity_quantiles=quantiles,
            case_label_voxels=voxels_of_case,
            heat_map_zyx=None if heat_map is None else _padded(heat_map[box], shape, 0),
        )


def _padded(part: np.ndarray, shape: tuple[int, ...], outside: int) -> np.ndarray:
    part = contiguous(part)
    if part.shape == shape:
        return part
    missing = [(0, n - found) for n, found in zip(shape, part.shape, strict=True)]
    return np.pad(part, missing, constant_values=outside)


def _random_voxel(volume: CaseVolume, value: int, random: np.random.Generator) -> np.ndarray:
    """Returns a voxel [z, y, x] of a class; all its voxels are equally likely.

    The counts tell the slice of the drawn voxel, so only that slice is searched.
    """
    in_slices = volume.label_counts[:, value]
    cumulated = np.cumsum(in_slices)
    rank = int(random.integers(cumulated[-1]))
    z = int(np.searchsorted(cumulated, rank, "right"))
    label_yx = volume.label_zyx[z]
    in_slice = np.flatnonzero(label_yx == value)[rank - (cumulated[z] - in_slices[z])]
    return np.array([z, *np.unravel_index(in_slice, label_yx.shape)])
