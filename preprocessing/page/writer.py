"""Writes a page: one HTML file that needs no other file and no network, case by case."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from preprocessing.files import atomic_write, without_nan
from preprocessing.page.volumes import PageVolume

STATIC = Path(__file__).parent / "static"
SCRIPTS = (
    *("elements.js", "decoding.js", "planes.js", "painting.js", "panels.js", "drawing.js"),
    *("moving.js", "controls.js", "viewer.js", "tables.js", "charts.js", "main.js"),
)
# What all volumes of a page may take together, as bytes of the file.
PAGE_BYTES = 18_500_000
# And one volume where there are few.
CASE_BYTES = 4_000_000


def budget_bytes(volumes: int) -> int:
    """Returns how many bytes one of so many volumes may take before they are written as text."""
    return min(CASE_BYTES, PAGE_BYTES // max(1, volumes)) * 3 // 4


def write_page(
    path: str | Path,
    title: str,
    content: Mapping[str, Any],
    volumes: Iterable[tuple[int, PageVolume | None, str]],
) -> None:
    """Writes a page; the file appears whole or not at all.

    No more than one volume is in memory. No script but the page's own runs in it: its policy
    names that one by its digest, and forbids every connection.

    Args:
      path: of the page.
      title: of the page, as plain text.
      content: see `contents.page_content`.
      volumes: number of the case, its volume or None, and a sentence about it, one by one.
    """
    script = '"use strict";\n{\n' + "\n".join(map(_static, SCRIPTS)) + "}\n"
    style = _static("page.css")
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    head, rest = _static("page.html").split("{{blocks}}")
    between, rest = rest.split("{{content}}")
    before_script, after_script = rest.split("{{script}}")
    for name, value in (("policy", policy), ("style", style), ("title", html.escape(title))):
        head = head.replace("{{" + name + "}}", value)
    cases = [dict(case) for case in content["cases"]]
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(head)
        for index, volume, note in volumes:
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
        file.write(between + _json(dict(content) | {"cases": cases}))
        file.write(before_script + script + after_script)


def _static(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(content: Mapping[str, Any]) -> str:
    """Returns JSON that can stand inside a script element, whatever its texts are."""
    text = json.dumps(without_nan(content), ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
