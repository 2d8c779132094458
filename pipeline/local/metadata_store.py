"""The ML Metadata store of local runs: opening it, and what it says about executions and models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_metadata import MetadataStore
from ml_metadata.proto import metadata_store_pb2

from preprocessing.errors import InputError, PipelineError

METADATA_FILE = "metadata.sqlite"
Event, State = metadata_store_pb2.Event, metadata_store_pb2.Execution.State


def open_store(metadata: Path) -> MetadataStore:
    """Opens a pipeline's metadata store for reading.

    Raises:
      InputError: no such file.
    """
    if not metadata.is_file():
        remedy = "It is in the folder of the run; name it with --metadata."
        raise InputError(metadata, "a pipeline's metadata", "no such file", remedy)
    connection = metadata_store_pb2.ConnectionConfig()
    connection.sqlite.filename_uri = str(metadata)
    # Reading does not disturb a run in progress.
    connection.sqlite.connection_mode = metadata_store_pb2.SqliteMetadataSourceConfig.READONLY
    return MetadataStore(connection)


def has_blessed_model(metadata: Path) -> bool:
    """Returns whether a run with this metadata file has blessed a model."""
    if not metadata.is_file():
        return False
    return any(
        blessing.custom_properties["blessed"].int_value == 1
        for blessing in open_store(metadata).get_artifacts_by_type("ModelBlessing")
    )


def read_execution(
    store: MetadataStore, name: str, execution_id: int
) -> tuple[bool, dict[str, str], dict[str, dict[str, Any]]]:
    """Returns whether an execution was cached, and folders and properties of its outputs by name.

    Raises:
      PipelineError: the execution did not complete; `name` is that of its component.
    """
    (execution,) = store.get_executions_by_id([execution_id])
    if execution.last_known_state not in (State.COMPLETE, State.CACHED):
        state = State.Name(execution.last_known_state)
        raise PipelineError(f"component {name}", "inputs that can be resolved", state)
    folders: dict[str, str] = {}
    properties: dict[str, dict[str, Any]] = {}
    for event in store.get_events_by_execution_ids([execution_id]):
        if event.type in (Event.OUTPUT, Event.INTERNAL_OUTPUT):
            key = event.path.steps[0].key
            (artifact,) = store.get_artifacts_by_id([event.artifact_id])
            folders[key] = artifact.uri
            properties[key] = {
                name: getattr(value, value.WhichOneof("value"))
                for name, value in artifact.custom_properties.items()
                if value.WhichOneof("value")
            }
    return execution.last_known_state == State.CACHED, folders, properties
