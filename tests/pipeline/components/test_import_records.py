"""ImportExampleGen takes over the files of records as they are, of the newest span."""

import pytest
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.orchestration import data_types_utils
from tfx.orchestration.portable.data_types import ExecutionInfo
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


def found_by_driver(component):
    """Returns the parameters and the output artifact that the component's driver makes."""
    output = {"examples": [standard_artifacts.Examples()]}
    given = ExecutionInfo(exec_properties=dict(component.exec_properties), output_dict=output)
    result = component.DRIVER_CLASS(None).run(given)
    properties = data_types_utils.build_value_dict(result.exec_properties)
    return properties, result.output_artifacts["examples"].artifacts[0]


def executed(component, properties, output):
    """Returns the output artifact of the component's executor."""
    examples = standard_artifacts.Examples()
    examples.uri = str(output)
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
    component = import_records(str(folder))
    examples = executed(component, found_by_driver(component)[0], output)
    found = {path.relative_to(output) for path in output.rglob("*") if path.is_file()}
    assert {str(path).removeprefix("Split-") for path in found} == set(FILES)
    for path in found:
        assert (output / path).read_bytes() == FILES[str(path).removeprefix("Split-")]
    assert examples.split_names == '["train", "eval"]'
    assert examples.get_string_custom_property("payload_format") == "FORMAT_TF_EXAMPLE"


def test_a_split_without_records_is_named(tmp_path):
    folder = tmp_path / "records"
    write_files(folder, ["train/b.tfrecord"])
    component = import_records(str(folder))
    with pytest.raises(
        PipelineError, match=r"records/eval/.*: expected files of records, found none"
    ):
        executed(component, component.exec_properties, tmp_path / "examples")


def test_the_newest_span_is_found_whatever_lies_beside_it(tmp_path):
    for name in ("span-9", "span-010", "span-10-old", "span-11.bak"):
        write_files(tmp_path / name, FILES)
    component = import_records(str(tmp_path), in_spans=True)
    properties, artifact = found_by_driver(component)
    assert properties["span"] == artifact.custom_properties["span"].int_value == 10
    config = example_gen_pb2.Input()
    proto_utils.json_to_proto(properties["input_config"], config)
    found = {
        str(path.relative_to(tmp_path))
        for split in config.splits
        for path in tmp_path.glob(split.pattern)
    }
    assert found == {f"span-010/{name}" for name in FILES}
    fingerprint = artifact.custom_properties["input_fingerprint"].string_value
    assert fingerprint == properties["input_fingerprint"] != ""
    (tmp_path / "span-9" / "eval" / "a.tfrecord").write_bytes(b"other")
    assert found_by_driver(component)[0] == properties
    (tmp_path / "span-010" / "eval" / "a.tfrecord").write_bytes(b"other")
    assert found_by_driver(component)[0]["input_fingerprint"] != fingerprint
