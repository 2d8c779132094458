"""Digest of the code that a result depends on; a changed digest makes TFX run a component again."""

from __future__ import annotations

import functools
import hashlib
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = ("preprocessing", "ahnet_tf", "serving", "pipeline")


@functools.cache
def code_version(module: str) -> str:
    """Returns a digest of a module and of all modules of this project that it imports.

    The module is read, not imported. Imports inside functions count, and so do Jinja templates
    named after a module. Other packages do not: their versions are locked.
    """
    digest = hashlib.sha256()
    for name, path in sorted(sources(module).items()):
        for file in (path, *sorted(path.parent.glob(f"{path.stem}.*.jinja"))):
            digest.update(name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def sources(module: str) -> dict[str, Path]:
    """Returns the project's files that importing a module runs, by module name."""
    finder = _OwnModules(path=[str(ROOT)])
    finder.import_hook(module)
    files = {name: vars(found)["__file__"] for name, found in finder.modules.items()}
    return {name: Path(file) for name, file in files.items() if file}


class _OwnModules(ModuleFinder):
    """Ignores the packages of others, which share the folder with an installed project."""

    def find_module(self, name: str, path: Any, parent: Any = None) -> Any:
        if path is None and name not in PACKAGES:
            raise ImportError(name)
        return super().find_module(name, path, parent)
