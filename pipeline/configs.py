"""Settings of a pipeline, the span folders of its data, and the Beam options of its components."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from ahnet_tf.evaluation.froc import score_names
from ahnet_tf.presets import RunConfig
from preprocessing.errors import ALLOWANCES, InputError, SettingsError
from preprocessing.records.splits import EVAL_FRACTION
from preprocessing.settings import Requirement, fraction, one_of, whole
from preprocessing.tasks import Task

# Sources of the schema, unless it is a file.
SCHEMAS = ("curated", "inferred")
# Findings of data validation that a user may waive.
WAIVERS = {
    "drift": "a new span whose intensities or spacings differ from the one before",
    "skew": "evaluation cases that differ from the training cases",
    "rejected": "cases that conversion rejects",
}
# Between the data folder and a batch's own content; {SPAN} stands for the number.
SPAN_FOLDER = "span-{SPAN}"
# By its full name: Beam's default runner would first look for a runner to download.
LOCAL_RUNNER = "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner"
# Without an image TFX packages its own source for each component, which takes seconds and is only
# needed by workers in other processes.
NO_PACKING = "--sdk_container_image=none"
IN_THIS_PROCESS = ("--direct_running_mode=in_memory", "--direct_num_workers=1")
BEAM_ARGUMENTS = (LOCAL_RUNNER, NO_PACKING, *IN_THIS_PROCESS)
# Where InfraValidator may run TensorFlow Serving: names of TFX's ServingSpec.
SERVING_PLATFORMS = ("local_docker", "kubernetes")

# Names that all engines accept, and that a folder may have.
_NAME = Requirement(
    "1 to 63 lower-case letters, digits and hyphens, no hyphen first",
    lambda name: bool(re.fullmatch("[a-z0-9][a-z0-9-]{0,62}", name)),
)
_SHARE = Requirement("a share between 0 and 1", lambda value: 0 < value < 1)


def pushed_models(output: str | Path, name: str) -> str:
    """Returns the folder or address in which Pusher makes the versions of the model `name`.

    The folder above it holds models as TensorFlow Serving and deploy/compose.yaml expect them.
    """
    return f"{str(output).rstrip('/')}/serving_model/{name}"


def threshold_names(task: Task) -> tuple[str, ...]:
    """Returns the scores a model can be blessed by: Dice of its classes, and lesion detection scores."""
    lesions = ("lesion_recall", *score_names()) if task.target == "heat_map" else ()
    return (*task.class_names[1:], *lesions)


def score_name(threshold: str, task: Task) -> str:
    """Returns the Evaluator's name of the score of a threshold."""
    return f"dice_{threshold}" if threshold in task.class_names else threshold


@attrs.frozen
class PipelineSettings:
    """Settings of everything that a pipeline computes.

    Attributes:
      input: folder of converted records (train/, eval/, task.json), or of volumes.
      output: folder of the run, for everything the pipeline writes.
      task: what the records hold.
      config: networks and trainings of both stages.
      thresholds: the score that a model must reach, by name (`threshold_names`): mean Dice per case of
        a class, or a lesion detection score.
      largest_loss: by how much those scores may be lower than the last blessed model's.
      name: the pipeline's name in its metadata and for the tfx command line, and the pushed model's.
      from_volumes: `input` holds volumes with label maps; the pipeline converts them.
      eval_fraction: share of the cases to evaluate on, where the pipeline converts.
      spans: 0 if `input` is one data set. Else it holds batches of cases, span-1, span-2, ...; the
        newest is checked against the one before, and this many of the newest are used for training.
      warm_start: the 3D network starts from the last blessed model that has not seen the newest data,
        without a 2D stage.
      schema: "curated" (that of the task), "inferred" from the statistics by SchemaGen, or a file.
      tuner_trials: number of learning rates tried before the trainings, 0 for none.
      tuner_steps: optimizer steps of each trial.
      allow: names of `WAIVERS`, and of `preprocessing.errors.ALLOWANCES` for the conversion.
      serving_image: TensorFlow Serving's image REPOSITORY:TAG, in which TFX's InfraValidator tests the
        model; empty without containers, and then the embedded server in its own process tests it.
      serving_platform: one of `SERVING_PLATFORMS`, for that image.
    """

    input: str
    output: str
    task: Task
    config: RunConfig
    thresholds: dict[str, float]
    largest_loss: float = attrs.field(default=0.0, validator=fraction("a Dice"))
    name: str = attrs.field(default="ahnet", validator=_NAME)
    from_volumes: bool = False
    eval_fraction: float = attrs.field(default=EVAL_FRACTION, validator=_SHARE)
    spans: int = attrs.field(default=0, validator=whole(0))
    warm_start: bool = False
    schema: str = "curated"
    tuner_trials: int = attrs.field(default=0, validator=whole(0))
    tuner_steps: int = attrs.field(default=100, validator=whole(1))
    allow: tuple[str, ...] = attrs.field(
        default=(),
        validator=Requirement(
            f"names among {', '.join([*WAIVERS, *ALLOWANCES])}",
            lambda names: {*names} <= {*WAIVERS, *ALLOWANCES},
        ),
    )
    serving_image: str = attrs.field(
        default="",
        validator=Requirement(
            "REPOSITORY:TAG", lambda image: bool(re.fullmatch(r"(\S+:[\w.-]+)?", image))
        ),
    )
    serving_platform: str = attrs.field(
        default=SERVING_PLATFORMS[0], validator=one_of(*SERVING_PLATFORMS)
    )

    def __attrs_post_init__(self) -> None:
        names = threshold_names(self.task)
        if not self.thresholds:
            raise SettingsError("thresholds", f"one or more of {', '.join(names)}", "none")
        for name, least in self.thresholds.items():
            if name not in names:
                raise SettingsError("thresholds", f"names among {', '.join(names)}", repr(name))
            if not 0 <= least <= 1:
                expected = "a Dice from 0 to 1" if name in self.task.class_names else "a share"
                raise SettingsError(f"threshold of {name}", expected, least)

    def score_thresholds(self) -> dict[str, float]:
        """Returns the thresholds by the Evaluator's names of the scores."""
        return {score_name(name, self.task): least for name, least in self.thresholds.items()}

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain JSON types."""
        return attrs.asdict(self, recurse=False) | {
            "task": self.task.to_dict(),
            "config": self.config.to_dict(),
            "allow": list(self.allow),
        }


def spans_of(data: str | Path) -> dict[int, Path]:
    """Returns the folders of all spans by number, in ascending order; InputError without a folder."""
    found = {}
    try:
        folders = list(Path(data).iterdir())
    except OSError as error:
        raise InputError(data, "a folder of batches of cases", error.strerror) from None
    for folder in folders:
        match = re.fullmatch(SPAN_FOLDER.format(SPAN=r"(\d+)"), folder.name)
        if match and folder.is_dir():
            found[int(match[1])] = folder
    return dict(sorted(found.items()))


def newest_span(data: str | Path) -> Path:
    """Returns the folder of the newest span; raises InputError if there is none."""
    spans = spans_of(data)
    if not spans:
        expected = "batches of cases in folders span-1, span-2"
        raise InputError(data, expected, "none", "Omit --spans if the folder is one data set.")
    return spans[max(spans)]


def beam_arguments(options: Sequence[str]) -> list[str]:
    """Returns Beam's command line for the components from the user's options."""
    names = {option.split("=")[0] for option in options}
    if "--runner" in names:
        return list(options)
    chosen = any(name.startswith("--direct_") for name in names)
    return [LOCAL_RUNNER, NO_PACKING, *(() if chosen else IN_THIS_PROCESS), *options]


def own_beam_options(arguments: Sequence[str]) -> list[str]:
    """Returns the user's options among `beam_arguments`; the conversion has its own defaults."""
    return [each for each in arguments if each not in BEAM_ARGUMENTS]
