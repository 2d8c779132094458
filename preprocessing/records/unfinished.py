"""A conversion on its way: its hidden folder, one run at a time, and what a later run can keep of it.

The folder `.OUTPUT.partial` holds the records so far, each case's outcome and the settings of the
run. It becomes OUTPUT when all is done. A run that was killed leaves it behind; the next one removes
it, or goes on with it where `resume` is asked for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from apache_beam.io.filesystems import FileSystems

from preprocessing.errors import SettingsError
from preprocessing.records.case_conversion import OUTCOMES
from preprocessing.records.output_folder import LOCK
from preprocessing.records.splits import SPLITS
from preprocessing.records.storage import (
    delete_file,
    delete_folder,
    hidden_beside,
    is_local,
    list_files,
    make_folder,
    read_json,
    write_json,
)

SETTINGS = "settings.json"


@contextlib.contextmanager
def unfinished_folder(output: str, settings: dict[str, Any], *, resume: bool) -> Iterator[str]:
    """Yields the hidden folder that a run writes into; no other run gets it at the same time.

    After an error the folder stays if a case is finished in it, and goes if none is.

    Args:
      output: where the finished data set will be.
      settings: whatever decides the bytes of the records, as JSON types.
      resume: keep what an earlier run with the same settings has left there.

    Raises:
      SettingsError: another run is at work there, or the earlier run had other settings.
    """
    folder = hidden_beside(output, "partial")
    make_folder(folder)
    with _locked(folder):
        try:
            if resume and SETTINGS in list_files(folder):
                _check_settings(folder, settings)
            else:
                _clear(folder)
                write_json(FileSystems.join(folder, SETTINGS), settings)
            for name in (*SPLITS, OUTCOMES):
                make_folder(FileSystems.join(folder, name))
            yield folder
        except BaseException:
            if not finished_cases(folder):
                delete_folder(folder)
            raise


def finished_cases(folder: str) -> int:
    """Returns how many cases have left their outcome in a hidden folder."""
    names = list_files(FileSystems.join(folder, OUTCOMES))
    return sum(name.endswith(".json") for name in names)


def keep_listed(folder: str, entries: Sequence[dict[str, Any]]) -> None:
    """Deletes all records but those that the manifest's entries name: parts of killed or moved cases."""
    listed = {
        f"{entry['split']}/{shard['name']}"
        for entry in entries
        for shard in entry.get("shards", ())
    }
    for name in list_files(folder):
        if name.startswith(tuple(f"{split}/" for split in SPLITS)) and name not in listed:
            delete_file(FileSystems.join(folder, name))


def _check_settings(folder: str, settings: dict[str, Any]) -> None:
    before = _flat(read_json(FileSystems.join(folder, SETTINGS)))
    now = _flat(settings)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise SettingsError(
                "--resume",
                f"the settings of the run that stopped ({name} {before.get(name)})",
                f"{name} {now.get(name)}",
                "Give the same ones, or leave --resume out to start afresh.",
            )


def _flat(settings: Any, name: str = "") -> dict[str, Any]:
    """Returns nested settings as one dictionary with names such as `settings.task.name`."""
    if not isinstance(settings, dict):
        return {name: settings}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{name}.{key}" if name else key)
    return flat


def _clear(folder: str) -> None:
    count = finished_cases(folder)
    if count:
        print(f"removed an unfinished run with {count} finished cases: {folder}", file=sys.stderr)
    for name in list_files(folder):
        if name != LOCK:
            delete_file(FileSystems.join(folder, name))


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Holds a lock that the system gives back however the process ends; object stores have none."""
    if not is_local(folder):
        yield
        return
    path = os.path.join(folder, LOCK)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another run may have finished, and its folder moved, since the file was opened.
            mine = os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(file.fileno()))
        except BlockingIOError:
            mine = False
        if not mine:
            raise SettingsError(
                "--output",
                "a folder that no other run is writing to",
                f"a run at work in {folder}",
                "Wait for it, or choose another folder.",
            )
        yield
