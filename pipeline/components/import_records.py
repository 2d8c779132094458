"""ImportExampleGen: takes over files of records as they are.

TFX's own executor reads each record and writes it again with gzip, on one core several times as long as
the conversion itself; what is in the records, StatisticsGen finds out.
"""

from __future__ import annotations

import os
from typing import Any

import apache_beam as beam
from tfx.components import FileBasedExampleGen
from tfx.components.example_gen import driver
from tfx.components.util import examples_utils
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.dsl.components.base.executor_spec import BeamExecutorSpec
from tfx.dsl.io import fileio
from tfx.orchestration import data_types
from tfx.proto import example_gen_pb2
from tfx.types import Artifact, artifact_utils
from tfx.utils import io_utils, proto_utils

from pipeline.configs import SPAN_FOLDER, newest_span, spans_of
from preprocessing.errors import PipelineError
from preprocessing.records.splits import RECORD_PATTERN, SPLITS


class FindRecords(driver.FileBasedDriver):
    """Finds the newest span and fingerprints its files.

    TFX's own search takes any folder whose name begins like a span's for one, and can't read the
    pattern of record files.
    """

    def resolve_exec_properties(
        self,
        exec_properties: dict[str, Any],
        pipeline_info: data_types.PipelineInfo,
        component_info: data_types.ComponentInfo,
    ) -> dict[str, Any]:
        """Adds span and fingerprint to the component's parameters; InputError without a span."""
        config = example_gen_pb2.Input()
        proto_utils.json_to_proto(exec_properties["input_config"], config)
        if not config.splits[0].pattern.startswith(SPAN_FOLDER):
            return super().resolve_exec_properties(exec_properties, pipeline_info, component_info)
        data = exec_properties["input_base"]
        folder = newest_span(data)
        for split in config.splits:
            split.pattern = split.pattern.replace(SPAN_FOLDER, folder.name)
        given = exec_properties | {"input_config": proto_utils.proto_to_json(config)}
        found = super().resolve_exec_properties(given, pipeline_info, component_info)
        return found | {"span": max(spans_of(data))}


class CopyRecordsExecutor(BaseBeamExecutor):
    """Copies the files of each split to the component's output, a Beam element each."""

    def Do(  # noqa: N802, TFX's name
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Copies the files; raises PipelineError if a split has none."""
        config = example_gen_pb2.Input()
        proto_utils.json_to_proto(exec_properties["input_config"], config)
        examples = artifact_utils.get_single_instance(output_dict["examples"])
        examples.split_names = artifact_utils.encode_split_names(
            [split.name for split in config.splits]
        )
        copies = []
        for split in config.splits:
            pattern = os.path.join(exec_properties["input_base"], split.pattern)
            files = sorted(fileio.glob(pattern))
            if not files:
                raise PipelineError(pattern, "files of records", "none")
            target = artifact_utils.get_split_uri([examples], split.name)
            fileio.makedirs(target)
            copies += [(file, os.path.join(target, os.path.basename(file))) for file in files]
        with self._make_beam_pipeline() as pipeline:
            _ = (
                pipeline
                | "Files" >> beam.Create(copies)
                | "Spread" >> beam.Reshuffle()
                | "Copy" >> beam.MapTuple(copy_file)
            )
        examples_utils.set_payload_format(examples, exec_properties["output_data_format"])


def copy_file(source: str, target: str) -> None:
    """Copies a file; a Beam worker may do so again."""
    io_utils.copy_file(source, target, overwrite=True)


class ImportRecords(FileBasedExampleGen):
    """The component; see `import_records`."""

    EXECUTOR_SPEC = BeamExecutorSpec(CopyRecordsExecutor)
    DRIVER_CLASS = FindRecords


def import_records(folder: str, *, in_spans: bool = False) -> ImportRecords:
    """Returns the component, with an output `examples` of the splits train and eval.

    `folder` holds a folder of record files for each split; or `in_spans` folders span-1, span-2, ...
    that do, of which the newest is taken.
    """
    inside = f"{SPAN_FOLDER}/" if in_spans else ""
    splits = [{"name": name, "pattern": f"{inside}{name}/{RECORD_PATTERN}"} for name in SPLITS]
    config = example_gen_pb2.Input(splits=splits)
    return ImportRecords(folder, input_config=config).with_id("ImportExampleGen")
