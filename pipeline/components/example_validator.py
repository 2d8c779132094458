"""TFX's ExampleValidator, whose checks of our own may also arrive as text, as pods of version 2 get them."""

from __future__ import annotations

from typing import Any

from tensorflow_data_validation.anomalies.proto.custom_validation_config_pb2 import (
    CustomValidationConfig,
)
from tfx import components
from tfx.components.example_validator import executor
from tfx.dsl.components.base.executor_spec import ExecutorClassSpec
from tfx.types import Artifact
from tfx.types.standard_component_specs import CUSTOM_VALIDATION_CONFIG_KEY
from tfx.utils import proto_utils


class ReadingExecutor(executor.Executor):
    """TFX's executor, which takes the checks for a message and leaves text unread."""

    def Do(  # noqa: N802, TFX calls it by this name
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        checks = exec_properties.get(CUSTOM_VALIDATION_CONFIG_KEY)
        if isinstance(checks, str):
            message = proto_utils.json_to_proto(checks, CustomValidationConfig())
            exec_properties = exec_properties | {CUSTOM_VALIDATION_CONFIG_KEY: message}
        super().Do(input_dict, output_dict, exec_properties)


class ExampleValidator(components.ExampleValidator):
    """TFX's component with `ReadingExecutor`."""

    EXECUTOR_SPEC = ExecutorClassSpec(ReadingExecutor)
