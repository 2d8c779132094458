"""Writes the result of a benchmark: figures, machine, versions, and whether its goals hold."""

from __future__ import annotations

import json
import operator
import os
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from preprocessing.files import write_json

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Returns the processor, its number of cores, the memory in GiB and the system."""
    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "system": platform.platform(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of Python and of the packages."""
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in packages
    }


COMPARISONS = {">=": operator.ge, "<=": operator.le, "==": operator.eq}


def goal(name: str, sign: str, limit: float, measured: float) -> dict[str, Any]:
    """Returns one goal, `measured` ">=", "<=" or "==" `limit`, and whether it holds."""
    holds = bool(COMPARISONS[sign](measured, limit))
    return {"name": name, "goal": f"{sign} {limit:.10g}", "measured": measured, "holds": holds}


def write_report(
    name: str,
    figures: Any,
    goals: Iterable[Mapping[str, Any]],
    packages: Mapping[str, str],
    settings: Mapping[str, Any],
) -> Path:
    """Writes benchmarks/results/NAME.json and prints the goals; returns the file."""
    goals = list(goals)
    path = RESULTS / f"{name}.json"
    write_json(
        path,
        {
            "figures": figures,
            "goals": goals,
            "machine": machine(),
            "versions": dict(packages),
            "settings": dict(settings),
        },
    )
    print()
    print_table(
        ("goal", "limit", "measured", "holds"),
        [
            (g["name"], g["goal"], f"{g['measured']:.8g}", "yes" if g["holds"] else "NO")
            for g in goals
        ],
    )
    print(f"\nwritten: {path}")
    return path


def read_report(name: str) -> dict[str, Any]:
    """Returns the content of benchmarks/results/NAME.json, to which a benchmark adds figures.

    There are no figures and goals without the file, or if it has those of another processor: one
    report is of one machine.
    """
    path = RESULTS / f"{name}.json"
    if path.is_file():
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["machine"]["cpu"] == machine()["cpu"]:
            return report
    return {"figures": [], "goals": []}


def print_table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Prints rows in aligned columns."""
    table = [tuple(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
