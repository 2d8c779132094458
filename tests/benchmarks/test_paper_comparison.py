"""The paper's comparison: a sound plan, and runs that are resumed after a kill."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ahnet_tf.presets import check_settings
from benchmarks.comparison_plan import (
    GOAL,
    QUICK,
    REFERENCE,
    SOURCE,
    VARIANTS,
    Plan,
    Run,
    everything,
    model_config,
    read_plan,
    records_task,
    rows,
    runs_of,
    source_of,
    steps_of,
    training_config,
    voxels_a_step,
)
from benchmarks.comparison_records import FIRST, case_numbers
from benchmarks.comparison_runs import curve_of, result_path
from benchmarks.paper_comparison import compare, with_other_tasks, write_page
from preprocessing.errors import SettingsError
from preprocessing.files import write_json

ROOT = Path(__file__).resolve().parents[2]
TINY = {"tasks": ("dbt",), "variants": ("mcgcn", "ahnet_transferred"), "seeds": (0,)}
TINY |= {"volumes": 1, "further": 1, "validation": 1, "unseen": 1}
TINY |= {"volume_patches": 2, "slabs": 2, "most_steps": 2}
PROGRAM = f"""
from dataclasses import replace
from pathlib import Path
import sys
from benchmarks.comparison_plan import Plan
from benchmarks.paper_comparison import compare
compare(Path(sys.argv[1]), Plan(**{TINY}), 2)
"""


def commands_with(text: str) -> list[str]:
    """Commands of all processes that name a text."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [command for command in found if text in command]


@pytest.mark.slow
def test_a_killed_comparison_resumes_and_writes_its_page(tmp_path):
    plan, output = Plan(**TINY), tmp_path / "runs"
    first, second = (result_path(output, run) for run in runs_of(plan))
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(output)], cwd=ROOT)
    try:
        # In the middle of the second run, which starts from the network of the first.
        while not (output / "runs" / "dbt-ahnet_transferred-seed0").is_dir():
            assert process.poll() is None
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert first.is_file()
    # Its runs notice that it is gone.
    until = time.monotonic() + 300
    while commands_with(str(output)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not commands_with(str(output))
    assert not second.is_file()
    finished = first.stat().st_mtime_ns

    results = compare(output, plan, 1)
    assert first.stat().st_mtime_ns == finished
    assert [Run(r["task"], r["variant"], r["seed"]) for r in results] == runs_of(plan)
    assert json.loads(second.read_text()) == results[1]
    for result in results:
        assert [step for step, _ in result["curve"]] == [1, 2]
        assert all(0 <= score <= 1 for _, score in result["curve"])
        assert 0 <= result["scores"]["challenge_sensitivity"] <= 1
        assert result["cpu_seconds"] > 1
    transfer = output / "runs" / "dbt-ahnet_transferred-seed0" / "transfer.txt"
    assert "copied" in transfer.read_text()
    written = write_page(results, plan, tmp_path / "docs").read_text()
    assert f"| MC-GCN | {results[0]['parameters']:,} |" in written
    assert f"{results[1]['scores']['low_rate_sensitivity']:.3f}" in written
    for name in ("comparison", "comparison_curves"):
        png = tmp_path / "docs" / "images" / f"{name}.png"
        assert png.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SettingsError, match=r"plan\.json"):
        compare(output, Plan(**TINY | {"most_steps": 4}), 1)


@pytest.mark.parametrize("plan", [Plan(), QUICK])
def test_each_transferred_network_has_its_source_among_the_runs(plan):
    runs = runs_of(plan)
    for run in runs:
        source = source_of(run)
        if VARIANTS[run.variant].transferred:
            assert source == Run(run.task, SOURCE, run.seed)
            assert runs.index(source) < runs.index(run)
            # The encoders fit.
            own, its = (model_config(each.variant, run.task) for each in (run, source))
            assert (own.width, own.blocks, own.norm) == (its.width, its.blocks, its.norm)
        else:
            assert source is None
    assert len(set(runs)) == len(runs)
    for task in plan.tasks:
        assert {REFERENCE, *GOAL} <= set(rows(plan, task))


def test_rows_are_those_of_the_task():
    both = [name for name in VARIANTS if name != "ahnet_transferred_l2"]
    assert rows(Plan(), "ct") == both
    assert rows(Plan(), "dbt") == [*both, "ahnet_transferred_l2"]
    assert len(runs_of(Plan())) == 5 * (7 + 8)


def test_groups_of_cases_are_disjoint():
    numbers = [number for group in FIRST for number in case_numbers(group, Plan())]
    assert len(set(numbers)) == len(numbers) == 12 + 48 + 4 + 20


@pytest.mark.parametrize("plan", [Plan(), QUICK])
def test_settings_fit_their_tasks_and_batches_have_the_same_size(plan):
    for run in runs_of(plan):
        task = records_task(run.task, plan, VARIANTS[run.variant].flat)
        config = training_config(run.variant, run.task, plan, run.seed)
        check_settings(model_config(run.variant, run.task), config, task)
        voxels = config.batch_size * math.prod(task.patch_shape_zyx)
        assert voxels == voxels_a_step(run.task, plan)
        assert config.steps == steps_of(run.variant, run.task, plan)
        assert 8 <= config.steps // config.evaluate_every <= 16
        assert config.seed == run.seed


def test_steps_are_the_variants_own_unless_the_plan_limits_them():
    assert steps_of("unet3d", "dbt", Plan()) == VARIANTS["unet3d"].steps["dbt"]
    assert steps_of("unet3d", "dbt", Plan(most_steps=7)) == 7
    assert steps_of("unet3d", "dbt", Plan(most_steps=10**9)) == VARIANTS["unet3d"].steps["dbt"]


def test_variants_differ_from_the_transferred_network_in_what_their_names_say():
    def recipe(name):
        config = training_config(name, "dbt", Plan(most_steps=100), 1)
        return config, model_config(name, "dbt")

    training, model = recipe(REFERENCE)
    assert (training.loss, model.pvp_levels) == ("focal", 4)
    no_pvp = recipe("ahnet_transferred_no_pvp")
    assert (no_pvp[0], no_pvp[1].pvp_levels) == (training, 0)
    assert recipe("ahnet_scratch") == (training, model)
    for name, loss in (
        ("ahnet_transferred_cross_entropy", "cross_entropy"),
        ("ahnet_transferred_l2", "heat_map_l2"),
    ):
        config, network = recipe(name)
        assert (config.loss, network) == (loss, model)


def test_a_stored_plan_is_read_back(tmp_path):
    for plan in (Plan(), QUICK):
        write_json(tmp_path / "plan.json", everything(plan))
        assert read_plan(tmp_path / "plan.json") == plan


def test_curve_holds_the_evaluated_steps():
    history = [
        {"step": 5.0, "dice_tumour": math.nan},
        {"step": 10.0, "dice_tumour": 0.25},
        {"step": 20.0, "dice_tumour": 0.5},
    ]
    assert curve_of(history, "dice_tumour") == [[10, 0.25], [20, 0.5]]


def test_one_task_keeps_the_others_results_of_the_same_plan(tmp_path):
    report, ct, dbt = (
        tmp_path / "report.json",
        replace(Plan(), tasks=("ct",)),
        replace(Plan(), tasks=("dbt",)),
    )
    of_ct, of_dbt = [{"task": "ct", "seed": 0}], [{"task": "dbt", "seed": 0}]
    assert with_other_tasks(of_dbt, dbt, report) == (of_dbt, dbt)
    write_json(report, {"figures": of_ct, "settings": everything(ct)})
    assert with_other_tasks(of_dbt, dbt, report) == ([*of_ct, *of_dbt], Plan())
    # The plan's own tasks are measured again.
    assert with_other_tasks([], ct, report) == ([], ct)
    changed = json.loads(report.read_text())
    changed["settings"]["phantoms"]["ct"]["noise_hu"] += 1
    write_json(report, changed)
    assert with_other_tasks(of_dbt, dbt, report) == (of_dbt, dbt)
    changed = json.loads(json.dumps({"figures": of_ct, "settings": everything(ct)}))
    changed["settings"]["norms"]["ct"] = "group"
    write_json(report, changed)
    assert with_other_tasks(of_dbt, dbt, report) == (of_dbt, dbt)
