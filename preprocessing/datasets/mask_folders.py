"""Label maps as DICOM masks, one folder of slices a structure, as 3D-IRCADb has them."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from preprocessing.datasets.label_names import class_value, is_tumour
from preprocessing.dicom.deidentify import redact_path
from preprocessing.dicom.pixels import stored_frames
from preprocessing.dicom.series import find_series
from preprocessing.errors import InputError
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.nifti import check_pair


def read_masks(
    folder: str | os.PathLike,
    class_names: Sequence[str],
    *,
    allow: Collection[str] = (),
    identifying: Collection[str] = (),
) -> Volume:
    """Reads masks as one label map: pixels above 0 are of the class that their folder's name means.

    Where masks overlap, tumours win over the organ they lie in. Folders whose names mean no class of
    the task (`venacava`) are passed over; tumours may be absent, other classes may not.

    Args:
      folder: with a folder of slices for each structure (`liver`, `livertumor01`).
      class_names: a name a label value, background first.
      allow: names of `preprocessing.allowances.ALLOWANCES`.
      identifying: further values that no message may show.

    Returns:
      Voxels [x, y, z], uint8.

    Raises:
      InputError: no folder for a class, slices that don't make a volume, or masks on different grids.
    """
    folder = Path(folder)
    shown = redact_path(folder, identifying)
    if not folder.is_dir():
        raise InputError(shown, "a folder of masks", "no folder")
    found = {
        path: value
        for path in sorted(folder.iterdir())
        if path.is_dir() and (value := class_value(path.name, class_names))
    }
    missing = [
        name
        for value, name in enumerate(class_names)
        if value and not is_tumour(name) and value not in found.values()
    ]
    if missing or not found:
        expected = f"a folder of masks for {', '.join(missing or class_names[1:])}"
        names = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
        raise InputError(shown, expected, names or "none")
    label = None
    for path, value in sorted(found.items(), key=lambda each: is_tumour(each[0].name)):
        series = find_series(path, allow=allow, one_series=True, identifying=identifying)
        first = series.images[0]
        shape = (first.columns, first.rows, len(series.images))
        grid = Volume(np.broadcast_to(np.uint8(0), shape), series.affine)
        if label is None:
            label = Volume(np.zeros(shape, np.uint8, order="F"), series.affine)
        check_pair(label, grid, series.shown)
        for z, stored in enumerate(stored_frames(series.images)):
            label.voxels[:, :, z][stored.T > 0] = value
    return label
