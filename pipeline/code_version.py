"""Which code a result depends on, as one short digest: cached results end where it changes."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path


def code_version(module: str) -> str:
    """Returns a digest of the source of a module and of all of its package's floors it imports.

    Imports count wherever in a file they stand. Other packages don't: their versions are locked.

    Args:
      module: for example "pipeline.components.trainer"; it is read, not imported.
    """
    digest = hashlib.sha256()
    for name, path in sorted(sources(module).items()):
        digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def sources(module: str) -> dict[str, Path]:
    """Returns the project's files that a module runs, its own among them, by module name."""
    root = Path(importlib.util.find_spec(__package__).origin).parents[1]
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        base = root.joinpath(*name.split("."))
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if name not in found and path.is_file():
                found[name] = path
                waiting.extend(_imports(path))
                # Importing a module runs its packages too.
                waiting.append(name.rpartition(".")[0] or name)
    return found


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
