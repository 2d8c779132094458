"""What all tests share: quiet frameworks, few threads, and where real volumes may lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from preprocessing.command import quiet_frameworks

quiet_frameworks()

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real volumes, `AHNET_DATA` or shared/data beside the checkout; skips if absent."""
    folder = Path(os.environ.get("AHNET_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real volumes at {folder}; AHNET_DATA may name their folder")
    return folder
