"""Reads dataset.json of the Medical Segmentation Decathlon, of nnU-Net (v1 and v2) and of AMOS."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from preprocessing.datasets.case import Case, safe_id
from preprocessing.datasets.pairing import case_name
from preprocessing.errors import InputError
from preprocessing.volumes.nifti import SUFFIXES, has_nifti_suffix

DATASET_FILE = "dataset.json"
MISSING = f"listed in {DATASET_FILE}, file missing"
# Larger files are not lists of cases.
_MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Listing:
    """Content of a dataset.json. Its files are below its folder, but need not exist."""

    label_names: tuple[tuple[int, str], ...]  # label values and their names, sorted by value
    label_problem: str  # why there are none
    cases: tuple[Case, ...]  # with image and label map
    problems: tuple[str, ...]  # unusable entries, each in one line
    is_complete: bool  # whether other files with label maps do not belong
    test_images: tuple[Path, ...]  # listed without label maps
    channels: tuple[Path, ...]  # further channels of images


def read_listing(folder: Path, source: str) -> Listing | None:
    """Reads the dataset.json in a folder; None if it is one of another kind.

    nnU-Net's may name the labels only. Raises InputError for other files than JSON.
    """
    path = folder / DATASET_FILE
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(path, f"at most {_MAX_BYTES} bytes", path.stat().st_size)
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(path, "JSON", type(error).__name__) from None
    if not isinstance(content, dict) or "labels" not in content:
        return None
    names = _label_names(content["labels"])
    expected = 'labels such as {"0": "background", "1": "liver"}, each value from 0 to 255 once'
    label_problem = str(InputError(path, expected, str(content["labels"])[:200]))
    cases: dict[Path, Case] = {}
    problems, tests, channels = [], [], []
    for kind, name, images, label in _listed(content):
        several = images if isinstance(images, list) and images else [images]
        image, *further = (_located(folder, each) for each in several)
        own = _located(folder, label)
        if image is None or (own is None and kind != "test"):
            expected = f"files below its folder in each entry of {kind!r}"
            found = repr({"image": images, "label": label})
            problems.append(str(InputError(path, expected, found))[:400])
            continue
        channels += [each for each in further if each is not None and os.path.exists(each)]
        if own is None:
            tests.append(image)
            continue
        problem = next((f"{p}: {MISSING}" for p in (image, own) if not os.path.exists(p)), "")
        if image in cases and cases[image].label_path != own:
            problem = str(InputError(image, f"one label map in {DATASET_FILE}", "several"))
        case_id = safe_id(name or case_name(image, own))
        cases[image] = Case(case_id, image, own, source, problem)
    return Listing(
        names,
        "" if names else label_problem,
        tuple(cases.values()),
        tuple(problems),
        bool(cases or problems),
        tuple(image for image in dict.fromkeys(tests) if image not in cases),
        tuple(channels),
    )


def _listed(content: dict[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
    """Yields the list, the name if any, the image or images and the label map of each entry."""
    for kind in ("training", "validation", "test"):
        entries = content.get(kind)
        for entry in entries if isinstance(entries, list) else ():
            named = entry if isinstance(entry, dict) else {"image": entry}
            yield kind, "", named.get("image"), named.get("label")
    by_name = content.get("dataset")
    for name, entry in by_name.items() if isinstance(by_name, dict) else ():
        entry = entry if isinstance(entry, dict) else {}
        yield "dataset", name, entry.get("images"), entry.get("label")


def _label_names(labels: Any) -> tuple[tuple[int, str], ...]:
    """Returns the name of each value; none if the labels are invalid or ambiguous.

    Labels are {"0": "liver"} (Decathlon) or {"liver": 0} (nnU-Net), where [1, 2] is a region: a
    value means the smallest region that contains it.
    """
    regions: list[tuple[frozenset[int], str]] = []
    for name, value in labels.items() if isinstance(labels, dict) else ():
        if isinstance(value, str) and _value(name) is not None:
            name, value = value, name
        values = [_value(each) for each in (value if isinstance(value, list) else [value])]
        regions.append((frozenset(v for v in values if v is not None), name))
        if None in values or not values:
            return ()
    found = []
    for value in sorted({value for values, _ in regions for value in values}):
        own = [(len(values), name) for values, name in regions if value in values]
        smallest = [name for size, name in own if size == min(own)[0]]
        if len(smallest) > 1:
            return ()
        found.append((value, smallest[0]))
    return tuple(found)


def _value(text: Any) -> int | None:
    """Returns a label value from 0 to 255; None for anything else."""
    is_number = isinstance(text, int) and not isinstance(text, bool)
    digits = isinstance(text, str) and text.isascii() and text.isdigit() and len(text) <= 3
    return int(text) if (is_number or digits) and 0 <= int(text) < 256 else None


def _located(folder: Path, name: Any) -> Path | None:
    """Returns the file below a folder that an entry means; None for anything else.

    On disk it may lack `.gz` or nnU-Net's channel, or have them in addition. Of an absolute path of
    another machine the last folder counts. A file that is nowhere is returned as listed.
    """
    if not isinstance(name, str) or "\0" in name or not name.strip():
        return None
    given = Path(name.replace("\\", "/"))
    if ".." in given.parts:
        return None
    places = [given]
    is_absolute = given.is_absolute() or given.parts[:1] == (PureWindowsPath(name).drive,)
    if is_absolute:
        bases = (os.path.abspath(folder), os.path.realpath(folder))
        inside = [given.relative_to(base) for base in bases if given.is_relative_to(base)]
        places = inside or [Path(*given.parts[1:][-2:]), Path(given.name)]
    for place in places:
        for variant in _variants(place.name):
            if os.path.exists(folder / place.parent / variant):
                return folder / place.parent / variant
    return folder / places[0] if not is_absolute or has_nifti_suffix(given) else None


def _variants(name: str) -> Iterator[str]:
    """Yields a file name, first as it is, with and without `.gz` and nnU-Net's channel."""
    yield name
    suffix = next((each for each in SUFFIXES if name.lower().endswith(each)), "")
    stem = name[: len(name) - len(suffix)]
    if suffix:
        for each in (stem, f"{stem}_0000", stem.removesuffix("_0000")):
            yield from (f"{each}{other}" for other in (name[len(stem) :], *SUFFIXES))
