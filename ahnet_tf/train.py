"""`python -m ahnet_tf.train`: trains MC-GCN in 2D, then AH-Net in 3D from its encoder."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ahnet_tf.config import IMAGENET, ModelConfig
from ahnet_tf.presets import PRESETS, STAGES, RunConfig, run_config
from preprocessing.cli import make_parser, run_command
from preprocessing.errors import InputError, SettingsError
from preprocessing.files import write_json
from preprocessing.records.splits import split_files
from preprocessing.settings import did_you_mean
from preprocessing.tasks import Task, load_task, records_task

if TYPE_CHECKING:
    from ahnet_tf.training.run_folder import TrainingResult

# The value of --init, other than IMAGENET or a folder, for fresh weights.
SCRATCH = "scratch"

# The folder of each stage's network in the run's folder.
FOLDERS = {"2d": "mcgcn", "3d": "ahnet"}

PURPOSE = """\
Trains the 2D MC-GCN, transfers its encoder and trains the 3D AH-Net, on records written by
python -m preprocessing.convert. Start the same command again to resume a run that was killed or
stopped (SIGTERM or Ctrl-C, after which it saves). Several workers share the steps if TF_CONFIG
describes them.

Writes RUN/settings.json (every setting, for --config), RUN/mcgcn and RUN/ahnet (best network,
history.csv, evaluation.json with Dice per case, overlay.png, tensorboard/, last/),
RUN/ahnet/transfer.txt."""

EXAMPLES = (
    "python -m ahnet_tf.train --input records --output run",
    "python -m ahnet_tf.train --input records --output run --preset ct_liver_small",
    "python -m ahnet_tf.train --input records --output run --stage 3d --init run2d/mcgcn",
    "python -m ahnet_tf.train --input records --output run --init imagenet --deterministic",
    "python -m ahnet_tf.train --input records --output run --set 3d.steps=5000 --set batch_size=4",
    "python -m ahnet_tf.train --input records --output again --config run/settings.json --seed 1",
)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds the options for the settings of a run (see `settings_from`)."""
    add = parser.add_argument
    add("--preset", choices=list(PRESETS), help="base settings (default: the task's preset)")
    add("--config", metavar="JSON", help="file of settings, or of some of them")
    text = (
        "a setting of both stages, or of one: 2d.NAME=VALUE, 3d.NAME=VALUE; repeatable "
        "(settings.json of a run lists the names)"
    )
    add("--set", metavar="NAME=VALUE", action="append", default=[], dest="settings", help=text)
    add("--steps", type=int, help="optimizer steps of each stage")
    add("--batch-size", type=int, help="patches per step over all replicas")
    add("--learning-rate", type=float, help="learning rate after the warm-up")
    add("--precision", help="float32, mixed_bfloat16 or mixed_float16")
    text = "bit-identical weights in repeated runs; slower on GPUs"
    add("--deterministic", action="store_true", default=None, help=text)
    add("--replicas", type=int, help="devices that share a step (default: all GPUs, or one CPU)")
    add("--seed", type=int, help="seed of start weights, order of patches and augmentation")


def settings_from(arguments: argparse.Namespace, task: Task) -> RunConfig:
    """Returns the settings given by the options of `add_settings`; raises as `run_config` does."""
    names = ["steps", "batch_size", "learning_rate", "precision"]
    names += ["deterministic", "replicas", "seed"]
    options = {name: getattr(arguments, name) for name in names}
    given = [f"{name}={json.dumps(v)}" for name, v in options.items() if v is not None]
    return run_config(
        task,
        preset=arguments.preset,
        config_file=arguments.config,
        settings=[*given, *arguments.settings],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser("ahnet_tf.train", PURPOSE, EXAMPLES)
    add = parser.add_argument
    input_help = "folder with train/, eval/ and task.json"
    add("--input", required=True, metavar="RECORDS", help=input_help)
    add("--output", required=True, metavar="RUN", help="run folder")
    add("--task", help="preset or JSON file (default: task.json of the records)")
    add("--stage", choices=["both", *STAGES], default="both", help="default: both")
    add(
        "--init",
        metavar="START",
        default=SCRATCH,
        help="start weights of the first stage: the folder of a network (all its weights, or its "
        "encoder's), imagenet (Keras' ResNet-50, for networks of full width), or scratch (default)",
    )
    add_settings(parser)
    return run_command(_run, parser.parse_args(argv))


def _run(arguments: argparse.Namespace) -> None:
    task = load_task(arguments.task) if arguments.task else records_task(arguments.input)
    train_stages(
        arguments.input,
        arguments.output,
        settings_from(arguments, task),
        task=task,
        stages=STAGES if arguments.stage == "both" else (arguments.stage,),
        init=arguments.init,
    )


def train_stages(
    records: str | Path,
    output: str | Path,
    config: RunConfig | None = None,
    *,
    task: Task | None = None,
    stages: Sequence[str] = STAGES,
    init: str | Path = SCRATCH,
) -> list[TrainingResult]:
    """Trains MC-GCN on slices, transfers its encoder and trains AH-Net, as the command does.

    The same call resumes a run that was stopped. Returns the results of the stages, in order.

    Args:
      records: folder written by `preprocessing.convert`.
      output: the run's folder; its sub-folders `mcgcn` and `ahnet` hold the trained networks.
      config: every setting (see `ahnet_tf.presets.run_config`); by default the task's preset.
      task: by default that of the records.
      stages: "2d", "3d" or both.
      init: start weights of the first stage: a network's folder, "imagenet" or "scratch".

    Raises:
      InputError: no records, or damaged ones, or a full disk.
      SettingsError: settings that don't fit the task, the devices or the run in `output`.
      ModelError: start weights that don't fit, or a loss that is not finite.
      Stopped: a signal stopped the training, which has saved its state.
    """
    records, output, init = Path(records), Path(output), str(init)
    task = task or records_task(records)
    config = config or run_config(task)
    if not stages or not set(stages) <= set(STAGES):
        raise SettingsError("stages", f"some of {', '.join(STAGES)}, in this order", repr(stages))
    replicas = {config.stages[stage].training.replicas for stage in stages}
    if len(replicas) > 1:
        raise SettingsError("replicas", "the same number in both stages", sorted(replicas))
    _check_start(init, config.stages[stages[0]].model)
    evaluated = any(config.stages[stage].training.evaluate_every for stage in stages)
    splits = ("train", "eval") if evaluated else ("train",)
    files = {split: [str(path) for path in split_files(records / split)] for split in splits}
    for split, found in files.items():
        if not found:
            remedy = "Write them with python -m preprocessing.convert, with a case for each split; "
            remedy += "--set evaluate_every=0 trains without evaluating."
            raise InputError(records / split, "TFRecords of the split", "none", remedy)

    from ahnet_tf.training.distribution import set_up_devices, workers_of
    from ahnet_tf.training.run_folder import check_folder, inputs_of, locked
    from ahnet_tf.training.trainer import train_network

    initial: str | Path | None = None if init == SCRATCH else init
    transferred = (output / FOLDERS[stage] for stage in stages[:-1])
    starts = dict(zip(stages, (initial, *transferred), strict=True))
    workers = workers_of()
    with locked(output) if workers.chief else contextlib.nullcontext():
        for stage, start in starts.items():
            model, training = config.stages[stage].model, config.stages[stage].training
            inputs = inputs_of(training, files["train"], files.get("eval", []), start)
            check_folder(output / FOLDERS[stage], model, training, task, inputs)
        if workers.chief:
            write_json(output / "settings.json", config.to_dict())
        set_up_devices(replicas.pop())
        results = []
        for stage, start in starts.items():
            model, folder = config.stages[stage].model, output / FOLDERS[stage]
            if workers.chief:
                print(f"{stage}: {model.architecture}, into {folder}", flush=True)
            result = train_network(
                model,
                config.stages[stage].training,
                task,
                files["train"],
                files.get("eval", []),
                folder,
                initial=start,
            )
            results.append(result)
    if workers.chief:
        print(summary_table(results))
    return results


def _check_start(init: str, model: ModelConfig) -> None:
    """Checks --init before TensorFlow is loaded."""
    published = ModelConfig()
    if init == IMAGENET and (model.width != 1 or model.blocks != published.blocks):
        expected = f"a network of ResNet-50's width (1) and blocks {published.blocks}"
        found = f"width {model.width:g}, blocks {model.blocks}"
        raise SettingsError(f"--init {IMAGENET}", expected, found, "See --preset ct_liver.")
    if init == IMAGENET and model.architecture not in ("mcgcn", "ahnet"):
        raise SettingsError(f"--init {IMAGENET}", "mcgcn or ahnet", model.architecture)
    if init == IMAGENET and model.norm == "group":
        raise SettingsError(f"--init {IMAGENET}", "ResNet-50's batch norm", "norm=group")
    if init not in (SCRATCH, IMAGENET) and not (Path(init) / "model.json").is_file():
        expected = f"a network's folder (with model.json), {IMAGENET} or {SCRATCH}"
        found = "none" if Path(init).is_dir() else "no such folder"
        raise InputError(init, expected, found, did_you_mean(init, (SCRATCH, IMAGENET)))


def summary_table(results: Sequence[TrainingResult]) -> str:
    """Returns a table with a line for each network: size, steps, time, speed, loss, scores."""
    names = list(dict.fromkeys(name for result in results for name in result.dice))
    header = ["network", "weights", "steps", "seconds"]
    header += ["patches/s", "Mvoxels/s", "waiting", "loss", "best step"]
    froc = any(result.measure != "mean_dice" for result in results)
    rows = [[*header, *(["FROC"] if froc else []), *(f"Dice {name}" for name in names)]]
    for result in results:
        numbers = [result.parameters, result.steps, f"{result.seconds:.0f}"]
        numbers += [f"{result.patches_per_second:.2f}", f"{result.voxels_per_second / 1e6:.2f}"]
        numbers += [f"{result.waiting_share:.1%}", f"{result.loss:.4f}"]
        dice = [_dice(result.dice.get(n, math.nan), result.undefined.get(n, 0)) for n in names]
        best = [str(result.best_step), *([_dice(result.score, 0)] if froc else [])]
        rows.append([result.architecture, *map(str, numbers), *best, *dice])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def _dice(value: float, undefined: int) -> str:
    text = "none" if math.isnan(value) else f"{value:.3f}"
    return f"{text} ({undefined} undefined)" if undefined else text


if __name__ == "__main__":
    sys.exit(main())
