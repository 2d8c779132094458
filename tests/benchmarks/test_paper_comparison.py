"""The paper's comparison: one budget for all, resumed after a kill, a page that says what the numbers say."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.comparison_page import page, summarise
from benchmarks.comparison_plan import PRETRAINING, TASKS, VARIANTS, Plan, steps_of, training_config
from benchmarks.comparison_runs import result_path, run_names
from benchmarks.paper_comparison import compare, write_page
from preprocessing.errors import SettingsError

ROOT = Path(__file__).resolve().parents[2]
TINY = {"tasks": ("ct",), "variants": ("unet2d", "mcgcn"), "seeds": (0,)}
TINY |= {"volumes": 1, "further": 1, "unseen": 1, "volume_patches": 2, "slabs": 2, "steps": 3}
PROGRAM = f"""
from pathlib import Path
import sys
from benchmarks.comparison_plan import Plan
from benchmarks.paper_comparison import compare
compare(Path(sys.argv[1]), Plan(**{TINY}))
"""
MACHINE = {"cpu": "a processor", "cores": 2}


@pytest.mark.slow
def test_a_killed_comparison_resumes_and_writes_its_page(tmp_path):
    plan, output = Plan(**TINY), tmp_path / "runs"
    first, second = (result_path(output, *run) for run in run_names(plan))
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(output)], cwd=ROOT)
    try:
        while not first.is_file() and process.poll() is None:
            time.sleep(0.05)
        # In the middle of the second run.
        while not (output / "runs" / "ct-mcgcn-seed0").is_dir() and process.poll() is None:
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert first.is_file()
    assert not second.is_file()
    finished = first.stat().st_mtime_ns

    results = compare(output, plan)
    assert first.stat().st_mtime_ns == finished
    assert [(r["task"], r["variant"], r["seed"]) for r in results] == run_names(plan)
    assert json.loads(second.read_text()) == results[1]
    for result in results:
        # 2 patches of 12 slices, or 4 of 6, of 64 x 64 pixels a step.
        assert result["voxels"] == 3 * 2 * 12 * 64 * 64
        assert 0 <= result["scores"]["liver_dice"] <= 1
        assert result["cpu_seconds"] > 1
    written = write_page(results, plan, tmp_path / "docs").read_text()
    assert f"| MC-GCN | {results[1]['parameters']:,} |" in written
    assert f"{results[1]['scores']['tumour_dice']:.3f}" in written
    assert (tmp_path / "docs" / "images" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SettingsError, match=r"plan\.json"):
        compare(output, Plan(**TINY | {"steps": 4}))


def test_every_network_sees_the_same_voxels():
    plan = Plan(steps=100, steps_2d=30)
    for name, variant in VARIANTS.items():
        before = steps_of(PRETRAINING, plan) if variant.transferred else 0
        expected = 70 if variant.reduced else 100
        assert before + steps_of(name, plan) == expected
        for task in TASKS.values():
            patches = training_config(name, task, plan, 0).batch_size
            assert patches * (6 if variant.flat else 12) == 24


def test_baselines_differ_from_the_transferred_network_in_what_their_names_say():
    plan, task = Plan(), TASKS["dbt"]
    configs = {name: training_config(name, task, plan, 1) for name in VARIANTS}
    reference = configs["ahnet_transferred"]
    assert reference.loss == "focal"
    assert configs["ahnet_transferred_cross_entropy"].loss == "cross_entropy"
    assert configs["ahnet_transferred_no_pvp"] == reference
    assert configs["ahnet_scratch_reduced"] == reference
    assert configs["ahnet_scratch"].steps == plan.steps


def invented_results(tumour_dice):
    """Results of made-up runs: {variant: tumour Dice a seed}; of the 2D stage too."""
    for name, seeds in tumour_dice.items():
        for seed, dice in enumerate(seeds):
            yield {
                "task": "ct",
                "variant": name,
                "seed": seed,
                "parameters": 1234567,
                "scores": {"tumour_dice": dice, "liver_dice": 0.5},
                "wall_seconds": 60.0,
                "cpu_seconds": 40.0,
            }


def test_page_states_what_the_numbers_show():
    names = ("unet2d", "unet3d", "mcgcn", "ahnet_transferred")
    plan = Plan(tasks=("ct",), variants=names)
    own = [0.5, 0.6, 0.7]
    others = {"unet2d": [0.4, 0.4, 0.4], "unet3d": [0.6, 0.7, 0.9], "mcgcn": [0.4, 0.7, 0.7]}
    results = list(invented_results(others | {"ahnet_transferred": own, PRETRAINING: [0, 0, 0]}))
    summary = summarise(results, plan)["ct"]
    # Differences 0.1, 0.2, 0.3: mean 0.2, standard deviation 0.1.
    difference = summary["unet2d"]["tumour_dice"]["differences"]
    assert difference["mean"] == pytest.approx(0.2)
    assert difference["spread"] == pytest.approx(0.1)
    written = " ".join(page(results, plan, MACHINE, "plot.png", "command").split())
    assert (
        "Against 2D U-Net, the transferred AH-Net scored higher with every seed (+0.200 ± 0.100)"
        in written
    )
    assert (
        "Against 3D U-Net, the transferred AH-Net scored lower with every seed (-0.133 ± 0.058)"
        in written
    )
    assert (
        "Against MC-GCN, the transferred AH-Net scored higher with 1 of 3 seeds and lower with 1"
        in written
    )
    assert (
        "the highest mean is that of 3D U-Net (0.733), the lowest that of 2D U-Net (0.400)"
        in written
    )
    # 15 runs of 60 s, and of 40 CPU seconds, on two cores.
    assert "15 runs took 10 minutes of CPU time" in written
    assert "15 minutes of wall-clock time in total" in written
    assert "divided by the 2 cores, 5 minutes" in written


def test_one_seed_gives_no_verdict():
    names = ("unet2d", "ahnet_transferred")
    plan = Plan(tasks=("ct",), variants=names, seeds=(0,), steps=30, steps_2d=10)
    own = {"unet2d": [0.4], "ahnet_transferred": [0.5], PRETRAINING: [0]}
    written = page(list(invented_results(own)), plan, MACHINE, "plot.png", "command")
    assert "The numbers don't say which network is better." in " ".join(written.split())
    assert "| 2D U-Net | 1,234,567 | 0.400 |" in written
    assert "Against 2D U-Net" not in written
    assert "the highest mean" not in written
