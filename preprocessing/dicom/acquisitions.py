"""Separates acquisitions in one folder or file: phases, passes, echoes, kernels, energies.

They may have one SeriesInstanceUID, and equal or interleaved positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

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
            facts[keyword] = tuple(map(_rounded, several))
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


def _rounded(value: str) -> str:
    try:
        return f"{float(value):.6g}"
    except ValueError:
        return value


def _slabs_apart(
    group: list[int], facts: Sequence[Facts], places: Mapping[int, float], names: list[str]
) -> list[list[int]]:
    """Separates overlapping slabs, by the element with the fewest values; adds its name."""
    slabs: dict[str, dict[object, list[int]]] = {keyword: {} for keyword in _OF_SLAB if places}
    for keyword, by_value in slabs.items():
        for i in group:
            by_value.setdefault(facts[i].get(keyword), []).append(i)
    for keyword, by_value in sorted(slabs.items(), key=lambda each: len(each[1])):
        # A value of its own for each slice says nothing about which slices belong together.
        if 2 * len(by_value) > len(group):
            break
        if len(parts := _joined(list(by_value.values()), places)) > 1:
            names += [keyword] * (keyword not in names)
            return [one for part in parts for one in _slabs_apart(part, facts, places, names)]
    return [group]


def _joined(slabs: list[list[int]], places: Mapping[int, float]) -> list[list[int]]:
    """Joins slabs that do not overlap, if that is clear: all of them overlap all others."""
    extents = sorted((min(places[i] for i in s), max(places[i] for i in s), s) for s in slabs)
    if not any(_overlap(one, after) for one, after in pairwise(extents)):
        return [sorted(i for slab in slabs for i in slab)]
    joined = geometry.grouped(extents, lambda one, other: not _overlap(one, other))
    own = {id(extent): number for number, group in enumerate(joined) for extent in group}
    pairs = combinations(extents, 2)
    clear = all(_overlap(one, other) == (own[id(one)] != own[id(other)]) for one, other in pairs)
    return [sorted(i for *_, s in group for i in s) for group in joined] if clear else slabs


def _overlap(one: tuple, other: tuple) -> bool:
    return max(one[0], other[0]) <= min(one[1], other[1]) + _OVERLAP_MM
