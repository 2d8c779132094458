"""Reads the content of a page, and the colours that it draws."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

PICTURE = "#stage .plane.main canvas.picture"


def content_of(page: Path) -> dict[str, Any]:
    """Returns the content of a page."""
    text = page.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="page-content">(.*?)</script>', text, re.DOTALL)[1])


def title_of(page: Path) -> str:
    """Returns a page's title."""
    return html.unescape(re.search(r"<title>(.*?)</title>", page.read_text(encoding="utf-8"))[1])


def voxel_colour(
    browser, volume: dict[str, Any], x: float, y: float, selector=PICTURE
) -> list[int]:
    """Returns red, green and blue at a position of an axial plane, in voxels of the page.

    The page's grid is RAS: x grows to the left of the picture and y to its top.
    """
    _, height, width = volume["shape"]
    across_mm, down_mm = volume["spacing_mm"][:2]
    column, row = width - 1 - x + 0.5, height - 1 - y + 0.5
    return browser.run(
        f"(() => {{ const canvas = document.querySelector({json.dumps(selector)});"
        f"const [wide, high] = [{width * across_mm}, {height * down_mm}];"
        "const scale = Math.min(canvas.width / wide, canvas.height / high);"
        f"const x = (canvas.width - wide * scale) / 2 + {column * across_mm} * scale;"
        f"const y = (canvas.height - high * scale) / 2 + {row * down_mm} * scale;"
        "const data = canvas.getContext('2d').getImageData(Math.floor(x), Math.floor(y), 1, 1).data;"
        "return Array.from(data.slice(0, 3)); })()"
    )


def first_column(browser, table: str) -> list[str]:
    """Returns the texts of a table's first column from top to bottom."""
    return browser.run(
        f"Array.from(document.querySelectorAll('#{table} ~ .scroll tbody tr'))"
        ".map((row) => row.children[0].textContent)"
    )
