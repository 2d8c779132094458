"""Command-line options of the pipeline's runners, and the settings made from them."""

from __future__ import annotations

import argparse
from pathlib import Path

from ahnet_tf.evaluation.froc import score_names
from ahnet_tf.train import add_settings, settings_from
from pipeline.configs import (
    SCHEMAS,
    SERVING_PLATFORMS,
    WAIVERS,
    PipelineSettings,
    newest_span,
)
from preprocessing.cli import parse_allowances
from preprocessing.errors import ALLOWANCES, InputError, SettingsError
from preprocessing.records.splits import EVAL_FRACTION
from preprocessing.tasks import Task, load_task, records_task

# What blesses a model by default: the mean Dice of a class, or of a heat map's detections the
# sensitivity at two false positives per volume, over the volumes that have a lesion.
DICE, SENSITIVE = 0.8, 0.5
SENSITIVITY = score_names()[1]


def add_pipeline_options(parser: argparse.ArgumentParser, *, on_cluster: bool = False) -> None:
    """Adds all options that decide what a pipeline computes (see `pipeline_settings`).

    On a cluster paths are those in the pods, and InfraValidator runs a pod instead of a container.
    """
    # Abbreviations would hide Beam's options.
    parser.allow_abbrev = False
    place = ", as seen by the pods" if on_cluster else ""
    add = parser.add_argument
    data = parser.add_mutually_exclusive_group(required=True)
    records = f"folder with train/, eval/ and task.json{place}"
    data.add_argument("--input", metavar="RECORDS", help=records)
    volumes = "folder of labelled volumes for the pipeline to convert"
    data.add_argument("--volumes", metavar="DIR", help=volumes)
    default = "task.json of records on this machine; ct_liver for volumes"
    add("--task", help=f"preset or JSON file (default: {default})")
    share = "with --volumes, share of patients to evaluate on (default: %(default)s)"
    add("--eval-fraction", type=float, default=EVAL_FRACTION, help=share)
    add(
        "--spans",
        type=int,
        default=0,
        metavar="N",
        help="the data folder holds batches of cases, span-1, span-2, ...: check the newest against "
        "the one before, and train on the N newest",
    )
    start = "start from the last blessed model that has not seen the newest data; no 2D stage"
    add("--warm-start", action="store_true", help=start)
    schema = "schema of the records: the task's, one inferred from their statistics, or a file"
    add("--schema", default="curated", metavar="curated|inferred|FILE", help=schema)
    waivers = "; ".join(f"{name}: {what}" for name, what in WAIVERS.items())
    allow = f"accept {waivers}; and what conversion can accept ({', '.join(ALLOWANCES)})"
    add("--allow", default="", metavar="NAME,...", help=allow)
    add(
        "--threshold",
        action="append",
        default=[],
        metavar="NAME=SCORE",
        help="score that blesses a model: mean Dice per case of a class, or for lesions of a heat map "
        f"a score such as {SENSITIVITY}; repeatable (default: {DICE} for the liver or the task's "
        f"first class, for a heat map {SENSITIVE} of {SENSITIVITY})",
    )
    liver = "the same for the Dice of that class only"
    add("--threshold-liver", type=float, metavar="DICE", help=liver)
    loss = "largest accepted loss against the last blessed model (default: 0)"
    add("--largest-loss", type=float, default=0.0, metavar="DICE", help=loss)
    add("--tune", type=int, default=0, metavar="TRIALS", help="learning rates to try first")
    add("--tune-steps", type=int, default=100, help="optimizer steps per trial (default: 100)")
    by = "in a pod of its own (only with --engine kubeflow)" if on_cluster else "with Docker"
    image = (
        f"tensorflow/serving:TAG for TFX's InfraValidator, {by} (default: the embedded server, in its "
        "own process, has to answer requests)"
    )
    add("--serving-image", default="", metavar="IMAGE", help=image)
    add("--pipeline-name", default="ahnet", help="name in the metadata (default: ahnet)")
    add_settings(parser)


def pipeline_settings(
    arguments: argparse.Namespace, storage_root: str | None = None
) -> PipelineSettings:
    """Returns the settings given by the options of `add_pipeline_options`.

    `storage_root` is the folder or address of the run on a cluster, None on this machine. Raises
    InputError for a missing folder or records without their task, SettingsError for an invalid
    setting.
    """
    data = arguments.input or arguments.volumes
    if storage_root is None:
        if not Path(data).is_dir():
            raise InputError(Path(data).resolve(), "a folder of data", "no such folder")
        data = str(Path(data).resolve())
    task = _task(arguments, data)
    schema = arguments.schema
    return PipelineSettings(
        input=data,
        output=storage_root or str(Path(arguments.output).resolve()),
        task=task,
        config=settings_from(arguments, task),
        thresholds=_thresholds(arguments, task),
        largest_loss=arguments.largest_loss,
        name=arguments.pipeline_name,
        from_volumes=arguments.volumes is not None,
        eval_fraction=arguments.eval_fraction,
        spans=arguments.spans,
        warm_start=arguments.warm_start,
        schema=schema if schema in SCHEMAS else str(Path(schema).resolve()),
        tuner_trials=arguments.tune,
        tuner_steps=arguments.tune_steps,
        allow=tuple(sorted(parse_allowances(arguments.allow, [*WAIVERS, *ALLOWANCES]))),
        serving_image=arguments.serving_image,
        serving_platform=SERVING_PLATFORMS[storage_root is not None],
    )


def _task(arguments: argparse.Namespace, data: str) -> Task:
    if arguments.task is not None:
        return load_task(arguments.task)
    if arguments.volumes:
        return load_task("ct_liver")
    here = Path(data).is_dir()
    folder = newest_span(data) if arguments.spans and here else Path(data)
    return records_task(folder if here else data)


def _thresholds(arguments: argparse.Namespace, task: Task) -> dict[str, float]:
    decisive = "liver" if "liver" in task.class_names else task.class_names[1]
    heat_map = task.target == "heat_map"
    thresholds = {}
    for given in arguments.threshold:
        name, _, text = given.partition("=")
        try:
            thresholds[name] = float(text)
        except ValueError:
            raise SettingsError("--threshold", "NAME=SCORE", repr(given)) from None
    if arguments.threshold_liver is not None:
        if heat_map:
            # Detections say whether a heat map is good; its Dice does not.
            remedy = f"Give --threshold {SENSITIVITY}={SENSITIVE}, for example."
            found = f"{task.name}, whose target is a heat map"
            raise SettingsError("--threshold-liver", "a task of label maps", found, remedy)
        thresholds[decisive] = arguments.threshold_liver
    return thresholds or ({SENSITIVITY: SENSITIVE} if heat_map else {decisive: DICE})
