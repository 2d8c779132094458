"""The last test before a push: a server in a process of its own loads the model and answers."""

# TFX reads the annotations of `answer_requests` as they stand: no postponed evaluation here.

import json
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tfx.dsl.component.experimental.annotations import (
    InputArtifact,
    OutputArtifact,
    Parameter,
)
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.io import fileio
from tfx.types import artifact_utils, standard_artifacts
from tfx.utils import io_utils, path_utils

from ahnet_tf.data.records import read_files
from ahnet_tf.inference.predictor import ExportSettings, open_predictor
from pipeline.components.anomaly_gate import EVALUATION_SPLIT
from pipeline.components.trainer import record_files
from pipeline.stages import served
from preprocessing.errors import AHNetError, ServingError
from preprocessing.records.schema import CASE_ID, parse_example
from preprocessing.tasks import Task
from serving.client.sync import AHNetClient

MODEL_NAME = "candidate"
# What Pusher reads, as InfraValidator writes it.
BLESSED = "blessed"
REFUSAL_FILE = "refusal.json"
# By how much a probability may differ between the server and this process.
TOLERANCE = 1e-4


@component
def answer_requests(
    model: InputArtifact[standard_artifacts.Model],
    examples: InputArtifact[standard_artifacts.Examples],
    blessing: OutputArtifact[standard_artifacts.InfraBlessing],
    requests: Parameter[int],
) -> None:
    """A component that serves a model in another process and sends it patches of evaluation cases.

    The model is blessed if all answers are those of the model in this process. Else the reason stands
    in refusal.json, and Pusher does not push.

    Args:
      model: an exported network.
      examples: where the patches come from.
      blessing: custom property `blessed`, 1 or 0.
      requests: patches to send, each of another case where there are so many.
    """
    split = artifact_utils.get_split_uri([examples], EVALUATION_SPLIT)
    try:
        check_answers(
            path_utils.serving_model_path(model.uri), record_files([f"{split}/*"]), requests
        )
        reason = None
    except AHNetError as error:
        reason = str(error)
    io_utils.write_string_file(f"{blessing.uri}/{REFUSAL_FILE}", json.dumps({"reason": reason}))
    blessing.set_int_custom_property(BLESSED, int(reason is None))


def check_answers(export: str, files: Sequence[str], requests: int) -> None:
    """Serves an export and compares its answers with those of the export in this process.

    Args:
      export: SavedModel folder.
      files: record files.
      requests: patches to send.

    Raises:
      ModelError: the export can't be loaded here.
      PipelineError: the server ends before it is ready.
      ServingError: it doesn't answer, or with something else.
    """
    with tempfile.TemporaryDirectory() as folder:
        version = Path(folder) / "1"
        io_utils.copy_dir(export, str(version))
        with ThreadPoolExecutor(1) as beside:
            # This process loads the export and answers while the server is still starting.
            expecting = beside.submit(_answers_here, version, files, requests)
            with (
                served(Path(folder), MODEL_NAME) as (address, _),
                AHNetClient(address, MODEL_NAME) as client,
            ):
                settings, expected = expecting.result()
                if client.describe() != settings:
                    raise ServingError(
                        export, "the settings of the export", "others from the server"
                    )
                for case_id, (image, answer) in expected.items():
                    _compare(client.predict_windows(image), answer, export, case_id)


def first_patches(files: Sequence[str], task: Task, count: int) -> dict[str, np.ndarray]:
    """Returns up to `count` patches [1, z, y, x, channel] as stored, the first of each case."""
    patches: dict[str, np.ndarray] = {}
    for serialized in read_files(list(files)):
        if len(patches) == count:
            break
        record = parse_example(serialized, task)
        patches.setdefault(record[CASE_ID].numpy().decode(), record["image"].numpy()[None])
    return patches


def _answers_here(
    version: Path, files: Sequence[str], requests: int
) -> tuple[ExportSettings, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Returns an export's settings, and by case a patch and this process's answer to it."""
    here = open_predictor(version)
    patches = first_patches(files, here.settings.task, requests)
    answers = {case_id: (image, here.predict(image)) for case_id, image in patches.items()}
    return here.settings, answers


def _compare(answer: np.ndarray, expected: np.ndarray, export: str, case_id: str) -> None:
    difference = np.abs(answer - expected).max()
    # A NaN is no answer either.
    if not difference <= TOLERANCE:
        raise ServingError(
            f"{export}, case {case_id}",
            f"probabilities within {TOLERANCE:g} of the export's own",
            f"a difference of {difference:.3g}",
        )


def is_served(properties: Mapping[str, object]) -> bool:
    """Says whether a model could be served, from the properties of its InfraBlessing."""
    return properties.get(BLESSED) == 1


def serving_sentence(folder: str, properties: Mapping[str, object]) -> str:
    """Returns what became of the attempt to serve a model, from its InfraBlessing."""
    if is_served(properties):
        return "a server in a process of its own loaded the model and answered"
    path = f"{folder}/{REFUSAL_FILE}"
    if not fileio.exists(path):
        return "no server could answer with the model"
    with fileio.open(path, "r") as file:
        return f"no server could answer with the model ({json.load(file)['reason']})"
