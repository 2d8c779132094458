"""The README is true: commands exist with the options given there and in the example; links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WITH_COMMANDS = (README, (ROOT / "docs" / "real_ct.md").read_text(encoding="utf-8"))
COMMANDS = re.findall(r"^    python -m (\S+)(.*)$", "\n".join(WITH_COMMANDS), re.MULTILINE)


@cache
def help_of(module: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_readme_gives_the_whole_road():
    modules = {module for module, _ in COMMANDS}
    assert {
        "preprocessing.convert",
        "ahnet_tf.train",
        "pipeline.local_runner",
        "serving.server",
        "ahnet_tf.predict",
        "ahnet_tf.evaluate",
    } <= modules


@pytest.mark.parametrize(("module", "rest"), COMMANDS, ids=lambda text: text[:40])
def test_options_of_commands_exist(module, rest):
    for option in re.findall(r"(?<!\S)--[a-z-]+", rest.split("#")[0]):
        assert re.search(rf"(?<!\S){option}\b", help_of(module)), f"{module} has no {option}"


@pytest.mark.parametrize("target", re.findall(r"^    make (\S+)", README, re.MULTILINE))
def test_targets_of_make_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
