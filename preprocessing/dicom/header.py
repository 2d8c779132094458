"""Headers of DICOM files: read without the pixels, and what they promise held against the file."""

from __future__ import annotations

import logging
import math
import os
import struct
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    UID,
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from preprocessing.dicom.deidentify import (
    DAMAGE,
    IDENTIFYING_TAGS,
    RedactedPath,
    identifiers,
    redact_path,
)
from preprocessing.errors import InputError
from preprocessing.volumes.nifti_bytes import MAX_VOXELS

# No codec takes an image of one colour further down than to this share of its size.
MAX_COMPRESSION = 10_000
# The least that a frame takes in an encapsulated file: the head of its item and one pair of bytes.
_LEAST_FRAME_BYTES = 10

_MAGIC_AT, _MAGIC = 128, b"DICM"
# First elements of files without preamble and meta header: group 8, little endian, low numbers.
_BARE_STARTS = tuple(bytes([8, 0, element, 0]) for element in range(0x20))
_PIXEL_DATA = (0x7FE0, 0x0010)
_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)

_TAGS = (
    *IDENTIFYING_TAGS,
    *("SOPClassUID", "Modality", "ImageType", "InstanceNumber", "NumberOfFrames"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated"),
    *("BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue"),
    *("PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing"),
    *("SpacingBetweenSlices", "SliceThickness"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)

# A warning or log line of pydicom may quote a header.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", module="pydicom")


@dataclass(frozen=True)
class Image:
    """A DICOM image file: its header, and how its pixels are stored.

    Attributes:
      path: the file.
      shown: its name in messages, without identifiers.
      header: what of the header is used; no pixels.
      frames, rows, columns: number and size of its frames.
      bits_allocated, bits_stored, signed: of a stored pixel.
      transfer_syntax: how the pixels are encoded.
    """

    path: Path
    shown: RedactedPath
    header: Dataset
    frames: int
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    transfer_syntax: UID

    @property
    def compressed(self) -> bool:
        """Whether frames are encoded one by one."""
        return self.transfer_syntax not in _NATIVE


def is_dicom(path: str | os.PathLike) -> bool:
    """Returns whether a file begins like a DICOM file, whatever its name; a DICOMDIR does too."""
    # A pipe would keep its reader waiting.
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            first = file.read(_MAGIC_AT + len(_MAGIC))
    except OSError:
        return False
    return first[_MAGIC_AT:] == _MAGIC or first.startswith(_BARE_STARTS)


def read_header(path: str | os.PathLike, identifying: Collection[str] = ()) -> Dataset:
    """Reads what of a header is used, and none of the pixels.

    The dataset's `pixel_offset` is where the file's pixel data begins, and `pixel_bytes` what there is
    from there to the file's end: 0 without pixel data, below 0 if an element promises more than that.

    Args:
      path: DICOM file.
      identifying: values that must not be shown besides the file's own, see
        `identity.identifiers`.

    Raises:
      InputError: no DICOM file, or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise InputError(redact_path(path, identifying), "a DICOM file", found)
    if not is_dicom(path):
        found = "a file of another kind"
        raise InputError(redact_path(path, identifying), "a DICOM file", found)
    try:
        if _is_deflated(path):
            # pydicom inflates it as a whole, whatever size comes out.
            found = DeflatedExplicitVRLittleEndian.name
            raise InputError(
                redact_path(path, identifying), "a file not deflated as a whole", found
            )
        with open(path, "rb") as file:
            header = dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(_TAGS))
            header.pixel_offset = file.tell()
            header.pixel_bytes = os.fstat(file.fileno()).st_size - header.pixel_offset
    except DAMAGE as error:
        found = f"a damaged one ({type(error).__name__})"
        raise InputError(redact_path(path, identifying), "a DICOM header", found) from None
    return header


def has_image(header: Dataset) -> bool:
    """Returns whether a header is one of an image, not of a report, a plan, a dose or a DICOMDIR.

    The kind of object decides; a private kind is an image if it has pixels. A header that names no
    possible kind is a damaged one, and counts, so that nothing is lost.
    """
    kind = UID(text(header, "SOPClassUID") or text(header.file_meta, "MediaStorageSOPClassUID"))
    if kind.name != kind:
        return "Image Storage" in kind.name
    if kind.is_valid and kind.is_private:
        return "Rows" in header or header.pixel_bytes != 0
    return True


def read_image_header(path: str | os.PathLike, identifying: Collection[str] = ()) -> Image:
    """Reads the header of an image, and checks that the file can hold what it promises.

    Args:
      path: DICOM file.
      identifying: further values that must not be shown, see `identity.identifiers`.

    Raises:
      InputError: as in `read_header`; or no single-channel image, or a file shorter than promised.
    """
    header = read_header(path, identifying)
    return image_of(Path(path), header, {*identifying, *identifiers(header)})


def image_of(path: Path, header: Dataset, identifying: Collection[str]) -> Image:
    """Returns the image that a header describes; see `read_image_header`."""
    shown = RedactedPath(path, identifying)
    if "Rows" not in header or "Columns" not in header:
        raise InputError(shown, "a DICOM image", "no Rows and Columns")
    rows, columns = whole(header, "Rows", shown), whole(header, "Columns", shown)
    frames = whole(header, "NumberOfFrames", shown, 1)
    allocated = whole(header, "BitsAllocated", shown)
    stored = whole(header, "BitsStored", shown, allocated)
    sign = whole(header, "PixelRepresentation", shown, 0)
    samples = whole(header, "SamplesPerPixel", shown, 1)
    if min(rows, columns, frames) < 1:
        raise InputError(shown, "at least one frame of one pixel", f"{frames}, {rows} x {columns}")
    if samples != 1:
        raise InputError(shown, "one value a pixel", f"{samples}, a colour image")
    if text(header, "PhotometricInterpretation") not in (
        "",
        "MONOCHROME1",
        "MONOCHROME2",
    ):
        raise InputError(shown, "a grey image, MONOCHROME1 or MONOCHROME2", "another kind")
    if allocated not in (8, 16, 32) or not 1 <= stored <= allocated or sign not in (0, 1):
        raise InputError(
            shown,
            "whole numbers of 8, 16 or 32 bits",
            f"BitsAllocated {allocated}, BitsStored {stored}, PixelRepresentation {sign}",
        )
    if whole(header, "HighBit", shown, stored - 1) != stored - 1:
        raise InputError(shown, f"HighBit {stored - 1} with BitsStored {stored}", "another one")
    if frames * rows * columns > MAX_VOXELS:
        found = f"a header of {frames} frames of {rows} x {columns}"
        raise InputError(shown, f"at most {MAX_VOXELS} voxels", found)
    image = Image(
        *(path, shown, header, frames, rows, columns, allocated, stored, bool(sign)),
        _transfer_syntax(header, shown),
    )
    _check_size(image)
    return image


def text(header: Dataset, keyword: str) -> str:
    """Returns an element's value as text; empty where it is missing or damaged."""
    try:
        value = header.get(keyword)
    except DAMAGE:
        return ""
    return "" if value is None else str(value).strip()


def whole(header: Dataset, keyword: str, shown: object, default: int | None = None) -> int:
    """Returns a whole number of a header.

    Raises:
      InputError: it is missing without a default, or no whole number.
    """
    (number,) = numbers(header, keyword, 1, shown) or (default,)
    if number is None or number != int(number):
        found = "none" if number is None else f"{number:g}"
        raise InputError(shown, f"a whole number for {keyword}", found)
    return int(number)


def numbers(header: Dataset, keyword: str, count: int, shown: object) -> tuple[float, ...] | None:
    """Returns the finite numbers of an element; None where it is missing or empty.

    Raises:
      InputError: other values, or another count.
    """
    expected = f"{count} finite number{'s' if count > 1 else ''} for {keyword}"
    try:
        value = header.get(keyword)
        if value is None or (isinstance(value, str | list) and not value):
            return None
        values = tuple(float(each) for each in (value if count > 1 else (value,)))
    except DAMAGE:
        raise InputError(shown, expected, "something else") from None
    if len(values) != count or not all(map(math.isfinite, values)):
        raise InputError(shown, expected, f"{len(values)}, or infinite ones")
    return values


def sequence_item(header: Dataset, keyword: str, shown: object, index: int = 0) -> Dataset | None:
    """Returns an item of a sequence; None where there is no such item.

    Raises:
      InputError: the element is no sequence.
    """
    try:
        items = header.get(keyword)
        if items is None or len(items) <= index:
            return None
        return items[index]
    except DAMAGE as error:
        found = f"a damaged one ({type(error).__name__})"
        raise InputError(shown, f"a sequence {keyword}", found) from None


def _is_deflated(path: Path) -> bool:
    with open(path, "rb") as file:
        if file.read(_MAGIC_AT + len(_MAGIC))[_MAGIC_AT:] != _MAGIC:
            return False
    return read_file_meta_info(path).get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian


def _transfer_syntax(header: Dataset, shown: object) -> UID:
    """Returns the file's transfer syntax; without a meta header what pydicom read it as."""
    named = text(header.file_meta, "TransferSyntaxUID")
    if named:
        if named not in AllTransferSyntaxes:
            raise InputError(shown, "a transfer syntax of DICOM", "another UID")
        return UID(named)
    implicit, little = header.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _check_size(image: Image) -> None:
    with open(image.path, "rb") as file:
        file.seek(image.header.pixel_offset)
        first = file.read(4)
    order = ">HH" if image.transfer_syntax == ExplicitVRBigEndian else "<HH"
    if len(first) < 4 or struct.unpack(order, first) != _PIXEL_DATA:
        raise InputError(image.shown, "pixel data of whole numbers", "none")
    there = image.header.pixel_bytes
    promised = image.frames * image.rows * image.columns * image.bits_allocated // 8
    what = f"{image.frames} frames of {image.rows} x {image.columns}"
    if not image.compressed:
        if there < promised:
            expected = f"the {promised} bytes of pixels that its header promises, {what}"
            raise InputError(image.shown, expected, f"{there} (truncated?)")
    elif image.frames * _LEAST_FRAME_BYTES > there or promised > there * MAX_COMPRESSION:
        expected = f"the {what} that its header promises"
        raise InputError(image.shown, expected, f"{there} bytes of compressed pixels (truncated?)")
