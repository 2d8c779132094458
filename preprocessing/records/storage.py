"""Files and folders at any address that Beam's file systems know: local disk, object stores, HDFS."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems


def write_file(path: str, content: bytes) -> None:
    """Writes a small file; it appears whole or not at all."""
    temporary = temporary_name(path)
    with FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        file.write(content)
    FileSystems.rename([temporary], [path])


def write_json(path: str, content: Any) -> None:
    """Writes indented JSON with sorted keys; the file appears whole or not at all."""
    write_file(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def read_json(path: str) -> Any:
    """Reads a JSON file."""
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        return json.loads(file.read().decode())


def temporary_name(path: str) -> str:
    """Returns a name beside `path` that no other worker writes to, even if it does the same work."""
    return f"{path}.{uuid.uuid4().hex}.unfinished"


def hidden_beside(path: str, what: str) -> str:
    """Returns the address of a hidden folder beside `path`."""
    parent, name = FileSystems.split(path)
    return FileSystems.join(parent, f".{name}.{what}") if parent else f".{name}.{what}"


def list_files(folder: str) -> list[str]:
    """Returns all files below a folder, as paths relative to it; none if there is no such folder."""
    if is_local(folder):
        # Beam would take *, ? and [ in a folder's name for a pattern.
        paths = (path for path in Path(folder).rglob("*") if path.is_file())
        return sorted(path.relative_to(folder).as_posix() for path in paths)
    prefix = FileSystems.join(folder, "")
    found = FileSystems.match([FileSystems.join(folder, "**")])[0].metadata_list
    return sorted(each.path[len(prefix) :] for each in found)


def make_folder(path: str) -> None:
    """Makes a folder with its parents, unless it is there already."""
    if not FileSystems.exists(path):
        FileSystems.mkdirs(path)


def delete_folder(path: str) -> None:
    """Deletes a folder with all it holds, if it is there."""
    if not is_local(path):
        # Object stores know files only.
        files = [FileSystems.join(path, name) for name in list_files(path)]
        if files:
            FileSystems.delete(files)
    elif os.path.exists(path):
        shutil.rmtree(path)


def delete_file(path: str) -> None:
    """Deletes a file."""
    if is_local(path):
        os.remove(path)
    else:
        FileSystems.delete([path])


def replace_folder(source: str, target: str, *, last: str) -> None:
    """Puts `source` in the place of `target`: one step on a local disk.

    An object store can't rename folders: there the file `last` follows after all others, so its
    presence says that the rest is complete.
    """
    if is_local(target):
        old = hidden_beside(target, "replaced")
        delete_folder(old)
        if FileSystems.exists(target):
            FileSystems.rename([target], [old])
        FileSystems.rename([source], [target])
        delete_folder(old)
        return
    delete_folder(target)
    names = sorted(list_files(source), key=lambda name: name == last)
    for name in names:
        FileSystems.rename([FileSystems.join(source, name)], [FileSystems.join(target, name)])


def is_local(path: str) -> bool:
    """Returns whether an address is a path of this machine's own file system."""
    return FileSystems.get_scheme(path) is None
