"""Empty files, where only their names matter."""

from pathlib import Path


def touch(root: Path, *names: str) -> Path:
    """Writes empty files below a folder, which it returns."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root
