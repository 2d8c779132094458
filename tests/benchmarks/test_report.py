"""Reports of benchmarks: figures that are kept, and those of another machine."""

from __future__ import annotations

import json

import pytest

from benchmarks import report


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    return report.write_report("speed", [1.5], [report.goal("fast", ">=", 1, 1.5)], {}, {})


def test_figures_of_this_machine_are_kept(written):
    assert report.read_report("speed")["figures"] == [1.5]
    assert report.read_report("speed")["goals"][0]["holds"]


def test_figures_of_another_processor_are_not_mixed_in(written):
    content = json.loads(written.read_text())
    content["machine"]["cpu"] = "another one"
    written.write_text(json.dumps(content))
    assert report.read_report("speed") == {"figures": [], "goals": []}


def test_without_a_report_there_are_no_figures(written):
    assert report.read_report("memory") == {"figures": [], "goals": []}
