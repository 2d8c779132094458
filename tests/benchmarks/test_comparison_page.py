"""The page of the paper's comparison says what the numbers say, and no more."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.comparison_page import page
from benchmarks.comparison_plan import Plan
from benchmarks.comparison_statistics import interval, summarise, summarise_curves, verdict
from benchmarks.paper_comparison import COMMAND, DOCS
from benchmarks.report import RESULTS

MACHINE = {"cpu": "a processor", "cores": 4}


def invented_results(tumour_dice, gain=0.0):
    """Results of made-up CT runs: {variant: tumour Dice by seed}; 100 steps, evaluated four times."""
    for name, seeds in tumour_dice.items():
        for seed, dice in enumerate(seeds):
            yield {
                "task": "ct",
                "variant": name,
                "seed": seed,
                "parameters": 1234567,
                "steps": 100,
                "curve": [[25, 0.1], [50, 0.2], [75, dice - gain], [100, dice]],
                "scores": {"tumour_dice": dice, "liver_dice": 0.5},
                "wall_seconds": 60.0,
                "cpu_seconds": 40.0,
            }


def written_page(results, plan) -> str:
    text = page(results, plan, MACHINE, "images", "command")
    assert all(len(line.encode()) <= 120 for line in text.split("\n") if line[:1] not in "|!")
    return " ".join(text.split())


def test_the_stored_page_is_that_of_the_stored_results():
    report = json.loads((RESULTS / "paper_comparison.json").read_text(encoding="utf-8"))
    text = page(report["figures"], Plan(), report["machine"], "images", COMMAND)
    assert (DOCS / "comparison.md").read_text(encoding="utf-8") == text


def test_interval_is_students():
    # Mean 2, standard deviation 1, error 1 / sqrt(3); t of 2 degrees of freedom at 97.5 %: 4.30265.
    low, high = interval([1.0, 2.0, 3.0])
    assert low == pytest.approx(2 - 4.30265 / math.sqrt(3), abs=1e-5)
    assert high == pytest.approx(2 + 4.30265 / math.sqrt(3), abs=1e-5)
    assert interval([1.0]) is None


def test_interval_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.5, 0.1, 5), rng.normal(0.45, 0.1, 5)
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert interval((first - second).tolist()) == pytest.approx((expected.low, expected.high))


def test_verdict_is_clear_only_without_zero():
    assert verdict((0.01, 0.2)) == "higher"
    assert verdict((-0.2, -0.01)) == "lower"
    assert verdict((-0.01, 0.2)) == "no clear difference"
    assert verdict((0.0, 0.0)) == "no clear difference"
    assert verdict(None) == "no clear difference"


def test_page_states_what_the_numbers_show():
    plan = Plan(tasks=("ct",), seeds=(0, 1, 2))
    scores = {
        "ahnet_transferred": [0.5, 0.6, 0.7],
        "unet2d": [0.4, 0.51, 0.59],  # 0.1, 0.09, 0.11 less: mean 0.1, standard deviation 0.01.
        "unet3d": [0.6, 0.7, 0.9],  # 0.1, 0.1, 0.2 more: the interval is -0.277 to +0.010.
        "mcgcn": [0.6, 0.69, 0.81],  # 0.1, 0.09, 0.11 more.
        "ahnet_scratch": [0.45, 0.56, 0.64],  # 0.05, 0.04, 0.06 less.
        "ahnet_transferred_no_pvp": [0.6, 0.69, 0.81],
        "ahnet_transferred_cross_entropy": [0.6, 0.7, 0.9],
    }
    results = list(invented_results(scores))
    difference = summarise(results, plan)["ct"]["unet2d"]["tumour_dice"]["difference"]
    assert difference["mean"] == pytest.approx(0.1)
    reach = 4.30265 * 0.01 / math.sqrt(3)
    assert difference["interval"] == pytest.approx((0.1 - reach, 0.1 + reach))
    text = written_page(results, plan)
    goal = (
        "**Goal: the transferred AH-Net is above AH-Net (scratch), MC-GCN, 3D U-Net and 2D U-Net in tumour Dice, with "
        "intervals of the differences that exclude zero.** It holds against AH-Net (scratch) and 2D U-Net. It does not "
        "hold against MC-GCN and 3D U-Net."
    )
    assert goal in text
    assert "| 2D U-Net | +0.100 (+0.075 to +0.125) | yes |" in text
    assert "| 3D U-Net | -0.133 (-0.277 to +0.010) | no: no clear difference |" in text
    assert "| MC-GCN | -0.100 (-0.125 to -0.075) | no: lower |" in text
    lower = "Against AH-Net (transferred, no PVP), the transferred AH-Net scored lower: -0.100"
    assert lower in text
    assert "Against AH-Net (transferred, cross-entropy): no clear difference, -0.133" in text
    higher = list(invented_results(scores | {"ahnet_transferred_no_pvp": [0.4, 0.51, 0.59]}))
    assert lower.replace("lower: -", "higher: +") in written_page(higher, plan)
    assert (
        "the highest mean is that of 3D U-Net (0.733), the lowest that of 2D U-Net (0.500)" in text
    )
    assert "| 2D U-Net | 1,234,567 | 0.500 ± 0.095 | 0.500 ± 0.000 |" in text
    # 21 runs of 60 s, and of 40 CPU seconds.
    assert "21 runs, each on about one core, took 14 minutes of CPU time and 21 minutes" in text
    assert "On 2 cores that do nothing else this CPU time takes 7 minutes." in text


def test_gain_over_the_last_quarter_is_stated():
    plan = Plan(tasks=("ct",), variants=("unet2d", "mcgcn"), seeds=(0, 1))
    results = [
        *invented_results({"unet2d": [0.4, 0.6]}, gain=0.05),
        *invented_results({"mcgcn": [0.4, 0.5]}, gain=0.01),
    ]
    curve = summarise_curves(results, plan)["ct"]["unet2d"]
    assert curve["shares"] == [0.25, 0.5, 0.75, 1.0]
    assert curve["scores"] == pytest.approx([0.1, 0.2, 0.45, 0.5])
    assert curve["gain"] == pytest.approx(0.05)
    text = written_page(results, plan)
    assert "These still gain more: 2D U-Net (CT, +0.050)." in text
    assert "| MC-GCN | 100 | +0.010 |" in text
    flat = [*invented_results({"unet2d": [0.4, 0.6], "mcgcn": [0.4, 0.5]})]
    assert "None gains more." in written_page(flat, plan)


def test_one_seed_gives_no_verdict():
    names = ("unet2d", "mcgcn", "ahnet_transferred")
    plan = Plan(tasks=("ct",), variants=names, seeds=(0,), most_steps=30)
    own = {"unet2d": [0.4], "mcgcn": [0.3], "ahnet_transferred": [0.5]}
    text = written_page(list(invented_results(own)), plan)
    assert "The numbers don't say which network is better." in text
    assert "One seed gives no interval, so nothing is said about it." in text
    assert "| 2D U-Net | 1,234,567 | 0.400 | 0.500 | +0.100 | +0.000 |" in text
    assert "Against 2D U-Net" not in text
    assert "the highest mean" not in text
