"""Writes a page: one HTML file that needs no other file and no network."""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from preprocessing.errors import SettingsError
from preprocessing.files import atomic_write, without_nan
from preprocessing.page.volumes import PageVolume

STATIC = Path(__file__).parent / "static"
SCRIPTS = (
    *("elements.js", "decoding.js", "planes.js", "painting.js", "panels.js", "drawing.js"),
    *("moving.js", "controls.js", "viewer.js", "tables.js", "charts.js", "main.js"),
)
# Default number of volumes on a page.
VOLUMES = 20
# Size of all volumes of a page together, in bytes of the file.
PAGE_BYTES = 18_500_000
# Size of one volume if there are few.
CASE_BYTES = 4_000_000


def add_page_options(parser: argparse.ArgumentParser, which: str) -> None:
    """Adds `--report` and `--report-cases`; `which` says which cases are shown."""
    page = "write one HTML page that needs no other file and no network"
    parser.add_argument("--report", metavar="PAGE.html", help=page)
    number = (
        f"number of {which} whose volumes are on the page; its tables hold all (default: {VOLUMES})"
    )
    parser.add_argument("--report-cases", type=int, default=VOLUMES, metavar="N", help=number)


def check_page_options(arguments: argparse.Namespace) -> None:
    """Raises SettingsError if the page is a folder or the number below 1; call before any work."""
    if arguments.report_cases < 1:
        raise SettingsError("--report-cases", "a number of at least 1", arguments.report_cases)
    if arguments.report is not None and Path(arguments.report).is_dir():
        raise SettingsError("--report", "a file, for example page.html", arguments.report)


def budget_bytes(volumes: int) -> int:
    """Returns the largest size of each of several volumes, in bytes before base64 encoding."""
    return min(CASE_BYTES, PAGE_BYTES // max(1, volumes)) * 3 // 4


def write_page(
    path: str | Path,
    title: str,
    content: Mapping[str, Any],
    shown: Sequence[int],
    volume_of: Callable[[int, int], tuple[PageVolume | None, str]],
) -> None:
    """Writes a page atomically, with one volume in memory at a time.

    The content security policy allows only the page's own script, by its digest, and no connections.

    Takes a plain title, the content from `contents.page_content` and the indices of the cases whose
    volumes are shown. `volume_of` takes such an index and a budget in bytes, and returns the
    volume, or None if there is none, and a note about it.
    """
    script = '"use strict";\n{\n' + "\n".join(map(_static, SCRIPTS)) + "}\n"
    style = _static("page.css")
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    page = _static("page.html")
    texts = {"policy": policy, "style": style, "title": html.escape(title), "script": script}
    for name, text in texts.items():
        page = page.replace("{{" + name + "}}", text)
    head, tail = page.split("{{blocks}}")
    cases = [dict(case) for case in content["cases"]]
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(head)
        for index in tqdm(shown, "report", unit="case", leave=False):
            volume, note = volume_of(index, budget_bytes(len(shown)))
            cases[index]["note"] = note
            if volume is None:
                continue
            cases[index]["note"] = f"{volume.note} {note}".strip()
            cases[index]["volume"] = volume.facts
            for part, block in volume.blocks.items():
                text = base64.b64encode(block).decode()
                file.write(
                    f'<script type="text/plain" id="volume-{index}-{part}">{text}</script>\n'
                )
        file.write(tail.replace("{{content}}", _json(dict(content) | {"cases": cases})))


def _static(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(content: Mapping[str, Any]) -> str:
    """Returns JSON that is safe inside a script element, whatever its texts are."""
    text = json.dumps(without_nan(content), ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
