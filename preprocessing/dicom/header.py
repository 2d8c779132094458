"""Reads DICOM headers without pixels, and validates the image description against the file size."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import struct
import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread, uid
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue

from preprocessing.dicom import deidentify
from preprocessing.errors import InputError
from preprocessing.volumes.nifti_bytes import MAX_VOXELS, what_is

# No codec compresses a grey image further than this.
MAX_COMPRESSION = 10_000
# Minimum size of an encapsulated frame: an item header and two bytes.
_MIN_FRAME_BYTES = 10

_MAGIC_AT, _MAGIC = 128, b"DICM"
# First element of files without a preamble: of a meta header, or else of group 8 in little or big
# endian (the latter with explicit VR), with low numbers.
_STARTS = re.compile(
    rb"\x02\0[\0-\x16]\0(UL|OB|UI|SH)|\x08\0[\0-\x1f]\0|\0\x08\0[\0-\x1f](UL|CS|UI|DA|TM)"
)
_PIXEL_DATA = (0x7FE0, 0x0010)
_NATIVE = (uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian)

_TAGS = (
    *deidentify.IDENTIFYING_TAGS,
    *("SOPClassUID", "Modality", "ImageType", "InstanceNumber", "NumberOfFrames"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue"),
    *("PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing"),
    *("SpacingBetweenSlices", "SliceThickness", "RescaleType"),
    *("AcquisitionNumber", "AcquisitionTime", "TemporalPositionIdentifier"),
    *("TemporalPositionIndex", "TriggerTime", "NominalCardiacTriggerDelayTime"),
    *("NominalPercentageOfCardiacPhase", "NumberOfTemporalPositions"),
    *("ContrastBolusAgent", "ContrastBolusStartTime", "EchoNumbers", "KVP", "ConvolutionKernel"),
    *("FilterType", "ReconstructionDiameter", "MonoenergeticEnergyEquivalent"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)

# Objects without an image of the patient, by SOP class and by Modality: waveforms, presentation
# states, parametric maps, segmentations and registrations, surfaces, reports, documents,
# radiotherapy. pydicom knows most, but not the latest.
_NO_IMAGE_CLASS = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(9|11|30|6[678]|88|104|481)(\.|$)")
_NO_IMAGE = frozenset(["SEG", "PR", "SR", "KO", "DOC", "REG", "FID", "PLAN"])
# Images that are no slices, by SOP class and by words in ImageType.
_SECONDARY_CAPTURE = re.compile(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.7(\.|$)")
_ASIDE = {
    "localizer": frozenset(["LOCALIZER", "SCOUT", "TOPOGRAM", "TOP", "SURVEY", "SCANOGRAM"]),
    "screen": frozenset(["SCREEN", "SCREENSHOT", "DOSE", "PROT", "PROTOCOL", "REPORT"]),
}

# pydicom's warnings and log lines may contain patient data.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module="pydicom")


@dataclass(frozen=True)
class Image:
    """A DICOM image file: its header and how its pixels are stored."""

    path: Path
    name: deidentify.RedactedPath  # the path without identifiers, for messages
    header: Dataset  # the elements in use, without pixels
    frames: int  # number of frames, each rows x columns
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    transfer_syntax: uid.UID

    @property
    def compressed(self) -> bool:
        """Whether frames are encoded one by one."""
        return self.transfer_syntax not in _NATIVE


def is_dicom(path: str | os.PathLike) -> bool:
    """Returns whether a file starts like a DICOM file (or a DICOMDIR), regardless of its name."""
    first = b""
    # Opening a pipe would block.
    if os.path.isfile(path):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            first = file.read(_MAGIC_AT + len(_MAGIC))
    return first[_MAGIC_AT:] == _MAGIC or bool(_STARTS.match(first))


def read_header(path: str | os.PathLike, identifiers: Collection[str] = ()) -> Dataset:
    """Reads the header elements in use, without pixels, of a file with or without a preamble.

    The result has the attributes `pixel_offset`, where pixel data starts, and `pixel_bytes`, the
    bytes from there to the end of the file: 0 without pixel data, negative if the header exceeds
    the file. Raises InputError for a damaged file or another kind; no message contains one of the
    `identifiers`.
    """
    name = deidentify.RedactedPath(Path(path), identifiers)
    if not is_dicom(path):
        raise InputError(name, "a DICOM file", what_is(Path(path)))
    try:
        with open(path, "rb") as file:
            if file.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] != _MAGIC:
                file.seek(0)
            meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
            if meta.get("TransferSyntaxUID") == uid.DeflatedExplicitVRLittleEndian:
                # pydicom inflates such files as a whole, without a limit.
                raise InputError(name, "a file not deflated as a whole", "a deflated one")
            file.seek(0)
            header = dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(_TAGS))
            header.pixel_offset = file.tell()
            header.pixel_bytes = os.fstat(file.fileno()).st_size - header.pixel_offset
    except deidentify.DAMAGE as error:
        found = f"a damaged one ({type(error).__name__})"
        raise InputError(name, "a DICOM header", found) from None
    return header


def sop_class(header: Dataset) -> uid.UID:
    """Returns the SOP class of an object; empty if there is none."""
    return uid.UID(text(header, "SOPClassUID") or text(header.file_meta, "MediaStorageSOPClassUID"))


def has_image(header: Dataset) -> bool:
    """Returns whether an object is an image, rather than a segmentation, report, plan or DICOMDIR.

    A secondary capture is one if it has a place in the patient. Private SOP classes are images if
    they have pixels. A header without a valid class counts as a (damaged) image, so that it is
    reported rather than ignored.
    """
    kind, modality = sop_class(header), text(header, "Modality").upper()
    if _SECONDARY_CAPTURE.match(kind):
        return text(header, "ImagePositionPatient") != ""
    if _NO_IMAGE_CLASS.match(kind):
        return False
    if kind.name != kind:
        return "Image Storage" in kind.name
    if modality in _NO_IMAGE or modality.startswith("RT"):
        return False
    if kind.is_valid and kind.is_private:
        return "Rows" in header or header.pixel_bytes != 0
    return True


def aside(header: Dataset) -> str:
    """Returns "localizer", "screen" (text, colours), "secondary_capture", or nothing for a slice."""
    if _SECONDARY_CAPTURE.match(sop_class(header)):
        return "secondary_capture"
    if text(header, "PhotometricInterpretation").startswith(("RGB", "YBR")):
        return "screen"
    words = image_type_words(header)
    return next((kind for kind, own in _ASIDE.items() if words & own), "")


def image_type_words(header: Dataset) -> frozenset[str]:
    """Returns the words of ImageType from its third value on: `CT_SOM5 MPR` has CT, SOM5, MPR."""
    return frozenset(re.split(r"[\W_]+", " ".join(values(header, "ImageType")[2:])))


def read_image_header(path: str | os.PathLike, identifiers: Collection[str] = ()) -> Image:
    """Reads the header of an image; see `read_header` and `image_of`."""
    header = read_header(path, identifiers)
    return image_of(Path(path), header, {*identifiers, *deidentify.header_identifiers(header)})


def image_of(path: Path, header: Dataset, identifiers: Collection[str]) -> Image:
    """Returns the image that a header describes; messages do not contain `identifiers`.

    Raises InputError unless it is a grey image of integers in a file long enough for it.
    """
    name = deidentify.RedactedPath(path, identifiers)
    if "Rows" not in header or "Columns" not in header:
        raise InputError(name, "a DICOM image", "no Rows and Columns")
    rows, columns = integer(header, "Rows", name), integer(header, "Columns", name)
    frames = integer(header, "NumberOfFrames", name, 1)
    allocated = integer(header, "BitsAllocated", name)
    stored = integer(header, "BitsStored", name, allocated)
    sign = integer(header, "PixelRepresentation", name, 0)
    samples = integer(header, "SamplesPerPixel", name, 1)
    if min(rows, columns, frames) < 1:
        raise InputError(name, "at least one frame of one pixel", f"{frames}, {rows} x {columns}")
    if samples != 1:
        raise InputError(name, "one value per pixel", f"{samples}, a colour image")
    if text(header, "PhotometricInterpretation") not in ("", "MONOCHROME1", "MONOCHROME2"):
        raise InputError(name, "a grey image, MONOCHROME1 or MONOCHROME2", "another kind")
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated or sign not in (0, 1):
        found = f"BitsAllocated {allocated}, BitsStored {stored}, PixelRepresentation {sign}"
        raise InputError(name, "integers of 8, 16 or 32 bits", found)
    if integer(header, "HighBit", name, stored - 1) != stored - 1:
        raise InputError(name, f"HighBit {stored - 1} with BitsStored {stored}", "another one")
    if frames * rows * columns > MAX_VOXELS:
        found = f"a header of {frames} frames of {rows} x {columns}"
        raise InputError(name, f"at most {MAX_VOXELS} voxels", found)
    syntax = _transfer_syntax(header, name)
    image = Image(path, name, header, frames, rows, columns, allocated, stored, bool(sign), syntax)
    _check_size(image)
    return image


def text(header: Dataset, keyword: str) -> str:
    """Returns the value of an element as text; empty if it is missing or damaged."""
    try:
        value = header.get(keyword)
    except deidentify.DAMAGE:
        return ""
    return "" if value is None else str(value).strip()


def values(header: Dataset, keyword: str) -> tuple[str, ...]:
    """Returns the values of an element as texts in upper case; none if it is damaged."""
    try:
        found = header.get(keyword)
    except deidentify.DAMAGE:
        return ()
    several = found if isinstance(found, MultiValue) else [found]
    return tuple("" if each is None else str(each).strip().upper() for each in several)


def integer(header: Dataset, keyword: str, where: object, default: int | None = None) -> int:
    """Returns an element's integer, else the default; raises InputError for anything else."""
    (number,) = numbers(header, keyword, 1, where) or (default,)
    if number is None or number != int(number):
        found = "none" if number is None else f"{number:g}"
        raise InputError(where, f"an integer for {keyword}", found)
    return int(number)


def numbers(header: Dataset, keyword: str, count: int, where: object) -> tuple[float, ...] | None:
    """Returns an element's values, if any; raises InputError unless `count` finite numbers."""
    expected = f"{count} finite number{'s' if count > 1 else ''} for {keyword}"
    try:
        value = header.get(keyword)
        if value is None or (isinstance(value, str | list) and not value):
            return None
        found = tuple(float(each) for each in (value if count > 1 else (value,)))
    except deidentify.DAMAGE:
        raise InputError(where, expected, "something else") from None
    if len(found) != count or not all(map(math.isfinite, found)):
        raise InputError(where, expected, f"{len(found)}, or infinite ones")
    return found


def sequence_item(header: Dataset, keyword: str, where: object, index: int = 0) -> Dataset | None:
    """Returns an item of a sequence, if any; raises InputError if the element is no sequence."""
    try:
        items = header.get(keyword)
        return None if items is None or len(items) <= index else items[index]
    except deidentify.DAMAGE as error:
        found = f"a damaged one ({type(error).__name__})"
        raise InputError(where, f"a sequence {keyword}", found) from None


def functional_groups(header: Dataset, frame: int, group: str, where: object) -> Iterator[Dataset]:
    """Yields a frame's own functional group, the shared one, and the header, as far as there."""
    for groups, index in (
        ("PerFrameFunctionalGroupsSequence", frame),
        ("SharedFunctionalGroupsSequence", 0),
    ):
        item = sequence_item(header, groups, where, index)
        inner = None if item is None else sequence_item(item, group, where)
        if inner is not None:
            yield inner
    yield header


def _transfer_syntax(header: Dataset, where: object) -> uid.UID:
    """Returns the transfer syntax of the meta header, or else the one that pydicom has detected."""
    named = text(header.file_meta, "TransferSyntaxUID")
    if named and named not in uid.AllTransferSyntaxes:
        raise InputError(where, "a DICOM transfer syntax", "another UID")
    if named:
        return uid.UID(named)
    implicit, little = header.original_encoding
    if implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


def _check_size(image: Image) -> None:
    with open(image.path, "rb") as file:
        file.seek(image.header.pixel_offset)
        first = file.read(4)
    order = ">HH" if image.transfer_syntax == uid.ExplicitVRBigEndian else "<HH"
    if len(first) < 4 or struct.unpack(order, first) != _PIXEL_DATA:
        raise InputError(image.name, "pixel data of integers", "none")
    there = image.header.pixel_bytes
    promised = image.frames * image.rows * image.columns * image.bits_allocated // 8
    what = f"{image.frames} frames of {image.rows} x {image.columns}"
    if not image.compressed and there < promised:
        expected = f"the {promised} bytes of pixels that its header promises, {what}"
        raise InputError(image.name, expected, f"{there} (truncated?)")
    least = max(image.frames * _MIN_FRAME_BYTES, promised / MAX_COMPRESSION)
    if image.compressed and there < least:
        expected = f"the {what} that its header promises"
        raise InputError(image.name, expected, f"{there} bytes of compressed pixels (truncated?)")
