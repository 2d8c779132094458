"""The model pushed last, for engines without a store of metadata to ask for the last blessed one."""

# TFX reads the annotations of `last_pushed_model` as they stand: no postponed evaluation here.

from typing import Any

from tfx import components
from tfx.components.evaluator import executor
from tfx.dsl.component.experimental.annotations import OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.dsl.components.base.executor_spec import BeamExecutorSpec
from tfx.dsl.io import fileio
from tfx.types import Artifact, standard_artifacts
from tfx.types.standard_component_specs import BASELINE_MODEL_KEY
from tfx.utils import io_utils, path_utils


@component
def last_pushed_model(
    pushed: Parameter[str], model: OutputArtifact[standard_artifacts.Model]
) -> None:
    """A component that copies the newest version from the folder of pushed models, if there is one.

    Only blessed models are pushed. The copy keeps what a score was compared with.
    """
    names = fileio.listdir(pushed) if fileio.exists(pushed) else []
    versions = [int(name.rstrip("/")) for name in names if name.rstrip("/").isdigit()]
    fileio.makedirs(model.uri)
    if versions:
        target = path_utils.serving_model_dir(model.uri)
        io_utils.copy_dir(f"{pushed}/{max(versions)}", target)


class _AgainstPushed(executor.Executor):
    """Evaluates without a baseline where `last_pushed_model` found none."""

    def Do(  # noqa: N802, TFX calls it by this name
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        found = [
            model
            for model in input_dict.get(BASELINE_MODEL_KEY, [])
            if fileio.exists(path_utils.serving_model_dir(model.uri))
        ]
        super().Do(input_dict | {BASELINE_MODEL_KEY: found}, output_dict, exec_properties)


class EvaluatorAgainstPushed(components.Evaluator):
    """TFX's Evaluator, for a baseline from `last_pushed_model`."""

    EXECUTOR_SPEC = BeamExecutorSpec(_AgainstPushed)
