"""Runs the components of a pipeline in this process and reports what each one did."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from absl import logging as absl_logging
from ml_metadata.proto.metadata_store_pb2 import Execution
from tfx.dsl.compiler import constants
from tfx.orchestration import metadata
from tfx.orchestration.local import local_dag_runner, runner_utils
from tfx.orchestration.portable import launcher, runtime_parameter_utils
from tfx.orchestration.portable.mlmd import execution_lib
from tfx.proto.orchestration import pipeline_pb2
from tfx.types import Artifact

from preprocessing.errors import AHNetError, PipelineError

# Bounds the message of another's error, which may hold whole records.
MOST_CHARACTERS = 500
_IN_BEAM = re.compile(r"\s*\[while running '.*?'\]")
# A value of bytes, as Python shows it: serialized records have voxels and case ids.
_BYTES = re.compile(r"""b'[^']*'|b"[^"]*\"""")


@dataclass(frozen=True)
class ComponentRun:
    """Outcome of one component.

    Attributes:
      seconds: wall-clock time, metadata access included.
      executed: whether its executor ran; False for cached outputs and for resolvers.
      outputs: the output artifact, by output name.
    """

    name: str
    seconds: float
    executed: bool
    outputs: dict[str, Artifact]


class ReportingRunner(local_dag_runner.LocalDagRunner):
    """TFX's local runner, which also prints each component and records it in `components`.

    Unlike the base class it stops at a component whose inputs can't be resolved.
    """

    def __init__(self) -> None:
        super().__init__()
        self.components: list[ComponentRun] = []

    def run_with_ir(
        self, pipeline: pipeline_pb2.Pipeline, run_options: pipeline_pb2.RunOptions | None = None
    ) -> None:
        """Runs a compiled pipeline, for `run`; a component's failure is raised as PipelineError."""
        run_id = time.strftime("%Y-%m-%dT%H:%M:%S") + f".{time.time_ns() % 10**9:09d}"
        runtime_parameter_utils.substitute_runtime_parameter(
            pipeline, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: run_id}
        )
        deployment = runner_utils.extract_local_deployment_config(pipeline)
        connection = deployment.metadata_connection_config
        connection = getattr(connection, connection.WhichOneof("connection_config"))
        for number, node in enumerate(pipeline.nodes, start=1):
            name = node.pipeline_node.node_info.id
            title = f"[{number}/{len(pipeline.nodes)}] {name}"
            print(f"{title}: started", flush=True)
            executor = runner_utils.extract_executor_spec(deployment, name)
            component_launcher = launcher.Launcher(
                pipeline_node=node.pipeline_node,
                mlmd_connection=metadata.Metadata(connection),
                pipeline_info=pipeline.pipeline_info,
                pipeline_runtime_spec=pipeline.runtime_spec,
                executor_spec=executor,
                custom_driver_spec=runner_utils.extract_custom_driver_spec(deployment, name),
            )
            start = time.monotonic()
            with _own_error(name):
                execution_id = component_launcher.launch().execution_id
            with metadata.Metadata(connection) as handle:
                (execution,) = handle.store.get_executions_by_id([execution_id])
                found = execution_lib.get_output_artifacts(handle, execution_id)
            if not execution_lib.is_execution_successful(execution):
                state = Execution.State.Name(execution.last_known_state)
                raise PipelineError(f"component {name}", "inputs that can be resolved", state)
            outputs = {key: artifacts[0] for key, artifacts in found.items()}
            seconds = time.monotonic() - start
            cached = execution.last_known_state == Execution.CACHED
            executed = executor is not None and not cached
            self.components.append(ComponentRun(name, seconds, executed, outputs))
            how = "unchanged, not executed" if cached else "finished"
            print(f"{title}: {how}, {seconds:.1f} s", flush=True)


@contextlib.contextmanager
def quiet_logs(debug: bool) -> Iterator[None]:
    """Limits the logs of TFX, Beam and TensorFlow to errors, except with `debug`."""
    if debug:
        yield
        return
    # Restored afterwards, for programs that embed a pipeline.
    with contextlib.ExitStack() as stack:
        for logger in map(logging.getLogger, ("apache_beam", "root", "tensorflow")):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        stack.callback(absl_logging.set_verbosity, absl_logging.get_verbosity())
        absl_logging.set_verbosity(absl_logging.FATAL)
        yield


@contextlib.contextmanager
def _own_error(name: str) -> Iterator[None]:
    """Converts any exception of a component into a typed error with its message."""
    try:
        yield
    except Exception as error:
        # Beam inserts the failing step into the text of an error that it raises again.
        if isinstance(error, AHNetError) and not _IN_BEAM.search(str(error)):
            raise
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, AHNetError):
            cause = cause.__cause__
        raise PipelineError(
            f"component {name}", "success", _own_words(cause), "--debug shows the traceback."
        ) from error


def _own_words(error: BaseException) -> str:
    """Returns the message of an error without the lines of the framework, and not all of a long one.

    Beam passes on a worker's error as the text of a traceback, whose last line is the error.
    """
    lines = [line.strip() for line in str(error).splitlines()]
    raised = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception)\b", line)]
    if "Traceback (most recent call last):" not in lines or not raised:
        own = f"{type(error).__name__}: {_IN_BEAM.sub('', str(error))}"
        return own.rstrip(".") if isinstance(error, AHNetError) else _brief(own)
    own = re.sub(r"^(RuntimeError: )*", "", _IN_BEAM.sub("", raised[-1]))
    return _brief(re.sub(r"^([A-Za-z_]\w*\.)+", "", own))


def _brief(text: str) -> str:
    text = _BYTES.sub("b'...'", text)
    return text.rstrip(".") if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."
