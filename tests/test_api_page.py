"""The page of the Python interface is true: its blocks run in order and write what it says."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
# A comment before a block says why it is not run.
BLOCKS = re.findall(
    r"^(?:<!-- not run: (.+?) -->\n)?```python\n(.*?)^```$",
    PAGE.read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
)
WRITTEN = (
    *("records/manifest.json", "segmentation-0.nii.gz", "liver.nii.gz", "overlay.png"),
    *(f"{folder}/model.json" for folder in ("network", "two_stages", "run/mcgcn", "run/ahnet")),
    *(f"predictions/segmentation-{number}.nii.gz" for number in (100, 101)),
)
# What Keras 3 says of every dataset, and at the end of one whose length it does not know.
OF_KERAS_3 = (
    "UserWarning: `shuffle=True` was passed, but will be ignored",
    "UserWarning: Your input ran out of data",
)


def test_the_first_recipe_is_short():
    reason, recipe = BLOCKS[0]
    assert not reason
    assert len(recipe.splitlines()) <= 32


def test_blocks_that_are_not_run_compile():
    assert len(BLOCKS) == PAGE.read_text(encoding="utf-8").count("```python")
    assert sum(not reason for reason, _ in BLOCKS) >= 5
    for reason, code in BLOCKS:
        if reason:
            compile(code, reason, "exec")


def test_the_page_is_short():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 140
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|")]


@pytest.mark.slow
def test_blocks_run_in_order(tmp_path):
    code = "\n".join(code for reason, code in BLOCKS if not reason)
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert [name for name in WRITTEN if not (tmp_path / name).is_file()] == []
    # Neither Keras nor a dependency has reason to warn.
    warnings = [line for line in done.stderr.splitlines() if "Warning" in line]
    if importlib.metadata.version("keras").startswith("3."):
        warnings = [line for line in warnings if not any(text in line for text in OF_KERAS_3)]
    assert warnings == []
    assert "InputError - cases: expected one volume, found 8 cases" in done.stdout
