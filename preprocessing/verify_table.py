"""What verification found, as lines for a terminal of any width."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

_COLUMNS = ("case", "shape", "spacing mm", "axes", "intensity 1 % - 99 %", "label voxels", "found")


def lines(report: dict[str, Any], width: int) -> Iterator[str]:
    """Yields a table of the cases, or a paragraph a case where it is too wide; then the findings.

    Args:
      report: what `verify.verify` returns.
      width: columns of the terminal.
    """
    rows = [_cells(entry) for entry in report["cases"]]
    table = _table([_COLUMNS, *rows])
    if max(map(len, table)) <= width:
        yield from table
    else:
        for row in rows:
            pairs = zip(_COLUMNS[1:], row[1:], strict=True)
            cells = "; ".join(f"{name} {cell}" for name, cell in pairs if cell != "-")
            yield from _folded(f"{row[0]}: {cells or 'sound'}", width, "  ")
    yield ""
    found = [
        (entry["case_id"], finding) for entry in report["cases"] for finding in entry["findings"]
    ]
    found += [("all cases", finding) for finding in report["findings"]]
    for severity in ("error", "warning"):
        for where, finding in found:
            if finding["severity"] == severity:
                line = f"{severity} {where}, {finding['code']}: {finding['text']}"
                yield from _folded(_printable(line), width, "  ")
    counts = (_count(report[f"{severity}s"], severity) for severity in ("error", "warning"))
    yield ", ".join((_count(len(report["cases"]), "case"), *counts))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _cells(entry: dict[str, Any]) -> tuple[str, ...]:
    severities = [finding["severity"] for finding in entry["findings"]]
    counts = [(severities.count(name), name) for name in ("error", "warning")]
    found = ", ".join(_count(*count) for count in counts if count[0]) or "-"
    if "shape" not in entry:
        return (entry["case_id"], *["-"] * (len(_COLUMNS) - 2), found)
    intensity = entry["intensity"]
    voxels = entry.get("label_voxels", {})
    return (
        entry["case_id"],
        "x".join(map(str, entry["shape"])),
        " ".join(f"{mm:.3g}" for mm in entry["spacing_mm"]),
        f"{entry['orientation']}, slices {entry['slice_axis']}",
        f"{intensity['p01']:g} - {intensity['p99']:g}",
        ", ".join(f"{name} {n}" for name, n in list(voxels.items())[1:]) or "-",
        found,
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [padded[0], "  ".join("-" * width for width in widths), *padded[1:]]


def _folded(line: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        line,
        max(20, width),
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _printable(text: str) -> str:
    """Returns text that any terminal takes: file names may hold bytes that are no text."""
    return text.encode("utf-8", "backslashreplace").decode()
