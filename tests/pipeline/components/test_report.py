"""The model card states data, settings, scores and limits from the facts of a run."""

from __future__ import annotations

import math

import pytest

from ahnet_tf.presets import run_config
from pipeline.components.report import limits, model_card
from preprocessing.tasks import PRESETS


def scores(names, cases, **others):
    by_class = {f"{kind}_{name}": 0.81 for name in names for kind in ("dice", "dice_global")}
    return {
        "cases": cases,
        **by_class,
        **{f"cases_without_{name}": 1.0 for name in names},
        **others,
    }


def split_facts(task, cases):
    return {
        "cases": cases,
        "patches": 4 * cases,
        "sources": {"b": 3, "a": 1},
        "spacing_classes": {"thick": 4},
        "spacing_mm": {axis: [0.75, 5.0] for axis in "xyz"},
        "intensities": {"intensity_p50": {"mean": 40.2, "low": -100.2, "high": 300.6}},
        "mean_voxels_a_case": dict.fromkeys(task.class_names, 12.7),
    }


@pytest.fixture
def facts():
    """Returns the facts of a run by the name of its task."""

    def make(name, **overall):
        task = PRESETS[name]
        names = task.class_names[1:]
        return {
            "name": "ahnet",
            "task": task.to_dict(),
            "config": run_config(task).to_dict(),
            "data": {"eval": split_facts(task, 2), "train": split_facts(task, 5)},
            "conversion": None,
            "shown": ["a"],
            "scores": {
                "spacing_class=thick": scores(names, 2.0),
                "case_id=a": scores(names, 1.0),
                "overall": scores(names, 2.0, **overall),
            },
            "thresholds": {f"dice_{names[0]}": 0.8},
            "blessed": True,
            "refusals": [],
            "pushed": "/run/serving_model/ahnet/1",
            "serving": "a server answered",
            "start": "the encoder of the 2D network",
            "code_version": "0123",
        }

    return make


def test_a_card_of_segmentation(facts):
    conversion = {"converted": 7, "found": 8, "rejected": 1, "reasons": ["c: 2 < 3 slices & torn"]}
    lines = model_card(facts("ct_liver") | {"conversion": conversion}).splitlines()
    for line in (
        "# ahnet: ahnet for ct_liver",
        "- Outcome: blessed; pushed to `/run/serving_model/ahnet/1`",
        "| | train | eval |",
        "| cases | 5 | 2 |",
        "| sources | a, b | a, b |",
        "| spacing z, mm | 0.75 to 5 | 0.75 to 5 |",
        "| intensity p50 | -100 to 301 | -100 to 301 |",
        "| voxels of tumour per case, mean | 13 | 13 |",
        "Converted 7 of 8 cases found; 1 rejected.",
        "- c: 2 < 3 slices & torn",
        "| network | mcgcn | ahnet |",
        "| overall | 2 | 0.8100 | 0.8100 | 0.8100 | 0.8100 |",
        "Whole volumes of 1 of these cases, the worst ones and others drawn at random, are in "
        "scores/report.html.",
        "Blessed from: dice liver 0.8 (mean Dice per case).",
    ):
        assert line in lines
    assert not any("FROC" in line or "case_id=" in line for line in lines)


def test_a_card_of_a_refused_detector_after_a_warm_start(facts):
    content = facts("dbt_lesion", lesion_recall=0.5, false_positives_per_volume=math.nan)
    content |= {"shown": [], "blessed": False, "refusals": ["too low", "too slow"], "pushed": None}
    content["config"].pop("2d")
    lines = model_card(content).splitlines()
    assert "- Outcome: refused: too low; too slow; not pushed" in lines
    assert not any("Whole volumes" in line for line in lines)
    assert "| network | ahnet |" in lines
    assert "- lesion recall: 0.5000" in lines
    assert "- false positives per volume: undefined" in lines


def test_limits(facts):
    assert limits(facts("dbt_lesion")) == [
        "All scores come from 2 evaluation cases of the data described above.",
        "1 of them have no lesion: their Dice is 1 if none is found either, else 0.",
        "The worst Dice of lesion is 0.810 (case a).",
        "spacing_class=thick has 2 cases, too few to judge the model there.",
        "No training case has thin slices.",
        "No training case has medium slices.",
    ]
