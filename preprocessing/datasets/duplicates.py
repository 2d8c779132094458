"""Cases with the same voxels under two names: in both splits they would score what was learned."""

from __future__ import annotations

from collections.abc import Iterable


def duplicates_of(fingerprints: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns, for each case whose voxels came before, the first case that has them.

    Args:
      fingerprints: (case id, fingerprint) in the order of the cases, see `checks.Checked`.
    """
    first: dict[str, str] = {}
    twins = {}
    for case_id, fingerprint in fingerprints:
        original = first.setdefault(fingerprint, case_id)
        if original != case_id:
            twins[case_id] = original
    return twins


def duplicate_reason(image: str, original: str) -> str:
    """Returns in one line why a case is refused whose voxels are those of `original`."""
    return (
        f"{image}: expected an image of its own, found the voxels of case {original}. "
        "Keep one of the two."
    )
