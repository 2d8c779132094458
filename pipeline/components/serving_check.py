"""ServingCheck: a model server in another process loads the model and answers requests."""

# TFX reads the annotations of `answer_requests` at run time: no postponed evaluation here.

import contextlib
import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.io import fileio
from tfx.types import artifact_utils, standard_artifacts
from tfx.utils import io_utils, path_utils

from ahnet_tf.data.records import read_files
from ahnet_tf.inference.predictor import ExportSettings, open_predictor
from pipeline.components.trainer import record_files
from pipeline.stages import served
from preprocessing.errors import ModelError, PipelineError, SettingsError
from preprocessing.records.schema import CASE_ID, parse_example
from preprocessing.tasks import Task
from serving.client.sync import AHNetClient
from serving.embedded.loaded_model import load_model

MODEL_NAME = "candidate"
# The property of an InfraBlessing that Pusher reads; InfraValidator writes the same.
BLESSED = "blessed"
REFUSAL_FILE = "refusal.json"
# Largest difference between the probabilities of the server and of this process.
TOLERANCE = 1e-4


@component
def answer_requests(
    model: InputArtifact[standard_artifacts.Model],
    examples: InputArtifact[standard_artifacts.Examples],
    blessing: OutputArtifact[standard_artifacts.InfraBlessing],
    requests: Parameter[int],
    code_version: Parameter[str],
) -> None:
    """A component that serves a model and sends it patches of evaluation cases.

    The model is blessed (custom property `blessed`: 1 or 0) if all answers equal those of the model
    in this process. Otherwise refusal.json holds the reason, and Pusher does not push. `requests`
    is the number of patches, each of another case; with another `code_version` TFX asks again.

    A server that does not start or can't be reached says nothing about the model: the component fails,
    and the next run repeats it.
    """
    export = path_utils.serving_model_path(model.uri)
    reason = None
    try:
        check_answers(export, evaluation_files(examples), requests)
    except (ModelError, SettingsError) as error:
        reason = str(error)
    io_utils.write_string_file(f"{blessing.uri}/{REFUSAL_FILE}", json.dumps({"reason": reason}))
    blessing.set_int_custom_property(BLESSED, int(reason is None))


def evaluation_files(examples: standard_artifacts.Examples) -> list[str]:
    """Returns the record files of the evaluation split."""
    return record_files([f"{artifact_utils.get_split_uri([examples], 'eval')}/*"])


def check_answers(export: str, files: Sequence[str], requests: int) -> None:
    """Compares the answers of a server with those of the same export in this process.

    The first patches of up to `requests` cases in the record files are sent. Raises ModelError if
    answers differ, there is no patch to send or the export can't be loaded, SettingsError for a
    setting of the export that is out of range; PipelineError if the server ends before it is ready for
    another reason, and ServingError if it does not answer.
    """
    if requests < 1 or not any(True for _ in read_files(files).take(1)):
        where, remedy = "serving check", "A model is blessed only if it has answered."
        found = f"{requests} requests, and no record in {len(files)} files"
        raise ModelError(where, "a request, and an evaluation patch to send", found, remedy)
    with tempfile.TemporaryDirectory() as folder:
        version = Path(folder) / "1"
        io_utils.copy_dir(export, str(version))
        with ThreadPoolExecutor(1) as beside, contextlib.ExitStack() as stack:
            # This process loads the export and predicts while the server starts.
            expecting = beside.submit(_answers_here, version, files, requests)
            try:
                address, _ = stack.enter_context(served(Path(folder), MODEL_NAME))
            except PipelineError:
                # As the server does: a model that can't be loaded is refused.
                load_model(version, int(version.name))
                raise
            client = stack.enter_context(AHNetClient(address, MODEL_NAME))
            settings, expected = expecting.result()
            if client.describe() != settings:
                raise ModelError(export, "the settings of the export", "others from the server")
            for case_id, (image, answer) in expected.items():
                _compare(client.predict_windows(image), answer, export, case_id)


def first_patches(files: Sequence[str], task: Task, count: int) -> dict[str, np.ndarray]:
    """Returns the stored first patch [1, z, y, x, channel] of up to `count` cases by case id."""
    patches: dict[str, np.ndarray] = {}
    for serialized in read_files(files):
        if len(patches) == count:
            break
        record = parse_example(serialized, task)
        patches.setdefault(record[CASE_ID].numpy().decode(), record["image"].numpy()[None])
    return patches


def serving_sentence(folder: str, blessed: bool) -> str:
    """Returns the outcome of the serving check in words, from the folder of an InfraBlessing."""
    if blessed:
        return "a server in another process loaded the model and answered"
    path = f"{folder}/{REFUSAL_FILE}"
    reason = ""
    if fileio.exists(path):
        reason = f" ({json.loads(io_utils.read_string_file(path))['reason']})"
    return f"no server could answer with the model{reason}"


def _answers_here(
    version: Path, files: Sequence[str], requests: int
) -> tuple[ExportSettings, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Returns an export's settings, and by case a patch with this process's answer to it."""
    here = open_predictor(version)
    patches = first_patches(files, here.settings.task, requests)
    answers = {case_id: (image, here.predict(image)) for case_id, image in patches.items()}
    return here.settings, answers


def _compare(answer: np.ndarray, expected: np.ndarray, export: str, case_id: str) -> None:
    difference = np.abs(answer - expected).max()
    # The difference to NaN is NaN, which must fail.
    if not difference <= TOLERANCE:
        wanted = f"probabilities within {TOLERANCE:g} of the export's own"
        found = f"a difference of {difference:.3g}"
        raise ModelError(f"{export}, case {case_id}", wanted, found)
