"""Outputs appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Errors of a disk without room; the last is what a limit on the size of files gives.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# As `replacing` names its folders: the target's name and what mkdtemp appends.
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside `path` (same suffixes); on success it is renamed to `path`.

    On an error the temporary file or folder is removed and `path` stays as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(target.suffixes[-2:])
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    temporary = folder / f"unfinished{suffix}"
    try:
        yield temporary
        if temporary.is_dir() and target.is_dir():
            # A folder cannot be renamed over a full one: move the old one aside first.
            os.rename(target, folder / "replaced")
        os.replace(temporary, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_unfinished(folder: str | os.PathLike) -> None:
    """Removes what `replacing` left in a folder where its process was killed; no other may write there."""
    for path in Path(folder).glob(".*"):
        if path.is_dir() and _TEMPORARY.fullmatch(path.name):
            shutil.rmtree(path)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes `content` as indented JSON with sorted keys; the file appears whole or not at all."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def without_nan(content: Any) -> Any:
    """Returns nested content with None for NaN, which JSON doesn't know; keys become texts."""
    if isinstance(content, Mapping):
        return {str(name): without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content
