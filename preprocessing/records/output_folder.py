"""A finished data set of records: its manifest, and how it takes its place."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from apache_beam.io.filesystems import FileSystems

from preprocessing.errors import SettingsError
from preprocessing.records.case_conversion import CONVERTED, OUTCOMES, REJECTED, ConversionSettings
from preprocessing.records.splits import SPLITS
from preprocessing.records.storage import (
    delete_file,
    delete_folder,
    is_local,
    list_files,
    replace_folder,
    write_json,
)
from preprocessing.tasks import Task
from preprocessing.volumes.quality_checks import duplicate_reason, find_duplicates

MANIFEST, TASK = "manifest.json", "task.json"
_RECORDS = re.compile(r"^(train|eval)/[^/]+\.tfrecord$")
# In the hidden folder while a run is at work there.
LOCK = "lock"
_LIBRARIES = ("apache-beam", "isal", "nibabel", "numpy", "pydicom", "scipy", "tensorflow")


def run_settings(settings: ConversionSettings, **further: Any) -> dict[str, Any]:
    """Returns whatever decides the bytes of a conversion, next to its input: settings and versions.

    The version of this package is a digest of its source.
    """
    versions = {library: metadata.version(library) for library in _LIBRARIES}
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    return {
        "settings": {
            "seed": settings.seed,
            "task": settings.task.to_dict(),
            "allow": list(settings.allow),
            **further,
        },
        "versions": versions | {"python": platform.python_version(), "preprocessing": code},
    }


def make_manifest(entries: Sequence[dict[str, Any]], run: dict[str, Any]) -> dict[str, Any]:
    """Returns the manifest of a conversion; nothing in it depends on when or where it ran.

    Args:
      entries: one a case, see `preprocessing.records.case_conversion.convert_case`.
      run: see `run_settings`.
    """
    statuses = [entry["status"] for entry in entries]
    splits = {}
    for split in SPLITS:
        patches = [entry["patches"] for entry in entries if entry.get("split") == split]
        splits[split] = {"cases": len(patches), "patches": sum(patches)}
    return {
        "found": len(entries),
        CONVERTED: statuses.count(CONVERTED),
        REJECTED: statuses.count(REJECTED),
        "splits": splits,
        "cases": list(entries),
        **run,
    }


def reject_duplicates(entries: dict[str, dict[str, Any]]) -> None:
    """Rejects, in place, each converted case whose voxels an earlier one has.

    Args:
      entries: the manifest's entries by case id, in the order of the cases.
    """
    twins = find_duplicates(
        (case_id, entry["fingerprint"])
        for case_id, entry in entries.items()
        if entry["status"] == CONVERTED
    )
    dropped = [entries[case_id] for case_id in twins]
    for entry in dropped:
        reason = duplicate_reason(entry["image"], twins[entry["case_id"]])
        kept = {name: entry[name] for name in ("case_id", "source")}
        entries[entry["case_id"]] = kept | {"status": REJECTED, "reason": reason}


def check_output(output: str, overwrite: bool) -> None:
    """Checks that a new data set may take the place of what is at `output`.

    Raises:
      SettingsError: a finished data set is there and `overwrite` is not given, or any other file.
    """
    there = list_files(output)
    own = (MANIFEST, TASK, LOCK)
    foreign = [name for name in there if name not in own and not _RECORDS.match(name)]
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
        write_json(FileSystems.join(partial, TASK), task.to_dict())
    write_json(FileSystems.join(partial, MANIFEST), manifest)
    for name in (OUTCOMES, *(SPLITS if not manifest[CONVERTED] else ())):
        delete_folder(FileSystems.join(partial, name))
    for name in list_files(partial):
        if name not in (MANIFEST, TASK, LOCK) and not _RECORDS.match(name):
            delete_file(FileSystems.join(partial, name))
    replace_folder(partial, output, last=MANIFEST)
    if is_local(output):
        # Moved along, so that no other run could take hold of the folder before.
        delete_file(FileSystems.join(output, LOCK))
