"""The folders of a model's versions: found by number, and told apart from those still being copied."""

from __future__ import annotations

import re
from pathlib import Path

_LARGEST_VERSION = 2**63 - 1


def find_versions(base_path: Path) -> dict[int, Path]:
    """Returns the SavedModel folders in `base_path` that have a whole number as name."""
    return {
        int(child.name): child
        for child in base_path.iterdir()
        if re.fullmatch("[0-9]{1,19}", child.name)
        and int(child.name) <= _LARGEST_VERSION
        and (child / "saved_model.pb").is_file()
    }


def file_stamp(folder: Path) -> tuple:
    """Returns names, sizes and times of a folder's files: it changes while files are copied."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = [(path, path.stat()) for path in files]
    return tuple((str(path), fact.st_size, fact.st_mtime_ns) for path, fact in facts)
