"""Checks DICOM headers for what a task expects: a CT in HU, or a tomosynthesis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydicom.dataset import Dataset

from preprocessing.dicom import header as headers
from preprocessing.dicom.deidentify import RedactedPath
from preprocessing.dicom.series import DEFAULTS, ReadOptions, find_series
from preprocessing.volumes.quality_checks import ERROR, WARNING

CT, MG = "CT", "MG"
# What a task expects by its dtype: Modality, and in words.
_EXPECTED = {"int16": (CT, "a CT"), "uint16": (MG, "a breast tomosynthesis")}
# Values of Modality that are shown; others could be anything.
_SHOWN = frozenset(["CR", "DX", "MR", "NM", "OT", "PT", "RF", "SC", "SEG", "US", "XA"])
# Words in ImageType of images derived from slices, and of others whose values are not HU.
_PROJECTION = frozenset(["MIP", "MINIP", "PROJECTION", "PROJ", "VRT", "SSD", "RENDERING", "2D"])
_NO_HU = _PROJECTION | frozenset(
    [
        *("RGB", "COLOR", "PERFUSION", "CBF", "CBV", "MTT", "TTP", "TMAX", "SUBTRACTION"),
        *("IODINE", "EFF", "DENSITY", "FRACTIONAL", "SPECIFIC", "MAP", "ZEFF"),
    ]
)
# Values of RescaleType that mean HU, or may mean it: modified or unspecified.
_HU, _MAYBE_HU = frozenset(["", "HU", "HOUNSFIELD"]), frozenset(["HU_MOD", "US"])


def header_findings(
    path: Path, image_dtype: str, options: ReadOptions = DEFAULTS
) -> tuple[tuple[str, str, str], ...]:
    """Returns misfits ("error") and doubts ("warning") of an image as (severity, code, text).

    Takes a folder of slices, of which one stands for all, or a file, and the dtype of a task, which
    stands for CT in HU (int16) or tomosynthesis (uint16). Raises InputError for an unreadable
    header, and as `series.find_series`.
    """
    if path.is_dir():
        header = find_series(path, options).images[0].header
    else:
        header = headers.read_header(path, options.identifiers)
    return tuple(_findings(header, image_dtype, RedactedPath(path, options.identifiers)))


def _findings(header: Dataset, image_dtype: str, where: object) -> Iterator[tuple[str, str, str]]:
    aside, words = headers.aside(header), headers.image_type_words(header)
    if aside:
        yield ERROR, aside, f"a {aside.replace('_', ' ')}, not slices of a volume"
    elif not headers.has_image(header):
        yield ERROR, "no_image", "a DICOM object of another kind than an image"
    expected, in_words = _EXPECTED[image_dtype]
    kind = _kind(header)
    if kind != expected:
        severity = ERROR if kind else WARNING
        yield severity, "modality", f"{kind or 'an unknown Modality'}, not {in_words}"
    elif expected == MG:
        if words & _PROJECTION or "Projection" in headers.sop_class(header).name:
            yield ERROR, "derived", "projections or a synthesized mammogram, not slices"
    elif words & _NO_HU:
        shown = ", ".join(sorted(words & _NO_HU))
        yield ERROR, "derived", f"a derived image whose values are not HU (ImageType {shown})"
    elif headers.values(header, "ImageType")[:1] == ("DERIVED",):
        yield WARNING, "derived", "a derived image (ImageType), perhaps resampled or filtered"
    if kind == expected == CT:
        groups = headers.functional_groups(header, 0, "PixelValueTransformationSequence", where)
        found = (headers.text(group, "RescaleType").upper() for group in groups)
        units = next(filter(None, found), "")
        if units in _MAYBE_HU:
            yield WARNING, "units", f"RescaleType {units}, not HU"
        elif units not in _HU:
            yield ERROR, "units", "a RescaleType other than HU"


def _kind(header: Dataset) -> str:
    """Returns CT, MG, another kind in words, or nothing if unknown.

    Old tomosyntheses are stored in the class of CT, and copies and private classes hold anything:
    there Modality decides.
    """
    name, modality = headers.sop_class(header).name, headers.text(header, "Modality").upper()
    if "Breast" in name:
        return MG
    own = CT if "CT Image" in name else MG if "Mammography" in name else ""
    if "Image Storage" in name and not own and "Secondary Capture" not in name:
        return name
    if modality in (CT, MG, ""):
        return modality or own
    return f"Modality {modality}" if modality in _SHOWN else "another Modality"
