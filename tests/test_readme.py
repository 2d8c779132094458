"""The README is true: commands parse, links lead somewhere, figures are the benchmarks'."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import re
import shlex
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

from ahnet_tf.train import settings_from
from preprocessing import cli
from preprocessing.tasks import Task, load_task, task_from_dict

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands_in(text: str) -> list[tuple[str, str]]:
    """Returns module and options of each indented `python -m` line, continued lines joined."""
    return re.findall(r"^ {4,}python -m (\S+)(.*)$", text.replace("\\\n", " "), re.MULTILINE)


COMMANDS = commands_in(README + (ROOT / "docs" / "real_ct.md").read_text(encoding="utf-8"))
DOCS = sorted((ROOT / "docs").glob("*.md"))
ALL_COMMANDS = [
    command
    for page in (ROOT / "README.md", *DOCS)
    for command in commands_in(page.read_text(encoding="utf-8"))
]


def command_of(module: str) -> ModuleType:
    """Returns the module that `python -m MODULE` runs."""
    is_package = importlib.util.find_spec(module).submodule_search_locations is not None
    return importlib.import_module(f"{module}.__main__" if is_package else module)


@cache
def help_of(module: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit) as ended:
        command_of(module).main(["--help"])
    assert ended.value.code == 0
    return printed.getvalue()


@cache
def results_of(benchmark: str) -> dict[str, Any]:
    path = ROOT / "benchmarks" / "results" / f"{benchmark}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def text_of(page: str) -> str:
    """Returns a page of docs/ with its lines joined."""
    return " ".join((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").split())


def row_of(benchmark: str) -> str:
    """Returns the row of the README's table of results that names a script."""
    (row,) = re.findall(rf"^\|.*\| `{benchmark}` \|$", README, re.MULTILINE)
    return row


def test_readme_gives_the_whole_workflow():
    modules = {module for module, _ in COMMANDS}
    assert {
        "preprocessing.verify",
        "preprocessing.convert",
        "ahnet_tf.train",
        "serving.export",
        "pipeline.local_runner",
        "serving.server",
        "ahnet_tf.predict",
        "ahnet_tf.evaluate",
    } <= modules


def test_readme_is_short():
    lines = README.splitlines()
    assert len(lines) <= 120


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(ROOT.glob("C*.md")), *DOCS], ids=str)
def test_lines_of_prose_are_at_most_120_characters(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if len(line) > 120 and not line.startswith(("|", "!"))]


@pytest.mark.parametrize(("module", "rest"), COMMANDS, ids=lambda text: text[:40])
def test_options_of_commands_exist(module, rest):
    for option in re.findall(r"(?<!\S)--[a-z0-9-]+", rest.split("#")[0]):
        assert re.search(rf"(?<!\S){option}\b", help_of(module)), f"{module} has no {option}"


def parsed_arguments(module: str, rest: str, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """Lets a command do all but its work; a wrong option ends it with SystemExit."""
    command, parsed = command_of(module), []
    # A command has imported the function or its module.
    for place in (cli, command):
        if hasattr(place, "run_command"):
            monkeypatch.setattr(place, "run_command", lambda _, given: parsed.append(given) or 0)
    assert command.main(shlex.split(rest, comments=True)) == 0
    (arguments,) = parsed
    return arguments


@pytest.mark.parametrize(("module", "rest"), ALL_COMMANDS, ids=lambda text: text.strip()[:60])
def test_commands_are_parsed_by_their_own_parser(module, rest, monkeypatch):
    parsed_arguments(module, rest, monkeypatch)


@pytest.mark.parametrize("module", ["ahnet_tf.train", "pipeline.local_runner"])
def test_examples_of_help_have_possible_settings(module, monkeypatch):
    """For the task of the preset, by default the first one."""
    text = help_of(module).replace("\n", "\n  ")
    examples = [command for command in commands_in(text) if command[0] == module]
    assert len(examples) > 3
    for _, rest in examples:
        arguments = parsed_arguments(module, rest, monkeypatch)
        # A file that an earlier run has written.
        arguments.config = None
        settings_from(arguments, load_task(arguments.preset or "ct_liver"))


def test_the_page_of_data_has_every_key_of_a_task_and_an_example():
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    section = page.split("## A task of your own\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", section, re.MULTILINE)
    defaults = {each.name: each.default for each in attrs.fields(Task)}
    assert sorted(key for key, _ in rows) == sorted(["base", *defaults])
    for key, written in rows[1:]:
        default = defaults[key]
        if default is attrs.NOTHING:
            assert written.startswith("required")
        else:
            plain = "null" if default is None else str(default).strip("()")
            assert written.strip("`") == plain
    (example,) = re.findall(r"^ {4}\{$.*?^ {4}\}$", section, re.MULTILINE | re.DOTALL)
    task = task_from_dict(json.loads(example))
    assert task.class_values == (0, 1, 2, 2, 3)


@pytest.mark.parametrize("target", re.findall(r"^    make (\S+)", README, re.MULTILINE))
def test_targets_of_make_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("link", re.findall(r"\]\((?!https?:)([^)#]+)\)", README))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_every_page_is_in_the_table(page):
    assert f"| [docs/{page.name}](docs/{page.name}) |" in README


@pytest.mark.parametrize(
    ("benchmark", "goal", "quoted"),
    [
        (
            "demo",
            "liver Dice of the demonstration's unseen case",
            "liver Dice {:.2f} on its unseen",
        ),
        ("demo", "liver Dice, mean of 6 unseen cases", "mean {:.2f} on 6"),
        ("demo", "seconds from an empty folder to the picture", "{:.0f} s in all"),
        ("detection", "sensitivity at 1 false positive per volume", "sensitivity {:.2f} at 1"),
        ("detection", "sensitivity at 2 false positives per volume", "and {:.2f} at 2 false"),
        ("real_ct", "liver Dice of totalsegmentator_example, not seen", "liver Dice {:.2f} and"),
        ("real_ct", "liver Dice of ircadb01_case17, not seen", " and {:.2f},"),
    ],
)
def test_results_are_the_benchmarks(benchmark, goal, quoted):
    goals = {entry["name"]: entry["measured"] for entry in results_of(benchmark)["goals"]}
    assert quoted.format(goals[goal]) in row_of(benchmark)


def test_detections_of_the_training_page_are_the_benchmarks():
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    figures = results_of("detection")["figures"]
    minutes = figures["training"]["cpu_minutes"]
    assert f"in {minutes:.0f} minutes of CPU time" in page
    assert f"{figures['hit_over_mass']:.2f} times as wide as its mass" in page
    for name, row in figures["froc"].items():
        at = {
            rate: f"{row[f'at_{rate}']:.2f} ({row[f'at_{rate}_low']:.2f} to {row[f'at_{rate}_high']:.2f})"
            for rate in (1, 2)
        }
        ends = f"{row['at_0.25']:.2f}", f"{row['at_4']:.2f}"
        assert f"| {name} | {row['masses']} | {ends[0]} | {at[1]} | {at[2]} | {ends[1]} |" in page
    for name, row in figures["froc_by_kind"].items():
        numbers = " | ".join(f"{row[f'at_{rate}']:.2f}" for rate in ("0.25", "1", "2", "4"))
        assert f"| {name} | {row['masses']} | {numbers} |" in page
    # All kinds have the same false positives.
    large = [row for name, row in figures["froc_by_kind"].items() if "at least 12 mm" in name]
    masses = sum(row["masses"] for row in large)
    found = [sum(row["masses"] * row[f"at_{rate}"] for row in large) / masses for rate in (1, 2)]
    of_large = "({:.2f} and {:.2f} for masses of 12 mm and more)".format(*found)
    assert of_large in row_of("detection")


FORMATS = ["MONAI channels-first", "MONAI channels-last"]
# Rivals of a forward pass in docs/network.md: the group that they were measured in, and their variants.
RIVALS = {
    "MONAI in OpenVINO": ("runtimes", ["MONAI in OpenVINO"]),
    "MONAI in ONNX Runtime": ("runtimes", ["MONAI in ONNX Runtime"]),
    "MONAI in torch, better memory format": ("default", FORMATS),
    "the same, allocator that keeps large blocks": ("tuned", FORMATS),
    "the same, torch.compile": ("tuned", [f"{name}, torch.compile" for name in FORMATS]),
    "this project, TensorFlow": ("runtimes", ["ours"]),
}


def window_times(rival: str, size: int) -> tuple[float, float, float]:
    """Returns seconds of a rival's best variant, of this project's OpenVINO in turn with it, the rival's MiB."""
    group, variants = RIVALS[rival]
    found = {
        each["network"]: each
        for each in results_of("network")["figures"]
        if (each["work"], each["precision"], each["in_turn_with"])
        == (f"forward-{size}", "float32", group)
    }
    best = min((found[name] for name in variants), key=lambda each: each["seconds_median"])
    own = found["ours, OpenVINO"]["seconds_median"]
    return best["seconds_median"], own, best["peak_memory_mib"]


@pytest.mark.parametrize("rival", RIVALS)
def test_forward_times_in_turn_with_rivals_are_the_benchmarks(rival):
    (small, own_small, small_mib), (large, own_large, large_mib) = (
        window_times(rival, size) for size in (128, 512)
    )
    assert (
        f"| {rival} | {small:.2f} s | {own_small:.2f} s | {small_mib:,.0f} MiB "
        f"| {large:.1f} s | {own_large:.1f} s | {large_mib:,.0f} MiB |"
    ) in text_of("network")


def test_training_times_and_settings_of_the_network_benchmark():
    page, results = text_of("network"), results_of("network")
    steps = {
        each["network"]: (each["seconds_median"], each["step_memory_mib"])
        for each in results["figures"]
        if (each["work"], each["precision"], each["in_turn_with"])
        == ("training-128", "float32", "default")
    }
    rows = {
        "this project": steps["ours"],
        "this project, `recompute`": steps["ours, recompute"],
        "MONAI in torch, better memory format": min(steps[name] for name in FORMATS),
    }
    for name, (seconds, memory) in rows.items():
        assert f"| {name} | {seconds:.2f} s | {memory:,.0f} MiB |" in page
    assert f"benchmarks.network --repeats {results['settings']['repeats']}`" in page


def test_times_and_memory_are_those_of_the_benchmarks_against_rivals():
    """Of one window, each beside the rival in turn with which it was taken, and of a volume."""
    openvino, _, torch, tuned = (window_times(name, 512)[:2] for name in list(RIVALS)[:4])
    assert (
        f"| {openvino[1]:.1f} s against {openvino[0]:.1f} s in OpenVINO; "
        f"{torch[1]:.1f} s against {torch[0]:.1f} s in torch "
        f"(tuned memory allocator: {tuned[1]:.1f} s against {tuned[0]:.1f} s) |"
    ) in row_of("network")

    volume = {}
    for each in results_of("prediction")["figures"]:
        if each["precision"] == "float32" and "compile" not in each["network"]:
            name = each["network"].replace("first", "").replace("last", "")
            volume[name, each["allocator"]] = each["seconds_median"], each["peak_memory_mib"] / 1024
    (own, own_gib), (rival, rival_gib), (torch, _), (tuned, _) = (
        volume[key]
        for key in (
            ("ours, OpenVINO", "default"),
            ("MONAI in OpenVINO", "default"),
            ("MONAI channels-", "default"),
            ("MONAI channels-", "tuned"),
        )
    )
    assert (
        f"| {own:.0f} s, {own_gib:.1f} GiB; MONAI's in OpenVINO {rival:.0f} s, {rival_gib:.1f} GiB, "
        f"in torch {torch:.0f} s (tuned memory allocator: {tuned:.0f} s) |"
    ) in row_of("prediction")


@pytest.mark.parametrize(
    ("task", "variant", "measure", "quoted"),
    [
        ("ct", "unet2d", "tumour_dice", "tumour Dice {:.2f} (2D U-Net)"),
        ("ct", "ahnet_transferred", "tumour_dice", "(2D U-Net) to its {:.2f}; masses found"),
        ("dbt", "unet2d", "challenge_sensitivity", "masses found {:.2f} (2D U-Net)"),
        ("dbt", "ahnet_transferred", "challenge_sensitivity", "(2D U-Net) to its {:.2f}, and"),
        ("dbt", "ahnet_scratch", "challenge_sensitivity", "and {:.2f} without the transfer"),
    ],
)
def test_comparison_is_the_benchmarks(task, variant, measure, quoted):
    runs = results_of("paper_comparison")["figures"]
    scores = [
        run["scores"][measure] for run in runs if (run["task"], run["variant"]) == (task, variant)
    ]
    assert quoted.format(sum(scores) / len(scores)) in row_of("paper_comparison")


def test_tumour_dice_is_the_benchmarks():
    # Figures without a task are CT's.
    (figures,) = (
        each for each in results_of("demo")["figures"] if each.get("task", "ct_liver") == "ct_liver"
    )
    unseen, mean = figures["dice_tumour"], figures["dice_tumour_mean"]
    assert f"tumour Dice of {unseen:.2f} on its unseen case, {mean:.2f} on average" in README


def test_tomosynthesis_demonstration_is_the_benchmarks():
    (figures,) = (
        each for each in results_of("demo")["figures"] if each.get("task") == "dbt_lesion"
    )
    found = figures["sensitivity_at_1_fp_volumes_with_boxes"]
    text = " ".join(README.split())
    assert f"in {figures['seconds']:.0f} s it finds {found:.2f} of the masses of" in text
    assert f"of {figures['volumes']} unseen volumes at 1 false positive per volume" in text


@pytest.mark.parametrize(
    ("work", "quoted"),
    [
        ("forward-128", "full AH-Net in float32, {:.2f} s per patch"),
        (
            "training-128",
            "40,000 steps of two patches | {hours:.1f} | two cores, {:.2f} s per patch",
        ),
    ],
)
def test_scale_takes_the_median_step_of_the_network_benchmark(work, quoted):
    (median,) = (
        each["seconds_median"]
        for each in results_of("network")["figures"]
        if (each["work"], each["precision"]) == (work, "float32")
        and (each["network"], each["in_turn_with"]) == ("ours", "default")
    )
    hours = results_of("scale")["figures"]["training_hours_3d_stage"]
    assert quoted.format(median, hours=hours) in text_of("scale")


@pytest.mark.parametrize(
    ("figure", "quoted"),
    [
        ("volumes_and_labels_uncompressed_GB", "uncompressed | {:.0f} |"),
        ("training_records", "| {:,} training records |"),
        ("training_records_GB", "training records | {:.0f} |"),
        ("evaluation_records", "| {:,} evaluation records |"),
        ("evaluation_records_GB", "evaluation records | {:.0f} |"),
        ("copy_by_import_GB", "copy of both | {:.0f} |"),
        ("report_volumes_GB", "while it runs | {:.1f} |"),
        ("conversion_core_hours", "| conversion | {:.1f} |"),
        ("reading_for_statistics_core_hours", "for statistics | {:.1f} |"),
        ("evaluation_hours", "| one evaluation | {:.1f} |"),
        ("report_reading_core_hours", "20 cases | at most {:.1f} |"),
        ("report_prediction_hours", "predicting them | {:.2f} |"),
    ],
)
def test_scale_is_the_benchmark(figure, quoted):
    assert quoted.format(results_of("scale")["figures"][figure]) in text_of("scale")


@pytest.mark.parametrize(
    ("case", "quoted"),
    [
        ("likely", "takes {seconds:.1f} s and {gib:.1f} GiB"),
        ("scattered", "cropped, {seconds:.0f} s and {gib:.1f} GiB"),
        ("froc", "1,721 volumes with 20 detections each, takes {seconds:.1f} s"),
    ],
)
def test_time_of_scoring_is_the_benchmarks(case, quoted):
    each = results_of("scoring")["figures"][case]
    written = quoted.format(seconds=each["seconds"], gib=each["peak_memory_mib"] / 1024)
    assert written in text_of("scoring")


@pytest.mark.parametrize("engine", results_of("engines")["figures"])
def test_cost_of_an_engine_is_the_benchmarks(engine):
    each = results_of("engines")["figures"][engine]
    memory = [each[f"MiB of {name}"] for name in ("the command", "all workers", "the job server")]
    processes = ", ".join(f"{mib:.0f}" if mib else "-" for mib in memory)
    assert (
        f"| {engine} | {each['seconds of the job']:.1f} | {each['seconds with 2 cases']:.1f} "
        f"| {each['ms a further case']:.0f} | {processes} |"
    ) in text_of("engines")


def test_conversion_on_one_machine_is_the_benchmarks():
    page, results = text_of("engines"), results_of("preprocessing")
    figures = results["figures"]
    speeds = {each["work"]: each["megavoxels_a_second"] for each in figures["case"]}
    for row, work in {
        "decompression with isal only": "bare decompression",
        "conversion to training patches": "training patches",
        "conversion to the evaluation tiling": "evaluation tiles",
        "MONAI: load, orient, scale, the same number of crops, no output": "MONAI",
    }.items():
        assert f"| {row} | {speeds[work]:.0f} |" in page
    assert f"| job of {results['settings']['job_cases']} cases |" in page
    for each in figures["job"]:
        if "processing" not in each["engine"]:
            memory = f"{each['memory_growth_mib']:.0f} MiB"
            assert f"| {each['engine']} | {each['megavoxels_a_second']:.0f} | {memory} |" in page
    for each in figures["compression"]:
        assert (
            f"| {each['compression']} | {each['write_milliseconds_a_patch']:.1f} "
            f"| {each['read_milliseconds_a_patch']:.1f} | {each['size_of_uncompressed']:.0%} |"
        ).replace("%", " %") in page


def test_real_ct_page_is_the_benchmarks():
    for each in results_of("real_ct")["figures"][:2]:
        assert f"| {each['dice']:.3f} |" in text_of("real_ct")
