"""Atomic output: files and folders are written under a temporary name and then renamed."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Error numbers of a full disk, an exceeded quota and an exceeded file-size limit.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Names of the folders that `atomic_write` works in: the target's name and mkdtemp's random part.
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path with the suffixes of `path`; on success it is renamed to `path`.

    It may become a file or a folder. On an error it is removed and `path` stays as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(target.suffixes[-2:])
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    temporary = folder / f"temporary{suffix}"
    try:
        yield temporary
        if temporary.is_dir() and target.is_dir():
            # A folder can't be renamed over one that is not empty: move the old one aside first.
            os.rename(target, folder / "replaced")
        os.replace(temporary, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_stale_temporaries(folder: str | os.PathLike) -> None:
    """Removes what killed processes left of `atomic_write`; no process may be writing there."""
    for path in Path(folder).glob(".*"):
        if path.is_dir() and _TEMPORARY.fullmatch(path.name):
            shutil.rmtree(path)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes `content` as indented JSON with sorted keys, atomically."""
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    with atomic_write(path) as temporary:
        # Names of files may contain bytes that are not text; they become JSON's escapes.
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes the columns of rows as a CSV table with a header, atomically."""
    with (
        atomic_write(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def without_nan(content: Any) -> Any:
    """Returns nested content with None for NaN, which JSON lacks; keys become strings."""
    if isinstance(content, Mapping):
        return {str(name): without_nan(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and math.isnan(content) else content
