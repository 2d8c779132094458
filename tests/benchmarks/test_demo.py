"""The report of the demonstrations: goals of each, and those of the committed figures."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.demo import CT, DBT, goals_of
from pipeline.demonstrations import DEMONSTRATIONS

REPORT = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "demo.json"


def test_goals_of_the_committed_figures_are_the_committed_ones():
    report = json.loads(REPORT.read_text())
    figures = [{"task": CT} | each for each in report["figures"]]
    assert goals_of(figures) == report["goals"]


def test_each_demonstration_has_its_own_seconds():
    assert {CT, DBT} == set(DEMONSTRATIONS)
    slow, quick = {"task": DBT, "seconds": 301.0}, {"task": DBT, "seconds": 299.0}
    (goal,) = goals_of([quick, slow])
    assert goal["name"] == "tomosynthesis: seconds from an empty folder to the picture"
    assert (goal["measured"], goal["holds"]) == (301.0, False)
    assert goals_of([quick])[0]["holds"]
    assert goals_of([]) == []
