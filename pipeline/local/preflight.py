"""Checks before a pipeline starts: data, output folder, Beam options, earlier and other runs."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.configs import PipelineSettings, newest_span
from preprocessing.errors import InputError, PipelineError, SettingsError
from preprocessing.files import file_lock
from preprocessing.records.splits import SPLITS

if TYPE_CHECKING:
    from ml_metadata import MetadataStore

METADATA_FILE = "metadata.sqlite"
# Characters of a path that TFX and Beam take for a pattern of names.
PATTERN_CHARACTERS = "*?[\\"


def check_launch(
    settings: PipelineSettings, beam_options: Sequence[str], own_options: Sequence[str]
) -> None:
    """Raises an error for anything that is bound to fail later.

    `beam_options` are the arguments that are not among the command's `own_options`, of which one is
    suggested for a misspelt option.

    Raises:
      InputError: a split without readable records, or no labelled cases.
      SettingsError: an option unknown to Beam, a warm start without a model, several workers in
        TF_CONFIG, a path that components can't read, or an output in the data.
      PipelineError: the output folder is not writable.
    """
    from ahnet_tf.training.distribution import check_alone

    check_alone("pipeline")
    _check_paths(settings)
    data = newest_span(settings.input) if settings.spans else Path(settings.input)
    if settings.from_volumes:
        from preprocessing.datasets.discovery import find_cases

        count = len(find_cases([str(data)], need_labels=True))
        if count < 2:
            expected = "two or more labelled cases, one for each split"
            raise InputError(data, expected, f"{count} of them")
    else:
        _check_records(data)
    _check_output(Path(settings.output))
    if settings.warm_start and not _has_blessed_model(settings):
        expected = f"a blessed model for records of this task from a run in {settings.output}"
        remedy = "Run the pipeline without --warm-start first."
        raise SettingsError("--warm-start", expected, "none", remedy)
    if beam_options:
        from preprocessing.records.beam_runner import beam_runner

        beam_runner(beam_options, own_options)


@contextlib.contextmanager
def only_run_in(output: Path) -> Iterator[None]:
    """Locks a folder for one run; raises PipelineError while another one holds it."""
    with file_lock(output / ".lock") as mine:
        if not mine:
            expected, remedy = "no other run in this folder", "Choose another --output."
            raise PipelineError(output, expected, "one in progress", remedy)
        yield


def open_store(metadata: Path) -> MetadataStore:
    """Opens a pipeline's metadata for reading, also during a run; InputError without the file."""
    if not metadata.is_file():
        remedy = "It is in the folder of the run; name it with --metadata."
        raise InputError(metadata, "a pipeline's metadata", "no such file", remedy)
    from ml_metadata import MetadataStore
    from ml_metadata.proto.metadata_store_pb2 import ConnectionConfig

    connection = ConnectionConfig()
    connection.sqlite.filename_uri = str(metadata)
    connection.sqlite.connection_mode = connection.sqlite.READONLY
    return MetadataStore(connection)


def _check_paths(settings: PipelineSettings) -> None:
    # Volumes are read by the conversion, which takes a path as it is.
    paths = {} if settings.from_volumes else {"--input": settings.input}
    for option, path in (paths | {"--output": settings.output}).items():
        if any(character in path for character in PATTERN_CHARACTERS):
            expected = f"a path without any of {' '.join(PATTERN_CHARACTERS)}"
            raise SettingsError(option, expected, path, "Rename the folder, or move it.")
    if Path(settings.output).is_relative_to(settings.input):
        expected = f"a folder outside the data, {settings.input}"
        remedy = "A run's own files would make its data look changed."
        raise SettingsError("--output", expected, settings.output, remedy)


def _check_records(data: Path) -> None:
    import tensorflow as tf

    from ahnet_tf.data.records import find_records, read_files

    def has_record(file: str) -> bool:
        try:
            return bool(list(read_files([file]).take(1)))
        except tf.errors.DataLossError as error:
            raise InputError(file, "readable TFRecords", error.message) from None

    for split in SPLITS:
        files = find_records(data / split)
        if not any(has_record(file) for file in files):
            found = f"{len(files)} files without any"
            remedy = "Write them with python -m preprocessing.convert, with a case for each split."
            raise InputError(data / split, f"records of the {split} split", found, remedy)


def _has_blessed_model(settings: PipelineSettings) -> bool:
    metadata = Path(settings.output) / METADATA_FILE
    if not metadata.is_file():
        return False
    from tfx.utils import path_utils

    from pipeline.components.resolvers import other_records

    store = open_store(metadata)
    blessings = [each.custom_properties for each in store.get_artifacts_by_type("ModelBlessing")]
    blessed = {
        each["current_model_id"].int_value for each in blessings if each["blessed"].int_value == 1
    }
    task = settings.task.to_dict()
    return any(
        not other_records(path_utils.serving_model_path(model.uri), task)
        for model in store.get_artifacts_by_id(list(blessed))
    )


def _check_output(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output).close()
    except OSError as error:
        raise PipelineError(output, "a folder that can be written to", error.strerror) from None
