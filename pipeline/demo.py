"""End-to-end demonstration, each stage by the command that a user would type."""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ahnet_tf.presets import PRESETS
from pipeline.configs import pushed_models
from pipeline.demonstrations import CT_LIVER, DBT_LESION, UNSEEN_CASE, demonstration_of
from pipeline.local.own_cases import hold_out
from pipeline.local.preflight import only_run_in
from pipeline.stages import Stages
from preprocessing.cli import make_parser, run_command
from preprocessing.files import atomic_write, write_json
from preprocessing.tasks import load_task

# The pipeline's default name, and the server's.
MODEL_NAME = "ahnet"
STAGE_FOLDERS = ("data", "unseen", "records", "pipeline", "prediction", "scores", ".stages")
# The picture of one unseen case, and the page of the unseen cases' scores.
OVERLAY = "overlay.png"
REPORT = "report.html"
# In the folder of stages: the demonstration that they belong to.
DEMONSTRATION_FILE = "demonstration"
EXAMPLES = (
    "python -m pipeline.demo --output demo",
    f"python -m pipeline.demo --output demo --task {DBT_LESION.task}",
    "python -m pipeline.demo --output demo_own --input ~/lits/training",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demonstration and returns the exit code."""
    parser = make_parser(
        "pipeline.demo",
        "From volumes to a served prediction: synthetic CT or breast tomosynthesis (or your own cases),\n"
        "Beam conversion, TFX pipeline, model server, prediction of unseen cases, their scores, a\n"
        "picture and a page. An interrupted run resumes after its last finished stage; a finished run,\n"
        "or one of the other kind of volumes, starts over.",
        EXAMPLES,
    )
    add = parser.add_argument
    add("--output", default="demo", help="output folder (default: demo)")
    add(
        "--input",
        nargs="+",
        metavar="DIR",
        help="your own labelled cases (any layout that preprocessing.convert reads), at least two: one "
        "is held out of training and predicted; for DBT a folder of BCS-DBT's layout with NIfTI "
        "volumes, of which a quarter is held out (default: synthetic cases)",
    )
    default = CT_LIVER.task
    task_help = f"preset or JSON file (default: {default}; tomosynthesis: {DBT_LESION.task})"
    add("--task", default=default, help=task_help)
    preset_help = (
        "training preset (default: the task's, or that of the demonstration for a JSON file)"
    )
    add("--preset", help=preset_help)
    add(
        "--threshold",
        "--threshold-liver",
        type=float,
        help="score that blesses the model: mean liver Dice per case, for DBT sensitivity at 2 false "
        f"positives per volume (default: {CT_LIVER.threshold}, for DBT {DBT_LESION.threshold}, on "
        "synthetic cases, 0 on your own, where a short training is only a first look)",
    )
    setting = "a training setting, passed to the pipeline; repeatable"
    add("--set", action="append", default=[], metavar="NAME=VALUE", help=setting)
    add("--seed", type=int, default=0, help="seed of data, sampling and training")
    return run_command(run, parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> None:
    """Runs all stages, then writes and prints the summary."""
    # Without TFX, whose own name may be there all the same, it fails here and not after the conversion.
    importlib.import_module("ml_metadata")
    task = load_task(arguments.task)
    shown = demonstration_of(task)
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    with only_run_in(output):
        if (output / "summary.json").exists() or is_other_run(output, shown.task):
            clear(output)
        with atomic_write(output / ".stages" / DEMONSTRATION_FILE) as temporary:
            Path(temporary).write_text(shown.task, encoding="utf-8")
        stages = Stages(output / ".stages", arguments.debug)
        run_stages(arguments, output, stages)
        scores = shown.scores(output, task)
        shutil.copyfile(
            output / "prediction" / "overlays" / f"{scores['case']}.png", output / OVERLAY
        )
        summary = scores | summarize(output, stages)
        write_json(output / "summary.json", summary)
    print("\n" + "\n".join(shown.lines(summary)))
    print_results(summary, output)


def is_other_run(output: Path, demonstration: str) -> bool:
    """Returns whether the folder holds stages of another demonstration, which don't fit."""
    record = output / ".stages" / DEMONSTRATION_FILE
    return record.is_file() and record.read_text(encoding="utf-8") != demonstration


def preset_of(arguments: argparse.Namespace) -> str:
    """Returns the training preset: the given one, else the task's, else the demonstration's."""
    if arguments.preset or arguments.task in PRESETS:
        return arguments.preset or arguments.task
    return demonstration_of(load_task(arguments.task)).task


def run_stages(arguments: argparse.Namespace, output: Path, stages: Stages) -> None:
    """Runs the stages in order, each with an output folder of its name in `output`."""
    seed = ["--seed", str(arguments.seed)]
    data, unseen, records = output / "data", output / "unseen", output / "records"
    convert = ["preprocessing.convert", "--task", arguments.task, "--output", records, *seed]
    inputs, task = arguments.input, load_task(arguments.task)
    shown = demonstration_of(task)
    threshold = 0.0 if inputs else shown.threshold
    if arguments.threshold is not None:
        threshold = arguments.threshold
    if inputs:
        stages.call("data", lambda: hold_out(inputs, task, data, unseen), inputs)
        convert += ["--allow-rejected"]
    else:
        phantom = ["preprocessing.phantom", *seed]
        for name, folder, cases in (("data", data, shown.cases), ("unseen", unseen, shown.unseen)):
            first = ["--first", UNSEEN_CASE] if folder == unseen else []
            own = ["--output", folder, "--cases", cases, *first, *shown.phantom]
            stages.run(name, [*phantom, *own])
    stages.run("convert", [*convert, "--overwrite", "--input", data])
    pipeline = ["pipeline.local_runner", "--input", records, "--output", output / "pipeline", *seed]
    preset = preset_of(arguments)
    pipeline += ["--preset", preset, *shown.blessing(threshold)]
    training = shown.training if preset == shown.task else ()
    # Settings of the command line come last: they replace the demonstration's.
    for setting in (*training, *arguments.set):
        pipeline += ["--set", setting]
    stages.run("pipeline", pipeline)
    with stages.server(Path(pushed_models(output / "pipeline", MODEL_NAME)), MODEL_NAME) as address:
        predict = ["ahnet_tf.predict", "--target", f"{address}/{MODEL_NAME}", "--overlay"]
        if arguments.task in PRESETS:
            predict += shown.predicting
        # The port differs in every run, so this stage is never skipped.
        stages.run("predict", [*predict, unseen, output / "prediction"])
    evaluate = ["ahnet_tf.evaluate", "--reference", unseen, "--output", output / "scores"]
    evaluate += ["--report", output / REPORT, "--task", arguments.task]
    stages.run("evaluate", [*evaluate, "--input", *shown.evaluated(output / "prediction")])


def summarize(output: Path, stages: Stages) -> dict[str, Any]:
    """Returns the cost of each stage and where the results are."""
    pipeline = json.loads((output / "pipeline" / "result.json").read_text(encoding="utf-8"))
    seconds = {name: cost["seconds"] for name, cost in stages.costs.items()}
    memory = {name: cost["peak_memory_mib"] for name, cost in stages.costs.items()}
    return {
        "seconds": seconds,
        # The server's time holds the prediction's.
        "seconds_total": round(sum(seconds.values()) - seconds["predict"], 1),
        "seconds_pipeline": pipeline["seconds"],
        # The server runs during the prediction; all other stages run alone.
        "peak_memory_mib": max(memory["server"] + memory["predict"], *memory.values()),
        "peak_memory_mib_by_stage": memory,
        "picture": str(output / OVERLAY),
        "page": str(output / REPORT),
        "model": pipeline["pushed"],
    }


def print_results(summary: dict[str, Any], output: Path) -> None:
    """Prints the cost and the paths of the results."""
    print(f"{summary['seconds_total']:.0f} s, peak memory {summary['peak_memory_mib']} MiB")
    print(f"picture  {summary['picture']}")
    print(f"page     {summary['page']}")
    print(f"figures  {output / 'summary.json'}")
    print(f"model    {summary['model']}")


def clear(output: Path) -> None:
    """Removes the output of an earlier run; nothing else in the folder."""
    for name in ("summary.json", OVERLAY, REPORT):
        (output / name).unlink(missing_ok=True)
    for name in STAGE_FOLDERS:
        shutil.rmtree(output / name, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
