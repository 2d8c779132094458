"""End-to-end demonstration, each stage by the command that a user would type."""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ahnet_tf.evaluation.summary import dice_columns
from pipeline.local.preflight import only_run_in
from pipeline.stages import Stages
from preprocessing.cli import make_parser, run_command
from preprocessing.datasets.case import Case
from preprocessing.datasets.dataset_json import DATASET_FILE
from preprocessing.datasets.discovery import find_cases
from preprocessing.datasets.reading import read_case_image, read_case_label
from preprocessing.errors import InputError
from preprocessing.files import write_json
from preprocessing.records.splits import EVAL_FRACTION, split_by_hash
from preprocessing.tasks import Task, load_task

MODEL_NAME = "ahnet"
PRESET = "ct_liver_small"
PHANTOM_CASES = 48
# Outside the numbers of the training cases: no stage before the prediction sees it.
UNSEEN_CASE = 1000
STAGE_FOLDERS = ("data", "unseen", "records", "pipeline", "prediction", "scores", ".stages")
# The picture and the page of scores of the unseen case.
OVERLAY = "overlay.png"
REPORT = "report.html"
EXAMPLES = (
    "python -m pipeline.demo --output demo",
    "python -m pipeline.demo --output demo_own --input ~/lits/training",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demonstration and returns the exit code."""
    parser = make_parser(
        "pipeline.demo",
        "From CT volumes to a served segmentation: synthetic cases (or your own), Beam conversion,\n"
        "TFX pipeline, model server, prediction of an unseen case, its scores, a picture and a page.\n"
        "An interrupted run resumes after its last finished stage; a finished run starts over.",
        EXAMPLES,
    )
    add = parser.add_argument
    add("--output", default="demo", help="output folder (default: demo)")
    add(
        "--input",
        nargs="+",
        metavar="DIR",
        help="your own labelled cases, at least two (any layout that preprocessing.convert reads); "
        "one is held out of training and predicted (default: synthetic cases)",
    )
    add("--task", default=PRESET, help=f"preset or JSON file (default: {PRESET})")
    add("--preset", default=PRESET, help=f"training preset (default: {PRESET})")
    add(
        "--threshold-liver",
        type=float,
        help="mean liver Dice per case that blesses the model (default: 0.8 on synthetic cases, 0 on "
        "your own, where a short training is only a first look)",
    )
    setting = "a training setting, passed to the pipeline; repeatable"
    add("--set", action="append", default=[], metavar="NAME=VALUE", help=setting)
    add("--seed", type=int, default=0, help="seed of data, sampling and training")
    return run_command(run, parser.parse_args(argv))


def run(arguments: argparse.Namespace) -> None:
    """Runs all stages, then writes and prints the summary."""
    # Without TFX it fails here, and not after the conversion.
    importlib.import_module("tfx")
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    with only_run_in(output):
        if (output / "summary.json").exists():
            clear(output)
        stages = Stages(output / ".stages", arguments.debug)
        run_stages(arguments, output, stages)
        summary = summarize(output, stages, load_task(arguments.task))
        write_json(output / "summary.json", summary)
    print_summary(summary, output)


def run_stages(arguments: argparse.Namespace, output: Path, stages: Stages) -> None:
    """Runs the stages in order, each with an output folder of its name in `output`."""
    seed = ["--seed", str(arguments.seed)]
    data, unseen, records = output / "data", output / "unseen", output / "records"
    convert = ["preprocessing.convert", "--task", arguments.task, "--output", records, *seed]
    threshold = 0.0 if arguments.input else 0.8
    if arguments.threshold_liver is not None:
        threshold = arguments.threshold_liver
    inputs, task = arguments.input, load_task(arguments.task)
    if inputs:
        stages.call("data", lambda: hold_one_out(inputs, task, data, unseen), inputs)
        convert += ["--allow-rejected"]
    else:
        phantom = ["preprocessing.phantom", *seed]
        stages.run("data", [*phantom, "--output", data, "--cases", PHANTOM_CASES])
        stages.run("unseen", [*phantom, "--output", unseen, "--cases", 1, "--first", UNSEEN_CASE])
    stages.run("convert", [*convert, "--overwrite", "--input", data])
    pipeline = ["pipeline.local_runner", "--input", records, "--output", output / "pipeline", *seed]
    pipeline += ["--preset", arguments.preset, "--threshold-liver", threshold]
    for setting in arguments.set:
        pipeline += ["--set", setting]
    stages.run("pipeline", pipeline)
    with stages.server(output / "pipeline" / "serving_model", MODEL_NAME) as address:
        predict = ["ahnet_tf.predict", "--target", f"{address}/{MODEL_NAME}", "--overlay"]
        # The port differs in every run, so this stage is never skipped.
        stages.run("predict", [*predict, unseen, output / "prediction"])
    evaluate = ["ahnet_tf.evaluate", "--input", output / "prediction", "--reference", unseen]
    evaluate += ["--output", output / "scores", "--report", output / REPORT]
    evaluate += ["--task", arguments.task]
    stages.run("evaluate", evaluate)
    (overlay,) = (output / "prediction" / "overlays").glob("*.png")
    shutil.copyfile(overlay, output / OVERLAY)


def hold_one_out(inputs: Sequence[str], task: Task, data: Path, unseen: Path) -> None:
    """Links the user's cases into `data`, and the last readable one into `unseen`.

    With only two cases, the one in the eval split is also predicted: it is not trained on. Raises
    InputError for fewer than two readable labelled cases.
    """
    for folder in (data, unseen):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    cases = find_cases(inputs, need_labels=True)
    held_out = next((case for case in reversed(cases) if is_readable(case, task)), None)
    if held_out is None or len(cases) < 2:
        expected = "two or more readable cases with label maps"
        found = ", ".join(case.problem or case.case_id for case in cases)
        remedy = "python -m preprocessing.convert says what is wrong with each case."
        raise InputError(", ".join(inputs), expected, found, remedy)
    if len(cases) == 2:
        splits = split_by_hash([case.case_id for case in cases], EVAL_FRACTION)
        held_out = next(case for case in cases if splits[case.case_id] == "eval")
    placed = [(case, data) for case in cases if case is not held_out or len(cases) == 2]
    for case, folder in [*placed, (held_out, unseen)]:
        place = folder / case.case_id
        place.mkdir()
        for kind, path in (("image", case.image_path), ("label", case.label_path)):
            if path is not None:
                # Where a dataset.json names the labels, both may have one name in two folders.
                name = f"{kind}_{path.name}" if case.label_names else path.name
                (place / name).symlink_to(path.resolve())
        if case.label_names:
            labels = {str(value): name for value, name in case.label_names}
            write_json(place / DATASET_FILE, {"labels": labels})
    print(f"{len(cases)} cases; {held_out.case_id} is held out of training and predicted last")


def is_readable(case: Case, task: Task) -> bool:
    """Returns whether a case's image and label map can be read and share one grid."""
    if case.problem:
        return False
    try:
        read_case_label(case, task, read_case_image(case))
    except InputError:
        return False
    return True


def summarize(output: Path, stages: Stages, task: Task) -> dict[str, Any]:
    """Returns the scores of the predicted case, the cost of each stage and where the results are."""
    with open(output / "scores" / "scores.csv", newline="", encoding="utf-8") as file:
        scores = next(csv.DictReader(file))
    columns = zip(task.class_names[1:], dice_columns(task).values(), strict=True)
    pipeline = json.loads((output / "pipeline" / "result.json").read_text(encoding="utf-8"))
    seconds = {name: cost["seconds"] for name, cost in stages.costs.items()}
    memory = {name: cost["peak_memory_mib"] for name, cost in stages.costs.items()}
    return {
        "case": scores["case_id"],
        **{f"dice_{name}": float(scores[column]) for name, column in columns},
        "seconds": seconds,
        "seconds_total": round(sum(seconds.values()) - seconds["server"], 1),
        "seconds_pipeline": pipeline["seconds"],
        # The server runs during the prediction; all other stages run alone.
        "peak_memory_mib": max(memory["server"] + memory["predict"], *memory.values()),
        "peak_memory_mib_by_stage": memory,
        "picture": str(output / OVERLAY),
        "page": str(output / REPORT),
        "model": pipeline["pushed"],
    }


def print_summary(summary: dict[str, Any], output: Path) -> None:
    """Prints the scores and the paths of the results."""
    print(f"\ncase {summary['case']}, not used in training:")
    for name, dice in summary.items():
        if name.startswith("dice_"):
            print(f"  Dice {name.removeprefix('dice_'):<8}{dice:.3f}")
    print(f"{summary['seconds_total']:.0f} s, peak memory {summary['peak_memory_mib']} MiB")
    print(f"picture  {summary['picture']}")
    print(f"page     {summary['page']}")
    print(f"figures  {output / 'summary.json'}")
    print(f"model    {summary['model']}")


def clear(output: Path) -> None:
    """Removes the output of an earlier, finished run; nothing else in the folder."""
    (output / "summary.json").unlink()
    for name in (OVERLAY, REPORT):
        (output / name).unlink(missing_ok=True)
    for name in STAGE_FOLDERS:
        shutil.rmtree(output / name, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
