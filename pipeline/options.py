"""The options of the pipeline's runners, and the settings that they make."""

from __future__ import annotations

import argparse
from pathlib import Path

from ahnet_tf.train import add_settings, settings_from
from pipeline.configs import SCHEMAS, WAIVERS, PipelineSettings
from pipeline.spans import newest_span
from preprocessing.errors import ALLOWANCES, InputError, SettingsError
from preprocessing.records.splits import EVAL_FRACTION
from preprocessing.tasks import Task, load_task


def add_pipeline_options(parser: argparse.ArgumentParser, *, on_cluster: bool = False) -> None:
    """Adds every option that decides what a pipeline computes (see `pipeline_settings`).

    Args:
      parser: of a runner's command, which adds the place of its output itself.
      on_cluster: data lies where the pods see it, not on this machine, and no container can be run
        for InfraValidator.
    """
    # Beam's options are told apart by their full names.
    parser.allow_abbrev = False
    place = ", as the pods see it" if on_cluster else ""
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument(
        "--input", metavar="RECORDS", help=f"folder with train/, eval/ and task.json{place}"
    )
    data.add_argument(
        "--volumes",
        metavar="DIR",
        help="folder of volumes with label maps instead, which the pipeline converts by Beam",
    )
    known = " that lie on this machine too" if on_cluster else ""
    parser.add_argument(
        "--task",
        help=f"preset or JSON file (default: task.json of records{known}; ct_liver for volumes)",
    )
    parser.add_argument(
        "--eval-fraction",
        type=float,
        default=EVAL_FRACTION,
        help="with --volumes, share of cases to evaluate on (default: %(default)s)",
    )
    parser.add_argument(
        "--spans",
        type=int,
        default=0,
        metavar="N",
        help="the data folder holds batches of cases, span-1, span-2, ...: the newest is checked "
        "against the one before, and the N newest are learned from",
    )
    parser.add_argument(
        "--warm-start",
        action="store_true",
        help="go on from the last blessed model that has not seen the newest data; no 2D stage",
    )
    parser.add_argument(
        "--schema",
        default="curated",
        metavar="curated|inferred|FILE",
        help="what records are held against: the task's schema, one inferred from their own "
        "statistics, or a file (schema.pbtxt)",
    )
    parser.add_argument(
        "--allow",
        default="",
        metavar="NAME,...",
        help="go on in spite of: "
        + "; ".join(f"{name}: {what}" for name, what in WAIVERS.items())
        + f"; and of what conversion knows ({', '.join(ALLOWANCES)})",
    )
    parser.add_argument(
        "--threshold",
        action="append",
        default=[],
        metavar="CLASS=DICE",
        help="mean Dice per case of a class that blesses a model, or a score of detected lesions "
        "such as lesion_recall; repeatable "
        "(default: 0.8 of the liver, or of the task's first class)",
    )
    parser.add_argument(
        "--threshold-liver", type=float, metavar="DICE", help="the same for that class alone"
    )
    parser.add_argument(
        "--largest-loss",
        type=float,
        default=0.0,
        metavar="DICE",
        help="by how much those may fall short of the last blessed model's (default: 0)",
    )
    parser.add_argument(
        "--tune", type=int, default=0, metavar="TRIALS", help="learning rates to try first"
    )
    parser.add_argument(
        "--tune-steps", type=int, default=100, help="optimizer steps of a trial (default: 100)"
    )
    parser.set_defaults(serving_image="")
    if not on_cluster:
        parser.add_argument(
            "--serving-image",
            metavar="IMAGE",
            help="tensorflow/serving:TAG for TFX's InfraValidator, where Docker runs (default: a "
            "server in a process of its own has to answer real requests)",
        )
    parser.add_argument(
        "--pipeline-name", default="ahnet", help="name in the metadata (default: ahnet)"
    )
    add_settings(parser)


def pipeline_settings(
    arguments: argparse.Namespace, storage_root: str | None = None
) -> PipelineSettings:
    """Returns the settings that the options of `add_pipeline_options` ask for.

    Args:
      arguments: as parsed.
      storage_root: the run's folder or address on a cluster; None for a run on this machine, whose
        folder is `arguments.output`.

    Raises:
      InputError: no such folder on this machine, or records without their task.
      SettingsError: a setting that is not possible.
    """
    data = arguments.input or arguments.volumes
    if storage_root is None:
        if not Path(data).is_dir():
            raise InputError(Path(data).resolve(), "a folder of data", "no such folder")
        data = str(Path(data).resolve())
    task = _task(arguments, data, on_cluster=storage_root is not None)
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
        schema=_schema(arguments.schema),
        tuner_trials=arguments.tune,
        tuner_steps=arguments.tune_steps,
        allow=tuple(filter(None, arguments.allow.split(","))),
        serving_image=arguments.serving_image,
    )


def _task(arguments: argparse.Namespace, data: str, *, on_cluster: bool) -> Task:
    if arguments.task is not None:
        return load_task(arguments.task)
    if arguments.volumes:
        return load_task("ct_liver")
    here = Path(data).is_dir()
    folder = newest_span(data) if arguments.spans and here else Path(data)
    if not (folder / "task.json").is_file():
        remedy = "Write records with python -m preprocessing.convert, or name the task with --task."
        if on_cluster:
            remedy = "Name the task that they were converted for, for instance --task ct_liver."
        raise InputError(
            folder if here else data, "records with task.json on this machine", "none", remedy
        )
    return load_task(str(folder / "task.json"))


def _thresholds(arguments: argparse.Namespace, task: Task) -> dict[str, float]:
    decisive = "liver" if "liver" in task.class_names else task.class_names[1]
    thresholds = {}
    for given in arguments.threshold:
        name, _, text = given.partition("=")
        try:
            thresholds[name] = float(text)
        except ValueError:
            raise SettingsError("--threshold", "CLASS=DICE", repr(given)) from None
    if arguments.threshold_liver is not None:
        thresholds[decisive] = arguments.threshold_liver
    return thresholds or {decisive: 0.8}


def _schema(given: str) -> str:
    return given if given in SCHEMAS else str(Path(given).resolve())
