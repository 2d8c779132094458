"""Reads DICOM SEG and Label Map SEG files as label maps on the grid of their image."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.uid import RLELossless

from preprocessing.dicom import geometry
from preprocessing.dicom.deidentify import DAMAGE, RedactedPath, header_identifiers
from preprocessing.dicom.header import Image, read_header
from preprocessing.dicom.pixels import stored_frames
from preprocessing.errors import InputError
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.grids import SAME_GRID


def read_segmentation(
    path: Path,
    image: Volume,
    classes_of: Callable[[Sequence[str], object], Mapping[str, int]],
    identifiers: Collection[str] = (),
) -> Volume:
    """Reads a SEG as a label map, uint8 [x, y, z], on the grid of its image.

    Each frame lies on the slice of the image that has its position; slices without a frame are
    background. `classes_of` takes the labels of all segments and the name of the file, and returns
    the values of the segments in use, in the order in which they are drawn.

    Raises InputError for a damaged file, another kind, or frames that are not slices of the image.
    No message contains one of the `identifiers` or a header value.
    """
    # Imported here because it is slow and seldom needed.
    import highdicom as hd

    name = RedactedPath(path, {*identifiers, *header_identifiers(read_header(path, identifiers))})
    voxels = np.zeros(image.voxels.shape, np.uint8, order="F")
    try:
        # Warnings may contain patient data.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seg = hd.seg.segread(path)
            size = seg.number_of_frames, int(seg.Rows), int(seg.Columns)
            bits, syntax = (int(seg.BitsAllocated), int(seg.BitsStored)), seg.transfer_syntax_uid
            header = Image(path, name, seg, *size, *bits, False, syntax)
            labels = {n: seg.get_segment_description(n).segment_label for n in seg.segment_numbers}
            for label, value in classes_of(list(dict.fromkeys(labels.values())), name).items():
                numbers = [number for number, each in labels.items() if each == label]
                for frame, inside in _masks(seg, header, numbers):
                    _slice_at(header, frame, Volume(voxels, image.affine))[inside] = value
    except DAMAGE as error:
        expected = "a DICOM SEG with its segments and the place of each frame"
        raise InputError(name, expected, f"a damaged one ({type(error).__name__})") from None
    return Volume(voxels, image.affine)


def _slice_at(header: Image, frame: int, label: Volume) -> np.ndarray:
    """Returns the view [row, column] of the slice of a label map that a frame covers exactly."""
    plane = geometry.plane_of(header, frame)
    if not (plane.position_mm and plane.orientation and plane.pixel_spacing_mm):
        expected = "position, orientation and spacing of each frame"
        raise InputError(header.name, expected, "none, or not of all")
    axes = geometry.plane_axes(plane.orientation, header.name)
    first_mm = np.array(plane.position_mm)
    affine = geometry.stack_affine(axes, plane.pixel_spacing_mm, first_mm, axes[2])
    # From column, row, 0, 1 to the label map's voxels.
    places = np.linalg.solve(label.affine, affine)[:3]
    across, down = np.abs(places[:, :2]).argmax(axis=0).tolist()
    shape, (rows, columns) = label.voxels.shape, (header.rows, header.columns)
    steps = np.array([[0, columns - 1, 0, columns - 1], [0, 0, rows - 1, rows - 1]])
    corners = places[:, 3:] + places[:, :2] @ steps
    left, right, top, bottom = np.rint([*corners[across, :2], *corners[down, ::2]])
    normal = 3 - across - down
    if across != down and (shape[across], shape[down]) == (columns, rows):
        z = int(np.rint(corners[normal, 0]))
        expected_at = np.empty((3, 4))
        expected_at[[across, down, normal]] = (left, right) * 2, (top, top, bottom, bottom), [z] * 4
        whole = {left, right} == {0, columns - 1} and {top, bottom} == {0, rows - 1}
        if whole and 0 <= z < shape[normal] and np.abs(corners - expected_at).max() <= SAME_GRID:
            view = label.voxels.transpose(down, across, normal)[:, :, z]
            return view[:: -1 if top > bottom else 1, :: -1 if left > right else 1]
    expected = f"frames that are slices of the image, {shape} voxels"
    raise InputError(header.name, expected, f"one of {rows} x {columns} pixels that is none")


def _masks(seg: Any, header: Image, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the frames that show some segments, and where in them [row, column] the segments are."""
    kind, decoded = seg.segmentation_type.value, None
    if header.compressed and header.transfer_syntax != RLELossless:
        # These codecs may crash, so they run in a process of their own.
        decoded = list(stored_frames([header]))
    for frame in range(header.frames):
        if kind != "LABELMAP":
            group, keyword = "SegmentIdentificationSequence", "ReferencedSegmentNumber"
            own = geometry.frame_numbers(header, frame, group, keyword, 1)
            if own is None:
                raise InputError(header.name, "the segment of each frame", "none")
            if own[0] not in numbers:
                continue
        stored = decoded[frame] if decoded else seg.get_stored_frame(frame, as_index=True)
        if kind == "BINARY":
            yield frame, stored > 0
        elif kind == "FRACTIONAL":
            yield frame, stored >= seg.MaximumFractionalValue / 2
        elif np.isin(stored, [0, *seg.segment_numbers]).all():
            yield frame, np.isin(stored, numbers)
        else:
            raise InputError(header.name, "pixels of its segments", "pixels of others")
