"""Atomic output: files and folders are written under a temporary name and then renamed."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import errno
import fcntl
import itertools
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
_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}")
# The name in there of a folder that was moved aside.
_ASIDE = "replaced"
# Arguments of Linux' renameat2.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path with the suffixes of `path`; on success it is renamed to `path`.

    It may become a file or a folder. On an error it is removed and `path` stays as it was. A folder
    that a killed process moved aside and did not replace is put back first.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        for left in _temporaries(target.parent, target.name):
            put_back(left / _ASIDE, target)
    suffix = "".join(target.suffixes[-2:])
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    temporary = folder / f"temporary{suffix}"
    try:
        yield temporary
        move_over(temporary, target, aside=folder / _ASIDE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_over(source: Path, target: Path, *, aside: Path) -> None:
    """Renames a file or folder over `target`; a replaced folder is at `aside` or `source` afterwards.

    A folder can't be renamed over one that is not empty. The two are exchanged in one step where kernel
    and file system can do that; elsewhere the old one is moved aside first (see `put_back`).
    """
    folders = source.is_dir() and target.is_dir()
    if folders and _exchanged(source, target):
        return
    try:
        if folders:
            os.rename(target, aside)
        os.replace(source, target)
    except BaseException:
        put_back(aside, target)
        raise


def put_back(aside: Path, target: Path) -> None:
    """Renames a folder that `move_over` moved aside to its place, if nothing has taken that."""
    if aside.is_dir() and not target.exists():
        os.rename(aside, target)


def remove_stale_temporaries(folder: str | os.PathLike) -> None:
    """Removes what killed processes left of `atomic_write`; no process may be writing there.

    A folder that they moved aside and did not replace is put back.
    """
    for path in _temporaries(Path(folder)):
        put_back(path / _ASIDE, Path(folder) / path.name[1:-9])
        shutil.rmtree(path)


def _temporaries(folder: Path, name: str | None = None) -> list[Path]:
    """Returns the folders of `atomic_write` in a folder, all or those of one target."""
    found = ((path, _TEMPORARY.fullmatch(path.name)) for path in folder.glob(".*"))
    return [path for path, match in found if match and name in (None, match[1]) and path.is_dir()]


def _exchanged(first: Path, second: Path) -> bool:
    """Exchanges two paths in one step; returns False, and does nothing, where that can't be done."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    names = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second))
    return renameat2 is not None and renameat2(*names, _RENAME_EXCHANGE) == 0


@contextlib.contextmanager
def file_lock(path: str | os.PathLike) -> Iterator[bool]:
    """Locks a file, which is made if needed; yields whether no other process holds the lock.

    The system releases it when the process ends.
    """
    mine = False
    with open(path, "a") as file:
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its owner may have deleted it, or renamed its folder, since it was opened.
            mine = os.path.samestat(os.stat(path), os.fstat(file.fileno()))
        yield mine


def input_state(
    path: Path, name: str = "", linked: bool = False, above: tuple[Path, ...] = ()
) -> list[tuple[str, int, int, int]]:
    """Returns name below a path, size, time and inode of each file there, links followed.

    It tells whether an input has changed without reading it. Inodes are those behind links, else 0: a
    copied data set counts as the same. The other arguments are for the recursion.
    """
    linked = linked or path.is_symlink()
    try:
        if path.is_dir():
            place = path.resolve()
            # A link to a folder around it would never end.
            children = [] if place in above else sorted(path.iterdir())
            states = (
                input_state(child, f"{name}/{child.name}", linked, (*above, place))
                for child in children
            )
            return list(itertools.chain.from_iterable(states))
        status = path.stat()
    except OSError:  # Missing or not readable, which is for its reader to tell.
        return [(name, -1, -1, 0)]
    return [(name, status.st_size, status.st_mtime_ns, status.st_ino if linked else 0)]


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
