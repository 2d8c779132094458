"""Checks whether readable cases look as the task expects, and finds duplicate images.

Unreadable or inconsistent files raise errors when they are read. An image that can't be one of the
task's is a misfit; what is only suspicious becomes a `Finding`, and the case is used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from isal import isal_zlib

from preprocessing.errors import ALLOWANCES, InputError
from preprocessing.tasks import Task
from preprocessing.volumes import geometry
from preprocessing.volumes.intensities import breast_range
from preprocessing.volumes.resampling import to_dtype

ERROR, WARNING = "error", "warning"

# CT is stored as int16. Air is at -1000 HU, soft tissue around 50 HU, and only a scanner's padding
# outside the field of view is below air.
CT_DTYPE = "int16"
NO_AIR_HU, NO_TISSUE_HU, BELOW_AIR_HU = -200, 100, -1100
# A label map is suspicious if more than this share of the foreground is darker than tissue.
AIR_HU, SHARE_IN_AIR = -500, 0.25
# Plausible spacing in mm, in-plane and between slices, and field of view, by stored dtype (CT, DBT).
SPACING_MM = {"int16": ((0.2, 5.0), (0.2, 15.0)), "uint16": ((0.02, 1.0), (0.2, 5.0))}
FIELD_OF_VIEW_MM = {"int16": (5.0, 2500.0), "uint16": (0.5, 500.0)}
# Lengths further outside than this factor are a misfit: a wrong unit, not an unusual scanner.
IMPOSSIBLE = 10
# Fewer slices than this are suspicious.
FEWEST_SLICES = 3
# Masks and normalised images have a smaller range than this, other masks few values of a byte.
SMALLEST_RANGE, FEW_VALUES, LARGEST_BYTE = 20, 8, 255
# Label maps have at most so many values, and this share of neighbours inside a structure is equal.
MOST_LABELS, SHARE_EQUAL = 256, 0.7
# Every fourth row is enough to see whether a label map lies in air, or an image is a label map.
_STEP = 4


@dataclass(frozen=True)
class Finding:
    """An observation about a case, of one kind (`code`, a word), in one line; ERROR or WARNING."""

    severity: str
    code: str
    text: str


@dataclass(frozen=True)
class CheckedImage:
    """Results of one pass over the voxels of an image."""

    fingerprint: str  # equal for equal voxels, regardless of orientation, compression and position
    low: float  # smallest intensity
    high: float  # largest intensity
    findings: tuple[Finding, ...]  # warnings only
    misfit: InputError | None  # why it can't be an image of the task, if it can't


def check_image(
    image: geometry.Volume,
    task: Task,
    *,
    where: object = "image",
    allow: Collection[str] = (),
    further: Iterable[Finding] = (),
) -> CheckedImage:
    """Checks an image [x, y, z] that was read without an error.

    Takes its name for messages, and further findings about it. Those of severity ERROR are a misfit,
    or warnings if `unfit_image` is in `allow`. So is an image that can't be normalised as the task
    asks, which nothing allows.
    """
    misfit, stored_dtype = None, np.dtype(task.image_dtype)
    scaled = task.normalization == "none"
    if not scaled:
        # Normalisation takes any intensities: none is lost, whatever its dtype.
        stored_dtype = np.dtype(np.float64)
        try:
            breast_range(image.voxels, where)
        except InputError as error:
            misfit = error
    grid = geometry.target_grid(image.voxels.shape, image.affine, task)
    image_zyx = geometry.reoriented(image.voxels, grid)
    lows, highs, sums, below = [], [], [], 0
    values: set[float] = set()
    for plane in image_zyx:
        plane = geometry.contiguous(plane)
        lows.append(plane.min())
        highs.append(plane.max())
        stored = to_dtype(plane[None], stored_dtype)
        sums.append(isal_zlib.crc32(stored))
        if len(values) <= MOST_LABELS:
            values.update(np.unique(stored).tolist())
        if lows[-1] < BELOW_AIR_HU:
            below += np.count_nonzero(plane < BELOW_AIR_HU)
    low, high = float(min(lows)), float(max(highs))
    findings = [*further, *_value_findings(image_zyx, sorted(values), scaled=scaled)]
    findings += [*_slice_findings(lows, highs, sums), *_length_findings(grid, task)]
    limits = np.iinfo(task.image_dtype)
    if scaled and (low < limits.min or high > limits.max):
        text = f"intensities {low:g} to {high:g} are clipped to {task.image_dtype}"
        findings.append(Finding(WARNING, "clipped", text))
    if task.image_dtype == CT_DTYPE:
        findings += _hounsfield_findings(low, high, below / image_zyx.size)
    shape_and_sums = np.array([*image_zyx.shape, *sums], "<u4")
    fingerprint = hashlib.sha256(shape_and_sums.tobytes()).hexdigest()[:32]
    if unfit := [finding.text for finding in findings if finding.severity == ERROR]:
        if "unfit_image" not in allow:
            remedy = f"With --allow unfit_image, {ALLOWANCES['unfit_image']}."
            misfit = InputError(where, f"an image for {task.name}", "; ".join(unfit), remedy)
            findings = [finding for finding in findings if finding.severity != ERROR]
        findings = [replace(finding, severity=WARNING) for finding in findings]
    return CheckedImage(fingerprint, low, high, tuple(findings), misfit)


def check_labels(
    image_zyx: np.ndarray, label_zyx: np.ndarray, task: Task
) -> tuple[np.ndarray, tuple[Finding, ...]]:
    """Checks a label map, uint8 classes of the task, against its image, both [z, y, x].

    Returns the number of voxels [slice, class], and all findings.
    """
    counts = geometry.count_labels_by_slice(label_zyx, len(task.class_names))
    labelled = counts[:, 1:].sum(axis=1) > 0
    seen = in_air = at_edge = 0
    for z in np.flatnonzero(labelled):
        flips = geometry.flips_to_memory_order(label_zyx[z])
        image, label = image_zyx[z][flips], label_zyx[z][flips]
        # A single row or column has no inside.
        at_edge += any(len(lines) > 2 and lines[[0, -1]].any() for lines in (label, label.T))
        foreground = label[::_STEP] > 0
        seen += np.count_nonzero(foreground)
        in_air += np.count_nonzero(foreground & (image[::_STEP] < AIR_HU))
    findings = []
    # With lesions as heat maps, volumes without one are ordinary.
    if not labelled.any() and task.target == "labels":
        findings.append(Finding(WARNING, "no_foreground", "nothing is labelled"))
    ends = (("first", 0), ("last", -1)) if len(label_zyx) > 2 else ()
    reached = [f"the {end} slice" for end, index in ends if labelled[index]]
    if at_edge:
        reached.append(f"the edge of {at_edge} slices")
    if reached:
        text = f"foreground reaches {', '.join(reached)}"
        findings.append(Finding(WARNING, "label_at_border", text))
    if task.image_dtype == CT_DTYPE and in_air > SHARE_IN_AIR * seen:
        share = f"{100 * in_air / seen:.0f} % of the foreground is darker than {AIR_HU} HU"
        text = f"{share}: is the label map flipped or shifted?"
        findings.append(Finding(WARNING, "label_in_air", text))
    return counts, tuple(findings)


def duplicate_reasons(cases: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """Returns why cases with the voxels of an earlier case are rejected, in one line, by case id.

    Takes case id, name of the image and `CheckedImage.fingerprint` of each case. Duplicates in both
    splits would leak training data into evaluation.
    """
    first: dict[str, str] = {}
    reasons = {}
    for case_id, image, fingerprint in cases:
        original = first.setdefault(fingerprint, case_id)
        if original != case_id:
            expected, found = "an image different from all others", f"the voxels of case {original}"
            reasons[case_id] = str(InputError(image, expected, found, "Keep one of the two."))
    return reasons


def _slice_findings(
    lows: Sequence[float], highs: Sequence[float], sums: Sequence[int]
) -> Iterator[Finding]:
    if len(sums) < FEWEST_SLICES:
        text = f"a volume of {len(sums)} slice{'s' * (len(sums) > 1)}"
        yield Finding(WARNING, "few_slices", text)
    constant = np.equal(lows, highs)
    repeated = np.equal(sums[1:], sums[:-1]) & ~constant[1:]
    for code, text, slices in (
        ("constant_slices", "no contrast", np.flatnonzero(constant)),
        ("repeated_slices", "same voxels as the previous slice", np.flatnonzero(repeated) + 1),
    ):
        if len(slices):
            shown = ", ".join(map(str, slices[:6])) + (", ..." if len(slices) > 6 else "")
            text = f"{text} in {len(slices)} of {len(sums)} slices ({shown})"
            yield Finding(WARNING, code, text)


def _length_findings(grid: geometry.TargetGrid, task: Task) -> Iterator[Finding]:
    spacing = [grid.input_spacing_mm[axis] for axis in grid.axes]
    field = [mm * grid.input_shape[axis] for mm, axis in zip(spacing, grid.axes, strict=True)]
    in_plane, across = SPACING_MM[task.image_dtype]
    shortest, longest = FIELD_OF_VIEW_MM[task.image_dtype]
    for code, found, plane, stack in (
        ("spacing", spacing, in_plane, across),
        # A single slice is as deep as its spacing.
        ("field_of_view", field, (shortest, longest), (0.0, longest)),
    ):
        limits = zip(found, (plane, plane, stack), strict=True)
        factor = max(max(low / mm, mm / high) for mm, (low, high) in limits)
        if factor > 1:
            text = (
                f"{code.replace('_', ' ')} {' x '.join(f'{mm:.4g}' for mm in found)} mm, not "
                f"{plane[0]:g} to {plane[1]:g} in the plane and {stack[0]:g} to {stack[1]:g} across"
            )
            if code == "spacing" and factor > IMPOSSIBLE:
                text += " (a wrong xyzt_units in a NIfTI header? --allow unit takes mm)"
            yield Finding(ERROR if factor > IMPOSSIBLE else WARNING, code, text)


def _value_findings(
    image_zyx: np.ndarray, values: Sequence[float], *, scaled: bool
) -> Iterator[Finding]:
    """Yields what the values of an image, stored if `scaled`, show; all of them if they are few."""
    low, high = values[0], values[-1]
    shown = f"{len(values)} values from {low:g} to {high:g}"
    if len(values) > MOST_LABELS:
        return
    if high - low < SMALLEST_RANGE and (scaled or len(values) <= FEW_VALUES):
        yield Finding(ERROR, "few_values", f"{shown} when rounded: a mask, or normalised")
        return
    few = len(values) <= FEW_VALUES
    # Grey images of a byte are uniform where they are clipped: at both ends.
    between = (low, high + 1 if few else high)
    if low >= 0 and (high <= LARGEST_BYTE or not few) and _is_uniform(image_zyx, *between):
        yield Finding(ERROR, "few_values", f"{shown} in uniform regions: a label map")
    elif few:
        yield Finding(WARNING, "few_values", f"only {shown}")


def _is_uniform(image_zyx: np.ndarray, low: float, high: float) -> bool:
    """Returns whether neighbours along x are mostly equal where they are between two intensities."""
    inside = equal = 0
    for plane in image_zyx:
        left, right = plane[::_STEP, :-1], plane[::_STEP, 1:]
        seen = (left > low) & (left < high)
        inside += np.count_nonzero(seen)
        equal += np.count_nonzero(seen & (left == right))
    return equal > SHARE_EQUAL * inside


def _hounsfield_findings(low: float, high: float, share_below: float) -> Iterator[Finding]:
    if low >= 0 and high >= NO_TISSUE_HU:
        range_found = f"no intensity below 0 (smallest {low:g}, largest {high:g})"
        text = f"{range_found}: raw values without their rescale intercept (often -1024)?"
        yield Finding(WARNING, "unscaled", text)
    elif low >= NO_AIR_HU:
        text = f"smallest intensity {low:g} HU, expected air near -1000: clipped or normalised?"
        yield Finding(WARNING, "no_air", text)
    if high < NO_TISSUE_HU:
        text = f"largest intensity {high:g} HU, expected tissue above {NO_TISSUE_HU}"
        yield Finding(WARNING, "no_tissue", text)
    if share_below:
        share = f"{100 * share_below:.2g} % of the voxels below air (smallest {low:g} HU)"
        text = f"{share}: padding outside the field of view?"
        yield Finding(WARNING, "below_air", text)
