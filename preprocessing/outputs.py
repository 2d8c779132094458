"""A finished data set of records: its manifest, and how it takes its place."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from typing import Any

import apache_beam
import nibabel
import numpy
import pydicom
import scipy
import tensorflow
from apache_beam.io.filesystems import FileSystems

from preprocessing.conversion import CONVERTED, OUTCOMES, REJECTED, ConversionSettings
from preprocessing.duplicates import duplicate_reason, duplicates_of
from preprocessing.errors import SettingsError
from preprocessing.splits import SPLITS
from preprocessing.storage import (
    delete_folder,
    list_files,
    make_folder,
    replace_folder,
    write_json,
)
from preprocessing.tasks import Task

MANIFEST, TASK = "manifest.json", "task.json"
_RECORDS = re.compile(r"^(train|eval)/[^/]+\.tfrecord$")
_LIBRARIES = (apache_beam, nibabel, numpy, pydicom, scipy, tensorflow)


def make_manifest(
    entries: Sequence[dict[str, Any]],
    settings: ConversionSettings,
    further_settings: dict[str, Any],
) -> dict[str, Any]:
    """Returns the manifest of a conversion; nothing in it depends on when or where it ran."""
    statuses = [entry["status"] for entry in entries]
    splits = {}
    for split in SPLITS:
        patches = [entry["patches"] for entry in entries if entry.get("split") == split]
        splits[split] = {"cases": len(patches), "patches": sum(patches)}
    versions = {library.__name__: library.__version__ for library in _LIBRARIES}
    return {
        "found": len(entries),
        CONVERTED: statuses.count(CONVERTED),
        REJECTED: statuses.count(REJECTED),
        "splits": splits,
        "cases": list(entries),
        "settings": {
            "seed": settings.seed,
            "task": settings.task.to_dict(),
            "allow": list(settings.allow),
            **further_settings,
        },
        "versions": versions | {"python": platform.python_version()},
    }


def reject_duplicates(entries: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Rejects, in place, each converted case whose voxels an earlier one has.

    Args:
      entries: the manifest's entries by case id, in the order of the cases.

    Returns:
      The entries that were replaced: their shards are not part of the data set.
    """
    twins = duplicates_of(
        (case_id, entry["fingerprint"])
        for case_id, entry in entries.items()
        if entry["status"] == CONVERTED
    )
    dropped = [entries[case_id] for case_id in twins]
    for entry in dropped:
        reason = duplicate_reason(entry["image"], twins[entry["case_id"]])
        kept = {name: entry[name] for name in ("case_id", "source")}
        entries[entry["case_id"]] = kept | {"status": REJECTED, "reason": reason}
    return dropped


def check_output(output: str, overwrite: bool) -> None:
    """Checks that a new data set may take the place of what is at `output`.

    Raises:
      SettingsError: a finished data set is there and `overwrite` is not given, or any other file.
    """
    there = list_files(output)
    foreign = [name for name in there if name not in (MANIFEST, TASK) and not _RECORDS.match(name)]
    if foreign:
        raise SettingsError("--output", "a new or empty folder", f"{foreign[0]} in {output}")
    if TASK in there and not overwrite:
        found = f"a finished data set in {output}"
        raise SettingsError("--output", "a new folder", found, "Give --overwrite to replace it.")


def publish(partial: str, output: str, manifest: dict[str, Any], task: Task) -> None:
    """Completes the hidden folder `partial` and puts it in the place of `output`.

    Without a converted case only the manifest stays.
    """
    if manifest[CONVERTED]:
        delete_folder(FileSystems.join(partial, OUTCOMES))
        write_json(FileSystems.join(partial, TASK), task.to_dict())
    else:
        delete_folder(partial)
        make_folder(partial)
    write_json(FileSystems.join(partial, MANIFEST), manifest)
    replace_folder(partial, output, last=MANIFEST)
