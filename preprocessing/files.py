"""Outputs appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


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
