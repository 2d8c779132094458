"""DICOM -> volumes: a folder of slices or a multi-frame file, whatever the files are called."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from preprocessing.dicom.multiframe import read_frames
from preprocessing.dicom.series import read_series
from preprocessing.volumes.geometry import Volume


def read_dicom(
    path: str | os.PathLike,
    *,
    view: str = "",
    allow: Collection[str] = (),
    identifying: Collection[str] = (),
) -> Volume:
    """Reads a folder of slices (`series.read_series`) or one file (`frames.read_frames`).

    Raises:
      InputError: see there; no message holds an identifier of a header.
    """
    if Path(path).is_dir():
        return read_series(path, allow=allow, identifying=identifying)
    return read_frames(path, view=view, allow=allow, identifying=identifying)
