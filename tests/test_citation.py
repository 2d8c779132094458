"""CITATION.cff parses, has the version and licence of setup.py, and names the network's paper."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
SETUP = (ROOT / "setup.py").read_text(encoding="utf-8")


def test_has_the_keys_that_the_format_demands():
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["type"] == "software"
    assert all(CITATION[key] for key in ("message", "title", "authors"))


def test_version_and_licence_are_those_of_the_package():
    assert CITATION["version"] == re.search(r'^    version="(.+)",$', SETUP, re.MULTILINE)[1]
    assert CITATION["license"] == re.search(r'^    license="(.+)",$', SETUP, re.MULTILINE)[1]


def test_names_the_paper_of_the_network():
    (paper,) = CITATION["references"]
    assert paper["authors"][0] == {"family-names": "Liu", "given-names": "Siqi"}
    assert paper["year"] == 2018
    assert [entry["value"] for entry in paper["identifiers"]] == [
        "https://arxiv.org/abs/1711.08580"
    ]
