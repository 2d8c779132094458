"""A training as a file: all that the other workers of a Trainer need to join it."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ahnet_tf.config import ModelConfig, TrainingConfig
from preprocessing.errors import InputError
from preprocessing.files import write_json
from preprocessing.settings import from_dict, to_dict
from preprocessing.tasks import Task, task_from_dict

JOB_FILE = "training_job.json"
# Below a run's folder: where trainings work, see `pipeline.components.trainer.working_folder`.
WORKING_FOLDERS = "artifacts/*/unfinished/*"


@dataclass(frozen=True)
class TrainingJob:
    """What `ahnet_tf.training.trainer.train_network` is called with, by every worker alike.

    Attributes:
      id: of this attempt; another one of the same training has another.
      model: the network.
      training: the recipe.
      task: what the records hold.
      train_files: record files of the training split.
      eval_files: record files of the evaluation split.
      output: the training's working folder.
      initial: folder of the network to start from, if any.
    """

    id: str
    model: ModelConfig
    training: TrainingConfig
    task: Task
    train_files: tuple[str, ...]
    eval_files: tuple[str, ...]
    output: str
    initial: str | None


def make_job(
    model: ModelConfig,
    training: TrainingConfig,
    task: Task,
    train_files: Sequence[str],
    eval_files: Sequence[str],
    output: Path,
    initial: str | None,
) -> TrainingJob:
    """Returns the job of one attempt, its id drawn at random and its paths absolute."""
    return TrainingJob(
        id=secrets.token_hex(8),
        model=model,
        training=training,
        task=task,
        train_files=tuple(map(_absolute, train_files)),
        eval_files=tuple(map(_absolute, eval_files)),
        output=_absolute(str(output)),
        initial=None if initial is None else _absolute(initial),
    )


def write_job(job: TrainingJob) -> Path:
    """Writes a job into its training's folder, whole or not at all; returns the file."""
    path = Path(job.output) / JOB_FILE
    content = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
    settings = {"model": to_dict(job.model), "training": to_dict(job.training)}
    write_json(path, content | settings | {"task": job.task.to_dict()})
    return path


def read_job(path: Path) -> TrainingJob:
    """Reads a job.

    Raises:
      InputError: the file holds none.
      SettingsError: its settings are not known here, or out of range.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content |= {name: tuple(content[name]) for name in ("train_files", "eval_files")}
        content["model"] = from_dict(ModelConfig, content["model"], path)
        content["training"] = from_dict(TrainingConfig, content["training"], path)
        content["task"] = task_from_dict(content["task"])
        return TrainingJob(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise InputError(path, "a training job", found, "Is it of another version?") from None


def newest_job(run: Path) -> TrainingJob | None:
    """Returns the job written last below a run's folder; None where there is none."""
    found = []
    for path in run.glob(f"{WORKING_FOLDERS}/{JOB_FILE}"):
        try:
            found.append((path.stat().st_mtime_ns, read_job(path)))
        except FileNotFoundError:
            # Its training has just ended.
            continue
    return max(found, key=lambda each: each[0])[1] if found else None


def _absolute(path: str) -> str:
    """Returns what another process of whatever working directory understands."""
    return path if "://" in path else os.path.abspath(path)
