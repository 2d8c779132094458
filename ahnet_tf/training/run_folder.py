"""The folder of a run.

model.json, weights   network of the best evaluation so far (a checkpoint folder); without any
                      evaluation that of the last step
last/                 network of the last step, once the run is complete
checkpoints/          train state to resume from: weights, optimizer, step
training.json         settings, and digests of the records and start weights
task.json             what the records hold
history.csv           loss, learning rate, Dice, FROC, throughput
tensorboard/          the same for TensorBoard, with pictures of the evaluations
overlay.png           prediction of one tile in the last evaluation, if there was any
evaluation.json       scores of the best evaluation, if there was any, with Dice per case
transfer.txt          start weights taken from another network, if any
result.json           the summary; its presence marks the run as complete
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ahnet_tf.config import IMAGENET, ModelConfig, TrainingConfig
from ahnet_tf.training.checkpoints import CHECKPOINTS
from ahnet_tf.training.distribution import sum_over_workers, workers_of
from ahnet_tf.training.logs import read_history
from ahnet_tf.training.train_state import Progress, TrainState
from ahnet_tf.training.validation import MEAN_DICE, CaseDice, measure_of
from ahnet_tf.weights.checkpoint import WEIGHTS, save_network, weights_content
from preprocessing.errors import SettingsError
from preprocessing.files import remove_stale_temporaries, without_nan, write_json
from preprocessing.settings import read_object, to_dict
from preprocessing.tasks import Task

HISTORY, EVALUATION, RESULT = "history.csv", "evaluation.json", "result.json"

# Settings that may differ when a run resumes: they don't change what is learned.
FREE_SETTINGS = ("replicas", "log_every", "checkpoint_every", "jit_compile", "recompute")


@dataclass(frozen=True)
class TrainingResult:
    """Summary of a complete training.

    Attributes:
      output: the run's folder, which holds the network of `best_step`.
      parameters: number of trainable weights.
      best_step: step of the best evaluation, the latest of several; the last step without evaluations.
      dice: mean Dice per case at that step, by class name; NaN if no case has the class; empty
        without evaluations.
      undefined: number of cases without a Dice, by class name.
      loss: mean loss over the last logged steps.
      seconds: time spent training and evaluating, without steps that were repeated after a kill.
      patches_per_second, voxels_per_second: medians over the logged steps.
      waiting_share: mean share of the steps' time spent waiting for data.
      measure: name of the measure that the best evaluation maximises (`validation.measure_of`).
      score: its value there; NaN without evaluations.
    """

    output: str
    architecture: str
    parameters: int
    steps: int
    best_step: int
    dice: dict[str, float]
    undefined: dict[str, int]
    loss: float
    seconds: float
    patches_per_second: float
    voxels_per_second: float
    waiting_share: float
    measure: str = MEAN_DICE
    score: float = math.nan


@contextlib.contextmanager
def own_folder(output: Path, chief: bool) -> Iterator[Path]:
    """Yields the folder that a worker writes into: the run's for the chief, else a temporary one.

    Incomplete files of a killed chief are removed. Raises SettingsError as `locked` does.
    """
    if chief:
        with locked(output):
            for folder in (output, output / "last"):
                remove_stale_temporaries(folder)
            yield output
        return
    with tempfile.TemporaryDirectory(prefix="ahnet-worker-") as temporary:
        yield Path(temporary)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Creates a folder and locks it, where the file system can; SettingsError if another run has it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # NFS, for one, locks no folders.
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                remedy = "Wait until it ends, or choose another output folder."
                raise SettingsError(folder, "one training", "another running", remedy) from None
        yield
    finally:
        os.close(descriptor)


def is_complete(strategy: tf.distribute.Strategy, output: Path) -> bool:
    """Whether the run is complete; waits for all workers.

    Raises SettingsError if they don't see the same run folder.
    """
    complete = (output / RESULT).is_file()
    newest = tf.train.latest_checkpoint(str(output / CHECKPOINTS)) or "-0"
    own = np.array([complete, int(newest.rsplit("-", 1)[1])], np.int64)
    if (sum_over_workers(strategy, own) != own * workers_of().count).any():
        raise SettingsError(
            output,
            "the same folder for all workers",
            "other checkpoints here than elsewhere",
            "Give all workers the same --output, on a shared disk.",
        )
    return complete


def inputs_of(
    config: TrainingConfig,
    train_files: Sequence[str],
    eval_files: Sequence[str],
    initial: keras.Model | str | Path | None,
) -> dict[str, str]:
    """Returns what a run learns from: digests of its records, and its start weights (if they exist).

    The digest of records is of the files' names, sizes and last bytes, where their checksums are, so
    that they may be moved but not exchanged.
    """
    files = {"training records": train_files}
    if config.evaluate_every:
        files["evaluation records"] = eval_files
    inputs = {what: _records_digest(each) for what, each in files.items()}
    if initial is None:
        start = "scratch"
    elif isinstance(initial, keras.Model):
        start = hashlib.sha256(weights_content(initial)).hexdigest()
    elif initial == IMAGENET:
        start = IMAGENET
    elif (Path(initial) / WEIGHTS).is_file():
        start = hashlib.sha256((Path(initial) / WEIGHTS).read_bytes()).hexdigest()
    else:
        return inputs
    return inputs | {"start weights": start}


def _records_digest(files: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path in files:
        size, end = -1, b""
        # A file that can't be read is for its reader to tell.
        with contextlib.suppress(tf.errors.OpError), tf.io.gfile.GFile(path, "rb") as file:
            size = file.size()
            file.seek(max(0, size - 8))
            end = file.read()
        digest.update(os.fsencode(f"{os.path.basename(path)} {size} {end.hex()}\n"))
    return digest.hexdigest()


def check_folder(
    output: Path,
    model_config: ModelConfig,
    config: TrainingConfig,
    task: Task,
    inputs: Mapping[str, str],
) -> dict[str, Any]:
    """Returns the settings of a run; raises SettingsError if one in the folder had others.

    So it does if that learned from other `inputs` (see `inputs_of`).
    """
    settings = {"model": to_dict(model_config), "training": to_dict(config), "task": task.to_dict()}
    path, before = output / "training.json", {}
    if path.is_file():
        before = read_object(path)
        # A setting that an earlier version did not have counts as its default.
        defaults = {"model": to_dict(ModelConfig()), "training": to_dict(TrainingConfig())}
        for section, wanted in settings.items():
            for name, value in wanted.items():
                found = before.get(section, {}).get(name, defaults.get(section, {}).get(name))
                if name not in FREE_SETTINGS and found != value:
                    raise SettingsError(
                        path,
                        f"a run with the {section} setting {name} = {value}",
                        found,
                        "Choose another output folder, or the settings of that run.",
                    )
    # Earlier versions stored none.
    earlier = before.get("inputs", {})
    for what, digest in inputs.items():
        if earlier.get(what, digest) != digest:
            remedy = f"Choose another output folder, or the {what} of that run."
            raise SettingsError(path, f"a run of the same {what}", "one of others", remedy)
    return settings | {"measure": measure_of(task), "inputs": earlier | dict(inputs)}


def claim_folder(
    output: Path,
    own: Path,
    model_config: ModelConfig,
    config: TrainingConfig,
    task: Task,
    inputs: Mapping[str, str],
) -> None:
    """Writes the settings of a run; raises SettingsError as `check_folder` does.

    `own` is the folder that this process writes into, `output` for the chief.
    """
    settings = check_folder(output, model_config, config, task, inputs)
    write_json(own / "training.json", settings)
    write_json(own / "task.json", task.to_dict())


def keep_best(
    found: CaseDice,
    progress: Progress,
    model: keras.Model,
    model_config: ModelConfig,
    own: Path,
) -> dict[str, float]:
    """Saves the network if none before was better; returns the columns of the history."""
    summary = found.summary()
    score = 0.0 if math.isnan(summary["score"]) else summary["score"]
    if score >= float(progress.best_dice):
        save_network(own, model, model_config)
        write_json(own / EVALUATION, without_nan(summary) | {"step": int(progress.step)})
        progress.best_dice.assign(score)
    return {summary["measure"]: summary["score"]} | {
        f"{kind}_{name}": value
        for kind in ("dice", "undefined")
        for name, value in summary[kind].items()
    }


def write_result(
    output: Path,
    model_config: ModelConfig,
    config: TrainingConfig,
    task: Task,
    train_state: TrainState,
) -> None:
    """Writes the summary, which marks the run as complete."""
    step = int(train_state.progress.step)
    best: dict[str, Any] = {"step": step, "dice": {}, "undefined": {}, "score": math.nan}
    if config.evaluate_every:
        best |= json.loads((output / EVALUATION).read_text(encoding="utf-8"))
    rows = read_history(output / HISTORY)
    result = TrainingResult(
        output=str(output),
        architecture=model_config.architecture,
        parameters=sum(math.prod(w.shape) for w in train_state.model.trainable_weights),
        steps=step,
        best_step=best["step"],
        dice=best["dice"],
        undefined=best["undefined"],
        loss=rows[-1]["loss"],
        seconds=round(float(train_state.progress.seconds), 1),
        patches_per_second=statistics.median(row["patches_per_second"] for row in rows),
        voxels_per_second=statistics.median(row["voxels_per_second"] for row in rows),
        waiting_share=statistics.mean(row["waiting_share"] for row in rows),
        measure=measure_of(task),
        score=best["score"],
    )
    write_json(output / RESULT, without_nan(asdict(result)))


def read_result(output: Path) -> TrainingResult:
    """Returns the summary of a complete run."""
    content = json.loads((output / RESULT).read_text(encoding="utf-8"))
    dice = {name: math.nan if value is None else value for name, value in content["dice"].items()}
    score = math.nan if content.get("score") is None else content["score"]
    return TrainingResult(**content | {"dice": dice, "score": score})
