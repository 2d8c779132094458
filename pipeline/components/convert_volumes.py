"""ConvertVolumes: the Beam conversion of volumes to records as a TFX component."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

from tfx.dsl.components.base import base_driver
from tfx.dsl.components.base.base_beam_component import BaseBeamComponent
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.dsl.components.base.executor_spec import BeamExecutorSpec
from tfx.orchestration.data_types_utils import set_metadata_value
from tfx.orchestration.portable import base_driver as portable_driver
from tfx.orchestration.portable import data_types
from tfx.proto.orchestration.driver_output_pb2 import DriverOutput
from tfx.types import Artifact, Channel, artifact_utils, standard_artifacts
from tfx.types.component_spec import ChannelParameter, ComponentSpec, ExecutionParameter
from tfx.types.experimental.simple_artifacts import File

from pipeline.configs import own_beam_options, spans_of
from preprocessing.convert import convert
from preprocessing.errors import PipelineError
from preprocessing.files import input_state
from preprocessing.records.output_folder import MANIFEST, TASK
from preprocessing.records.splits import SPLITS
from preprocessing.tasks import task_from_dict

# The waiver (`PipelineSettings.allow`) for cases that the conversion rejects.
REJECTED = "rejected"


class ConvertVolumesSpec(ComponentSpec):
    """The component's interface; its driver sets `span` and `fingerprint`."""

    PARAMETERS: ClassVar = {
        "volumes": ExecutionParameter(type=str),
        "settings": ExecutionParameter(type=str),
        "spans": ExecutionParameter(type=int),
        "span": ExecutionParameter(type=int, optional=True),
        "fingerprint": ExecutionParameter(type=str, optional=True),
    }
    INPUTS: ClassVar[dict[str, ChannelParameter]] = {}
    OUTPUTS: ClassVar = {
        "examples": ChannelParameter(type=standard_artifacts.Examples),
        # A folder with manifest.json (the outcome of each case) and task.json.
        "manifest": ChannelParameter(type=File),
    }


class FindVolumes(base_driver.BaseDriver, portable_driver.BaseDriver):
    """Finds the newest span and fingerprints its files, so that changed volumes miss the cache."""

    def run(self, execution_info: data_types.ExecutionInfo) -> DriverOutput:
        """Adds span and fingerprint to the component's parameters and outputs."""
        parameters = dict(execution_info.exec_properties)
        span = max(spans_of(parameters["volumes"]), default=0) if parameters["spans"] else 0
        digest = fingerprint(_folder(parameters, span))
        result = DriverOutput()
        for name, value in (parameters | {"span": span, "fingerprint": digest}).items():
            set_metadata_value(result.exec_properties[name], value)
        for key, artifacts in execution_info.output_dict.items():
            artifact = copy.deepcopy(artifacts[0].mlmd_artifact)
            artifact.custom_properties["span"].int_value = span
            artifact.custom_properties["input_fingerprint"].string_value = digest
            result.output_artifacts[key].artifacts.append(artifact)
        return result


class ConvertVolumesExecutor(BaseBeamExecutor):
    """Runs `preprocessing.convert` and moves its two splits to the component's outputs."""

    def Do(  # noqa: N802, TFX's name
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Converts the volumes of one span; resumes a run that was killed.

        Raises PipelineError if a case was rejected and that is not allowed, or a split has no case.
        """
        settings = json.loads(exec_properties["settings"])
        volumes = str(_folder(exec_properties, exec_properties["span"]))
        examples, manifest = (output_dict[name][0] for name in ("examples", "manifest"))
        # Whether rejected cases are allowed does not change the records.
        allow = [name for name in settings["allow"] if name != REJECTED]
        content = [settings | {"allow": allow}, exec_properties["fingerprint"]]
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        # Beside the component's outputs, where the next run with the same input finds it.
        records = Path(examples.uri).parents[1] / "unfinished" / key / "records"
        if not _is_converted(records):
            shutil.rmtree(records, ignore_errors=True)
            convert(
                [volumes],
                str(records),
                task_from_dict(settings["task"]),
                seed=settings["seed"],
                eval_fraction=settings["eval_fraction"],
                allow=allow,
                resume=True,
                beam_options=own_beam_options(self._beam_pipeline_args),
            )
        _check(json.loads((records / MANIFEST).read_text(encoding="utf-8")), volumes, settings)
        # A run that is killed anywhere here leaves what the next one can continue with: each step may
        # be repeated, and all records move at once.
        for name in (MANIFEST, TASK):
            shutil.copy(records / name, Path(manifest.uri) / name)
        for split in SPLITS:
            if (records / split).is_dir():
                (records / split).rename(records / f"Split-{split}")
        # A conversion that is killed at its end leaves the outcomes of its cases, too.
        for path in records.iterdir():
            if path.name not in (MANIFEST, TASK, *(f"Split-{split}" for split in SPLITS)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(examples.uri, ignore_errors=True)
        records.rename(examples.uri)
        for name in (MANIFEST, TASK):
            (Path(examples.uri) / name).unlink()
        examples.split_names = artifact_utils.encode_split_names(list(SPLITS))
        shutil.rmtree(records.parent)


class ConvertVolumes(BaseBeamComponent):
    """The component; outputs `examples` (splits train and eval) and `manifest`.

    `volumes` is a data set folder (see `preprocessing.datasets.discovery`), or with `spans` above 0
    the folder of spans, of which the newest is converted. `settings` holds `task`, `seed`,
    `eval_fraction`, `allow` and `code_version` as plain JSON types.
    """

    SPEC_CLASS = ConvertVolumesSpec
    EXECUTOR_SPEC = BeamExecutorSpec(ConvertVolumesExecutor)
    DRIVER_CLASS = FindVolumes

    def __init__(self, volumes: str, settings: dict[str, Any], spans: int = 0):
        super().__init__(
            ConvertVolumesSpec(
                volumes=volumes,
                settings=json.dumps(settings, sort_keys=True),
                spans=spans,
                examples=Channel(type=standard_artifacts.Examples),
                manifest=Channel(type=File),
            )
        )


def fingerprint(folder: str | Path) -> str:
    """Returns a digest of the `input_state` of a folder."""
    return hashlib.sha256(repr(input_state(Path(folder))).encode()).hexdigest()[:16]


def _folder(parameters: dict[str, Any], span: int) -> Path:
    volumes = Path(parameters["volumes"])
    return spans_of(volumes)[span] if parameters["spans"] else volumes


def _is_converted(records: Path) -> bool:
    """Returns whether a killed run left a whole conversion, its splits perhaps renamed already."""
    names = [(records / split, records / f"Split-{split}") for split in SPLITS]
    there = all(before.is_dir() or after.is_dir() for before, after in names)
    return there and (records / MANIFEST).is_file() and (records / TASK).is_file()


def _check(manifest: dict[str, Any], volumes: str, settings: dict[str, Any]) -> None:
    rejected = [case for case in manifest["cases"] if case["status"] == "rejected"]
    if rejected and REJECTED not in settings["allow"]:
        first = f"{rejected[0]['case_id']}: {rejected[0]['reason']}"
        found = f"{len(rejected)} that the conversion rejects, first {first}"
        remedy = f"Correct or remove them, or leave them out by --allow {REJECTED}."
        raise PipelineError(volumes, f"{manifest['found']} valid cases", found, remedy)
    empty = [name for name in SPLITS if not manifest["splits"][name]["cases"]]
    if empty:
        remedy = "A data set needs at least two cases."
        found = f"none for {', '.join(empty)}"
        raise PipelineError(volumes, "cases for both splits", found, remedy)
