"""The output of a conversion: a hidden folder while it runs, then a data set with a manifest.

The hidden folder `.OUTPUT.partial` holds the records, each case's outcome and the settings of the
run. It is renamed to OUTPUT at the end. If a run is killed, the folder stays; the next run deletes
it, or continues in it with `resume`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
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
    hidden_beside,
    is_local,
    list_files,
    make_folder,
    read_json,
    replace_folder,
    write_json,
)
from preprocessing.tasks import Task
from preprocessing.volumes.quality_checks import duplicate_reasons

MANIFEST, TASK = "manifest.json", "task.json"
# Files of the hidden folder only.
SETTINGS, LOCK = "settings.json", "lock"
_RECORDS = re.compile(r"^(train|eval)/[^/]+\.tfrecord$")
_LIBRARIES = ("apache-beam", "isal", "nibabel", "numpy", "pydicom", "scipy", "tensorflow")


def run_settings(settings: ConversionSettings, **further: Any) -> dict[str, Any]:
    """Returns everything but the input that determines a conversion's bytes: settings and versions.

    The version of this package is a digest of its source code.
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


def check_output(output: str, overwrite: bool) -> None:
    """Checks that a new data set may replace what is at `output`.

    Raises:
      SettingsError: `output` holds a finished data set and `overwrite` is not given, or other files.
    """
    names = list_files(output)
    own = (MANIFEST, TASK, LOCK)
    foreign = [name for name in names if name not in own and not _RECORDS.match(name)]
    if foreign:
        raise SettingsError("--output", "a new or empty folder", f"{foreign[0]} in {output}")
    if TASK in names and not overwrite:
        found = f"a finished data set in {output}"
        raise SettingsError("--output", "a new folder", found, "Give --overwrite to replace it.")


@contextlib.contextmanager
def partial_folder(output: str, run: dict[str, Any], *, resume: bool) -> Iterator[str]:
    """Yields the hidden folder of a run and locks it against other runs.

    After an error the folder is kept if it holds the outcome of a case, and deleted otherwise.

    Args:
      output: address of the finished data set.
      run: see `run_settings`.
      resume: keep what an earlier run with the same settings has left.

    Raises:
      SettingsError: another run is writing there, or the earlier run had other settings.
    """
    folder = hidden_beside(output, "partial")
    make_folder(folder)
    with _locked(folder):
        try:
            if resume and SETTINGS in list_files(folder):
                _check_same_run(folder, run)
            else:
                _clear(folder)
                write_json(FileSystems.join(folder, SETTINGS), run)
            for name in (*SPLITS, OUTCOMES):
                make_folder(FileSystems.join(folder, name))
            yield folder
        except BaseException:
            if not finished_cases(folder):
                delete_folder(folder)
            raise


def finished_cases(partial: str) -> int:
    """Returns the number of cases with an outcome in a hidden folder."""
    names = list_files(FileSystems.join(partial, OUTCOMES))
    return sum(name.endswith(".json") for name in names)


def reject_duplicates(entries: dict[str, dict[str, Any]]) -> None:
    """Rejects, in place, each converted case with the same voxels as an earlier one.

    Args:
      entries: the manifest's entries by case id, in the order of the cases.
    """
    reasons = duplicate_reasons(
        (case_id, entry["image"], entry["fingerprint"])
        for case_id, entry in entries.items()
        if entry["status"] == CONVERTED
    )
    for case_id, reason in reasons.items():
        entry = entries[case_id]
        kept = {name: entry[name] for name in ("case_id", "source")}
        entries[case_id] = kept | {"status": REJECTED, "reason": reason}


def make_manifest(entries: Sequence[dict[str, Any]], run: dict[str, Any]) -> dict[str, Any]:
    """Returns the manifest of a conversion; it does not depend on when or where it ran.

    Args:
      entries: one per case, see `preprocessing.records.case_conversion.convert_case`.
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


def publish(partial: str, output: str, manifest: dict[str, Any], task: Task) -> None:
    """Completes the hidden folder and renames it to `output`, replacing what is there.

    Records that the manifest does not list are deleted: killed runs and cases that changed their
    split leave them. If no case was converted, only the manifest is written.
    """
    kept = {MANIFEST, TASK, LOCK}
    for entry in manifest["cases"]:
        kept |= {f"{entry['split']}/{shard['name']}" for shard in entry.get("shards", ())}
    if manifest[CONVERTED]:
        write_json(FileSystems.join(partial, TASK), task.to_dict())
    write_json(FileSystems.join(partial, MANIFEST), manifest)
    for name in (OUTCOMES, *(SPLITS if not manifest[CONVERTED] else ())):
        delete_folder(FileSystems.join(partial, name))
    for name in list_files(partial):
        if name not in kept:
            delete_file(FileSystems.join(partial, name))
    replace_folder(partial, output, last=MANIFEST)
    if is_local(output):
        # It was moved along, so that no other run could lock the folder in the meantime.
        delete_file(FileSystems.join(output, LOCK))


def _check_same_run(partial: str, run: dict[str, Any]) -> None:
    before = _flat(read_json(FileSystems.join(partial, SETTINGS)))
    now = _flat(run)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise SettingsError(
                "--resume",
                f"the settings of the run that stopped ({name} {before.get(name)})",
                f"{name} {now.get(name)}",
                "Give the same ones, or leave --resume out to start from the beginning.",
            )


def _flat(settings: Any, name: str = "") -> dict[str, Any]:
    """Returns nested settings as one dictionary with names such as `settings.task.name`."""
    if not isinstance(settings, dict):
        return {name: settings}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{name}.{key}" if name else key)
    return flat


def _clear(partial: str) -> None:
    count = finished_cases(partial)
    if count:
        print(f"removed an unfinished run with {count} finished cases: {partial}", file=sys.stderr)
    for name in list_files(partial):
        if name != LOCK:
            delete_file(FileSystems.join(partial, name))


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Holds a lock that the system releases when the process ends; object stores have none."""
    if not is_local(folder):
        yield
        return
    path = os.path.join(folder, LOCK)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another run may have finished and renamed the folder since the file was opened.
            mine = os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(file.fileno()))
        except BlockingIOError:
            mine = False
        if not mine:
            raise SettingsError(
                "--output",
                "a folder that no other run is writing to",
                f"another run in {folder}",
                "Wait for it, or choose another folder.",
            )
        yield
