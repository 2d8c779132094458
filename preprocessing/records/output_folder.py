"""The output of a conversion: a hidden folder while it runs, then a data set with a manifest.

The hidden folder `.OUTPUT.partial` holds the records, each case's outcome and the settings of the
run. It is renamed to OUTPUT at the end. If a run is killed, the folder stays; the next run deletes
it, or continues in it with `resume`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from apache_beam.io.filesystems import FileSystems

from preprocessing.errors import SettingsError
from preprocessing.files import file_lock
from preprocessing.records import storage
from preprocessing.records.case_conversion import CONVERTED, OUTCOMES, REJECTED, ConversionSettings
from preprocessing.records.splits import SPLITS
from preprocessing.tasks import Task
from preprocessing.volumes.quality_checks import duplicate_reasons

MANIFEST, TASK = "manifest.json", "task.json"
# Files of the hidden folder only.
SETTINGS, LOCK = "settings.json", "lock"
# A killed run may have left the last three in a finished data set.
_OWN = re.compile(
    rf"((train|eval)/[^/]+\.tfrecord|{MANIFEST}|{TASK}|{SETTINGS}|{LOCK}|{OUTCOMES}/[^/]+)$"
)
_LIBRARIES = ("apache-beam", "isal", "nibabel", "numpy", "pydicom", "scipy", "tensorflow")


def run_settings(settings: ConversionSettings, **further: Any) -> dict[str, Any]:
    """Returns the settings and versions (a digest of this package) that determine the output's bytes."""
    versions = {library: metadata.version(library) for library in _LIBRARIES}
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    own = {"seed": settings.seed, "task": settings.task.to_dict(), "allow": list(settings.allow)}
    versions |= {"python": platform.python_version(), "preprocessing": code}
    return {"settings": own | further, "versions": versions}


def check_output(output: str, overwrite: bool) -> None:
    """Raises SettingsError unless a finished folder can replace what is at `output`.

    That may be nothing, an empty folder, or with `overwrite` a data set, but not a place where another
    file system is mounted.
    """
    if storage.is_local(output):
        if os.path.exists(output) and not os.path.isdir(output):
            raise SettingsError("--output", "a new or empty folder", f"a file, {output}")
        if os.path.ismount(output):
            found = f"{output}, where a file system is mounted"
            remedy = f"Name a new folder in it, for example {os.path.join(output, 'records')}."
            raise SettingsError("--output", "a folder that can be renamed", found, remedy)
    names = storage.list_files(output)
    foreign = [name for name in names if not _OWN.match(name)]
    if foreign:
        raise SettingsError("--output", "a new or empty folder", f"{foreign[0]} in {output}")
    if TASK in names and not overwrite:
        found = f"a finished data set in {output}"
        raise SettingsError("--output", "a new folder", found, "Give --overwrite to replace it.")


@contextlib.contextmanager
def partial_folder(
    output: str, run: dict[str, Any], *, resume: bool, overwrite: bool
) -> Iterator[str]:
    """Yields the hidden folder of a run and locks it against other runs.

    After an error the folder is kept if it holds the outcome of a case, and deleted otherwise.
    With `resume`, what an earlier run with the same settings (see `run_settings`) has left is kept.
    Raises SettingsError if another run is writing there, as `check_output` before anything is
    deleted, or if the earlier run had other settings.
    """
    folder = storage.hidden_beside(output, "partial")
    storage.make_folder(folder)
    with _locked(folder):
        storage.put_back_replaced(output)
        try:
            check_output(output, overwrite)
            if resume and SETTINGS in storage.list_files(folder):
                _check_same_run(folder, run)
            else:
                if count := finished_cases(folder):
                    unfinished = f"an unfinished run with {count} finished cases"
                    print(f"removed {unfinished}: {folder}", file=sys.stderr)
                _delete_files(folder, {LOCK})
                storage.write_json(FileSystems.join(folder, SETTINGS), run)
            for name in (*SPLITS, OUTCOMES):
                storage.make_folder(FileSystems.join(folder, name))
            yield folder
        except BaseException:
            if not finished_cases(folder):
                storage.delete_folder(folder)
            raise


def finished_cases(partial: str) -> int:
    """Returns the number of cases with an outcome in a hidden folder."""
    names = storage.list_files(FileSystems.join(partial, OUTCOMES))
    return sum(name.endswith(".json") for name in names)


def reject_duplicates(entries: dict[str, dict[str, Any]]) -> None:
    """Rejects, in place, each converted case with the same voxels as an earlier one.

    The manifest's entries are in the order of the cases, by case id.
    """
    converted = [each for each in entries.values() if each["status"] == CONVERTED]
    reasons = duplicate_reasons((e["case_id"], e["image"], e["fingerprint"]) for e in converted)
    for case_id, reason in reasons.items():
        kept = {name: entries[case_id][name] for name in ("case_id", "source")}
        entries[case_id] = kept | {"status": REJECTED, "reason": reason}


def publish(
    partial: str, output: str, entries: Sequence[dict[str, Any]], run: dict[str, Any], task: Task
) -> dict[str, Any]:
    """Completes the hidden folder and renames it to `output`, replacing what is there.

    Records of no entry are deleted: killed runs and cases that changed their split leave them. If no
    case was converted, only the manifest is written.

    Takes the entry of each case (`case_conversion.convert_case`) and the result of `run_settings`.
    Returns the manifest, which does not depend on when or where the conversion ran.
    """
    splits = {}
    for split in SPLITS:
        patches = [entry["patches"] for entry in entries if entry.get("split") == split]
        splits[split] = {"cases": len(patches), "patches": sum(patches)}
    statuses = [entry["status"] for entry in entries]
    counts = {status: statuses.count(status) for status in (CONVERTED, REJECTED)}
    manifest = {"found": len(entries), **counts, "splits": splits, "cases": list(entries), **run}
    storage.write_json(FileSystems.join(partial, MANIFEST), manifest)
    if counts[CONVERTED]:
        storage.write_json(FileSystems.join(partial, TASK), task.to_dict())
    kept = {MANIFEST, TASK, SETTINGS, LOCK}
    for entry in entries:
        kept.add(f"{OUTCOMES}/{entry['case_id']}.json")
        kept |= {f"{entry['split']}/{shard['name']}" for shard in entry.get("shards", ())}
    if not counts[CONVERTED]:
        for split in SPLITS:
            storage.delete_folder(FileSystems.join(partial, split))
    _delete_files(partial, kept)
    storage.replace_folder(partial, output, last=MANIFEST)
    # These were moved along: the lock, so that no other run could take the folder in the meantime; the
    # others, so that a run which can't be renamed is finished by the next one.
    storage.delete_folder(FileSystems.join(output, OUTCOMES))
    for name in (SETTINGS, *((LOCK,) if storage.is_local(output) else ())):
        storage.delete_file(FileSystems.join(output, name))
    return manifest


def _delete_files(partial: str, kept: Collection[str]) -> None:
    for name in storage.list_files(partial):
        if name not in kept:
            storage.delete_file(FileSystems.join(partial, name))


def _check_same_run(partial: str, run: dict[str, Any]) -> None:
    before, now = _flat(storage.read_json(FileSystems.join(partial, SETTINGS))), _flat(run)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            expected = f"the settings of the run that stopped ({name} {before.get(name)})"
            remedy = "Give the same ones, or leave --resume out to start from the beginning."
            raise SettingsError("--resume", expected, f"{name} {now.get(name)}", remedy)


def _flat(settings: Any, name: str = "") -> dict[str, Any]:
    """Returns nested settings as one dictionary with names such as `settings.task.name`."""
    if not isinstance(settings, dict):
        return {name: settings}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{name}.{key}" if name else key)
    return flat


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Holds a lock that the system releases when the process ends; object stores have none."""
    if not storage.is_local(folder):
        yield
        return
    with file_lock(os.path.join(folder, LOCK)) as mine:
        if not mine:
            expected, found = "a folder that no other run is writing to", f"another run in {folder}"
            raise SettingsError("--output", expected, found, "Wait, or choose another folder.")
        yield
