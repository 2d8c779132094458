"""ImportExampleGen takes over the files of records as they are, of the newest span."""

import pytest
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.proto import example_gen_pb2
from tfx.types import standard_artifacts
from tfx.utils import proto_utils

from pipeline.components.import_records import CopyRecordsExecutor, import_records
from preprocessing.errors import PipelineError

FILES = {
    "train/a.tfrecord.gz": b"\x1f\x8b one",
    "train/b.tfrecord": b"two",
    "eval/a.tfrecord": b"3",
}


def executed(folder, output):
    """Returns the output artifact of the component's executor, with the component's own settings."""
    component = import_records(str(folder))
    examples = standard_artifacts.Examples()
    examples.uri = str(output)
    properties = dict(component.exec_properties)
    assert properties["output_data_format"] == example_gen_pb2.FORMAT_TF_EXAMPLE
    proto_utils.json_to_proto(properties["input_config"], example_gen_pb2.Input())
    context = BaseBeamExecutor.Context(
        beam_pipeline_args=["--runner=DirectRunner"], tmp_dir=str(output) + "-tmp", unique_id="1"
    )
    executor = component.executor_spec.executor_class(context)
    assert isinstance(executor, CopyRecordsExecutor)
    executor.Do({}, {"examples": [examples]}, properties)
    return examples


def write_files(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(FILES[name])


@pytest.mark.slow
def test_files_are_taken_over_byte_for_byte(tmp_path):
    folder, output = tmp_path / "my records", tmp_path / "examples"
    write_files(folder, FILES)
    (folder / "train" / ".a.tfrecord.0f3a.tmp").write_bytes(b"unfinished")
    (folder / "task.json").write_text("{}")
    examples = executed(folder, output)
    found = {path.relative_to(output) for path in output.rglob("*") if path.is_file()}
    assert {str(path).removeprefix("Split-") for path in found} == set(FILES)
    for path in found:
        assert (output / path).read_bytes() == FILES[str(path).removeprefix("Split-")]
    assert examples.split_names == '["train", "eval"]'
    assert examples.get_string_custom_property("payload_format") == "FORMAT_TF_EXAMPLE"


def test_a_split_without_records_is_named(tmp_path):
    folder = tmp_path / "records"
    write_files(folder, ["train/b.tfrecord"])
    with pytest.raises(
        PipelineError, match=r"records/eval/.*: expected files of records, found none"
    ):
        executed(folder, tmp_path / "examples")
