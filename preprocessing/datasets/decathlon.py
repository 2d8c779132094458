"""The Medical Segmentation Decathlon's `dataset.json`: which pairs there are, and what labels mean.

nnU-Net's of the same name is understood too: it names labels alone, and its pairs are found by names.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocessing.errors import InputError

FILE = "dataset.json"
# Larger ones are no lists of files.
MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class DecathlonSet:
    """What a dataset.json says.

    Attributes:
      folder: where it lies.
      label_names: label values and their names, in order of the values.
      pairs: image and label map of each training case; None where the file lists none.
      test_images: images without label maps.
      problems: entries that can't be used, each in one line.
    """

    folder: Path
    label_names: tuple[tuple[int, str], ...]
    pairs: tuple[tuple[Path, Path], ...] | None
    test_images: tuple[Path, ...]
    problems: tuple[str, ...]


def read_decathlon(folder: Path) -> DecathlonSet | None:
    """Reads a folder's dataset.json; None where there is none, or one of something else.

    Raises:
      InputError: a file that is no JSON, or whose labels are no numbers with a name each.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_BYTES:
        raise InputError(path, f"at most {MAX_BYTES} bytes", path.stat().st_size)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(path, "JSON", type(error).__name__) from None
    if not isinstance(content, dict) or "labels" not in content:
        return None
    problems: list[str] = []
    pairs = None
    if isinstance(content.get("training"), list):
        pairs = []
        for entry in content["training"]:
            found = entry if isinstance(entry, dict) else {}
            both = [_inside(folder, found.get(kind)) for kind in ("image", "label")]
            if None in both:
                problems.append(_problem(path, "training", entry))
            else:
                pairs.append(tuple(both))
    tests = []
    for entry in content["test"] if isinstance(content.get("test"), list) else ():
        image = _inside(folder, entry.get("image") if isinstance(entry, dict) else entry)
        if image is None:
            problems.append(_problem(path, "test", entry))
        else:
            tests.append(image)
    return DecathlonSet(
        folder,
        _label_names(path, content["labels"]),
        None if pairs is None else tuple(pairs),
        tuple(tests),
        tuple(problems),
    )


def _label_names(path: Path, labels: Any) -> tuple[tuple[int, str], ...]:
    """Returns {"0": "background"} (Decathlon) and {"background": 0} (nnU-Net) as the same pairs."""
    try:
        items = [
            (int(name), value) if isinstance(value, str) else (int(value), name)
            for name, value in labels.items()
        ]
    except (AttributeError, TypeError, ValueError):
        items = []
    values = [value for value, _ in items]
    if not items or len(set(values)) < len(values) or not all(0 <= v < 256 for v in values):
        expected = 'labels such as {"0": "background", "1": "liver"}, each value from 0 to 255 once'
        raise InputError(path, expected, str(labels)[:200])
    return tuple(sorted(items))


def _inside(folder: Path, name: Any) -> Path | None:
    """Returns the file that an entry names, if it names one below the folder."""
    if not isinstance(name, str) or "\0" in name or not name.strip():
        return None
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts:
        return None
    return folder / relative


def _problem(path: Path, kind: str, entry: Any) -> str:
    text = f"{path}: expected files below its folder in each entry of {kind!r}, found {entry!r}"
    return " ".join(text.split())[:400]
