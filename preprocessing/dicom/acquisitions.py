"""Separates acquisitions in one folder or file: phases, passes, echoes, kernels, energies.

They may have one SeriesInstanceUID, and equal or interleaved positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

from preprocessing.dicom import geometry
from preprocessing.dicom.header import Image, functional_groups, text, values

# Elements that tell acquisitions apart, by their functional group in multi-frame files.
_ELEMENTS = {
    "": (
        *("Modality", "ImageType", "ContrastBolusAgent", "MonoenergeticEnergyEquivalent"),
        *("TemporalPositionIdentifier", "NumberOfTemporalPositions", "EchoNumbers"),
        *("AcquisitionNumber", "TriggerTime", "ContrastBolusStartTime", "AcquisitionTime"),
    ),
    "CTImageFrameTypeSequence": ("FrameType",),
    "CTReconstructionSequence": ("ConvolutionKernel", "ReconstructionDiameter"),
    "CTXRayDetailsSequence": ("KVP", "FilterType"),
    "CardiacSynchronizationSequence": (
        *("NominalPercentageOfCardiacPhase", "NominalCardiacTriggerDelayTime"),
    ),
    "ContrastBolusUsageSequence": ("ContrastBolusAgentPhase",),
    "FrameContentSequence": ("TemporalPositionIndex", "FrameAcquisitionNumber"),
    "PixelMeasuresSequence": ("SliceThickness",),
}
# Those that also change from slab to slab of one volume (several breath holds, step and shoot):
# they only separate slabs that overlap along the normal.
_OF_SLAB = (
    *("AcquisitionNumber", "FrameAcquisitionNumber", "TriggerTime", "ContrastBolusStartTime"),
    *("NominalPercentageOfCardiacPhase", "NominalCardiacTriggerDelayTime", "FilterType"),
    *("ReconstructionDiameter", "SliceThickness", "AcquisitionTime"),
)
_OVERLAP_MM = 0.01
_PASS_SLABS = 3
_SHOWN = 6

Facts = Mapping[str, object]


def facts_of(image: Image, frame: int = 0, *, one_series: bool = False) -> Facts:
    """Returns a frame's values of elements that tell acquisitions apart; empty for `one_series`.

    Numbers have six digits; of ImageType the second value is left out.
    """
    facts: dict[str, object] = {"Rows": image.rows, "Columns": image.columns}
    facts["NumberOfFrames"] = image.frames
    if one_series:
        return facts
    facts["SeriesInstanceUID"] = text(image.header, "SeriesInstanceUID")
    for group, keywords in _ELEMENTS.items():
        items = list(functional_groups(image.header, frame, group, image.name))
        for keyword in keywords:
            found = next((values(item, keyword) for item in items if keyword in item), ())
            several = found[:1] + found[2:] if keyword in ("ImageType", "FrameType") else found
            facts[keyword] = tuple(map(_sortable, several))
    return facts


def acquisitions(
    facts: Sequence[Facts], planes: Sequence[geometry.Plane]
) -> tuple[list[list[int]], str]:
    """Groups frames, given by their facts and planes, into acquisitions of parallel planes.

    Returns the indices of each group, and a line with their number, differences and sizes.
    """
    fixed = [{k: v for k, v in own.items() if k not in _OF_SLAB} for own in facts]
    groups = geometry.grouped(
        range(len(facts)),
        lambda one, other: (
            fixed[one] == fixed[other] and not geometry.differences(planes[one], planes[other])
        ),
    )
    firsts = [group[0] for group in groups]
    names = [k for k, v in fixed[0].items() if any(fixed[i][k] != v for i in firsts)]
    names += sorted({k for i in firsts for k in geometry.differences(planes[0], planes[i])})
    parts: list[list[int]] = []
    for group in groups:
        along = geometry.along_normal([planes[i] for i in group])
        places = {} if along is None else dict(zip(group, along.tolist(), strict=True))
        parts += _slabs_apart(group, facts, places, names)
    shown = [f"{len(p)} slice{'s' * (len(p) > 1)}" for p in sorted(parts, key=len, reverse=True)]
    sizes = ", ".join(shown[:_SHOWN]) + ", ..." * (len(shown) > _SHOWN)
    return parts, f"{len(parts)} acquisitions that differ in {', '.join(names)} ({sizes})"


def _sortable(value: str) -> tuple[float, str]:
    """Returns a number rounded to six digits, or infinity and the text."""
    try:
        number = float(f"{float(value):.6g}")
    except ValueError:
        number = math.nan
    return (number, "") if math.isfinite(number) else (math.inf, value)


def _slabs_apart(
    group: list[int], facts: Sequence[Facts], places: Mapping[int, float], names: list[str]
) -> list[list[int]]:
    """Separates overlapping slabs of a group by an element, and adds its name.

    Slabs with successive values belong together until one overlaps another. Where that is unclear,
    as not all of these runs overlap, each slab is on its own. Slabs that do not overlap are apart if
    they are several passes along the volume, at places in between.
    """
    found: list[tuple[bool, int, str, list]] = []
    for keyword, slabs in sorted(_by_value(group, facts, places), key=lambda each: len(each[1])):
        if not any(_overlap(one, after) for one, after in pairwise(sorted(slabs))):
            if passes := _passes(slabs):
                found.append((False, len(found), keyword, passes))
            continue
        runs = [[slabs[0]]]
        for slab in slabs[1:]:
            if any(_overlap(slab, other) for other in runs[-1]):
                runs.append([])
            runs[-1].append(slab)
        pairs = combinations(runs, 2)
        clear = all(any(_overlap(a, b) for a in one for b in other) for one, other in pairs)
        parts = runs if clear else [[slab] for slab in slabs]
        found.append((not clear, len(found), keyword, parts))
    if not found:
        return [group]
    *_, keyword, parts = min(found)
    names += [keyword] * (keyword not in names)
    members = [sorted(i for *_, own in part for i in own) for part in parts]
    return [one for part in members for one in _slabs_apart(part, facts, places, names)]


def _passes(slabs: list[tuple]) -> list[list[tuple]]:
    """Splits slabs, in the order of their values, into passes along the volume; empty for one pass.

    Each pass has one direction, at least `_PASS_SLABS` slabs, and covers half of the volume or more;
    runs of times that jitter from slice to slice are shorter.
    """
    runs = [slabs[:1]]
    for slab in slabs[1:]:
        run = runs[-1]
        turns = len(run) > 1 and (slab[0] > run[-1][0]) != (run[-1][0] > run[-2][0])
        runs.append([slab]) if turns else run.append(slab)
    half_mm = (max(slab[1] for slab in slabs) - min(slab[0] for slab in slabs)) / 2
    whole = [len(r) >= _PASS_SLABS and abs(r[-1][0] - r[0][0]) >= half_mm for r in runs]
    return runs if len(runs) > 1 and all(whole) else []


def _by_value(
    group: list[int], facts: Sequence[Facts], places: Mapping[int, float]
) -> Iterator[tuple[str, list[tuple[float, float, list[int]]]]]:
    """Yields, for each element, the extent and the frames of its values in their order."""
    for keyword in _OF_SLAB if places else ():
        frames: dict[Any, list[int]] = {}
        for i in group:
            frames.setdefault(facts[i].get(keyword, ()), []).append(i)
        slabs = [frames[value] for value in sorted(frames)]
        yield keyword, [(min(places[i] for i in s), max(places[i] for i in s), s) for s in slabs]


def _overlap(one: tuple, other: tuple) -> bool:
    return max(one[0], other[0]) <= min(one[1], other[1]) + _OVERLAP_MM
