"""Spans on disk: batches of cases in folders span-1, span-2, ... of one data folder."""

from __future__ import annotations

import re
from pathlib import Path

from preprocessing.errors import InputError

# Between the data folder and a batch's own content; TFX replaces {SPAN} by the number.
SPAN_FOLDER = "span-{SPAN}"


def spans_of(data: str | Path) -> dict[int, Path]:
    """Returns the folders of all spans by number, in ascending order."""
    found = {}
    for folder in Path(data).iterdir():
        match = re.fullmatch(SPAN_FOLDER.format(SPAN=r"(\d+)"), folder.name)
        if match and folder.is_dir():
            found[int(match[1])] = folder
    return dict(sorted(found.items()))


def newest_span(data: str | Path) -> Path:
    """Returns the folder of the newest span.

    Raises:
      InputError: there is no span.
    """
    spans = spans_of(data)
    if not spans:
        expected = "batches of cases in folders span-1, span-2"
        raise InputError(data, expected, "none", "Omit --spans if the folder is one data set.")
    return spans[max(spans)]
