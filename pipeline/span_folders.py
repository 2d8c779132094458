"""Spans on disk: batches of cases in folders span-1, span-2, ... of one data folder."""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.configs import SPAN_FOLDER
from preprocessing.errors import InputError

_NAME = re.compile(re.escape(SPAN_FOLDER).replace(re.escape("{SPAN}"), r"(\d+)"))


def spans_of(data: str | Path) -> dict[int, Path]:
    """Returns the folders of all spans by their number, rising."""
    found = {}
    for folder in Path(data).iterdir():
        match = _NAME.fullmatch(folder.name)
        if match and folder.is_dir():
            found[int(match[1])] = folder
    return dict(sorted(found.items()))


def newest_span(data: str | Path) -> Path:
    """Returns the folder of the newest span.

    Raises:
      InputError: there is none.
    """
    spans = spans_of(data)
    if not spans:
        expected = f"batches of cases in folders {SPAN_FOLDER.format(SPAN=1)}, "
        expected += SPAN_FOLDER.format(SPAN=2)
        raise InputError(data, expected, "none", "Leave --spans out where it is one data set.")
    return spans[max(spans)]
