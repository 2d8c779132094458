"""Resolvers on a real metadata store: the spans, statistics and models that a run uses."""

from __future__ import annotations

import json

import pytest
from attrs import evolve
from ml_metadata import MetadataStore
from ml_metadata.proto import metadata_store_pb2 as mlmd
from tfx.types import standard_artifacts

from pipeline.components.anomaly_gate import stop_on_anomalies
from pipeline.components.resolvers import (
    EarlierBlessedModel,
    NewestSpans,
    SpansBefore,
    UnseenByModel,
    last_pushed_model,
)
from preprocessing.files import write_json

GATE = stop_on_anomalies.get_class_type()


class History:
    """Runs of a pipeline in a metadata store in memory: each imports a span, some train on it."""

    def __init__(self, folder):
        self.folder = folder
        connection = mlmd.ConnectionConfig()
        connection.fake_database.SetInParent()
        self.store = MetadataStore(connection)
        self.artifacts: dict[str, list] = {}

    def artifact(self, kind, **properties):
        """Puts one artifact into the store and returns it as components see it."""
        artifact = kind()
        for name, value in properties.items():
            artifact.set_int_custom_property(name, value)
        artifact.type_id = self.store.put_artifact_type(artifact.artifact_type)
        (artifact.id,) = self.store.put_artifacts([artifact.mlmd_artifact])
        self.artifacts.setdefault(kind.TYPE_NAME, []).append(artifact)
        return artifact

    def execution(self, type_name, inputs, outputs=(), state=mlmd.Execution.COMPLETE):
        type_id = self.store.put_execution_type(mlmd.ExecutionType(name=type_name))
        (number,) = self.store.put_executions(
            [mlmd.Execution(type_id=type_id, last_known_state=state)]
        )
        for artifacts, kind in ((inputs, mlmd.Event.INPUT), (outputs, mlmd.Event.OUTPUT)):
            for key, artifact in dict(artifacts).items():
                event = mlmd.Event(execution_id=number, artifact_id=artifact.id, type=kind)
                event.path.steps.add(key=key)
                self.store.put_events([event])

    def span(self, number, passes=True, gate=GATE):
        """Imports a span and validates it; returns its examples and statistics."""
        examples = self.artifact(standard_artifacts.Examples, span=number)
        statistics = self.artifact(standard_artifacts.ExampleStatistics)
        state = mlmd.Execution.COMPLETE if passes else mlmd.Execution.FAILED
        inputs = {"examples": examples, "statistics": statistics}
        self.execution(gate, inputs, state=state)
        return examples, statistics

    def model(self, examples, blessed, task):
        """Trains on examples of a task and judges the model; returns it."""
        model = self.artifact(standard_artifacts.Model)
        model.uri = str(self.folder / str(model.id))
        write_export(self.folder / str(model.id) / "Format-Serving", task)
        self.execution("Trainer", {"examples": examples}, {"model": model})
        self.artifact(
            standard_artifacts.ModelBlessing, blessed=int(blessed), current_model_id=model.id
        )
        return model

    def resolve(self, strategy, current, **kinds):
        given = {"current": [current]}
        given |= {key: self.artifacts.get(name, []) for key, name in kinds.items()}
        return strategy.resolve_artifacts(self.store, given)


def write_export(folder, task):
    """Writes what an export says about the records that its model reads."""
    path = folder / "assets.extra" / "ahnet.json"
    path.parent.mkdir(parents=True)
    write_json(path, {"task": task.to_dict()})


@pytest.fixture
def history(tmp_path):
    return History(tmp_path)


def ids(artifacts):
    return [artifact.id for artifact in artifacts]


def test_the_newest_spans_that_passed_are_trained_on(history):
    first, _ = history.span(1)
    history.span(2, passes=False)
    old_third, _ = history.span(3)
    third, _ = history.span(3)
    current, _ = history.span(4)

    def newest(count, current):
        found = history.resolve(NewestSpans(count), current, examples="Examples")
        return ids(found["examples"])

    assert newest(1, current) == [current.id]
    assert newest(2, current) == ids([current, third])
    assert newest(9, current) == ids([current, third, first])
    # An earlier run, taken up again from the cache, keeps to its own import.
    assert newest(2, old_third) == ids([old_third, first])


BEFORE = {
    "examples": "Examples",
    **dict.fromkeys(("statistics", "together", "learned"), "ExampleStatistics"),
}


def test_a_new_span_is_compared_with_the_one_before_that_passed(history):
    first, statistics = history.span(1)
    history.span(2, passes=False)
    current, _ = history.span(3)
    found = history.resolve(SpansBefore(2, 0), current, **BEFORE)
    assert ids(found["statistics"]) == [statistics.id]
    assert history.resolve(SpansBefore(2, 0), first, **BEFORE)["statistics"] == []


def test_the_spans_that_are_used_together_and_those_of_a_start_model_are_found(history):
    _, first = history.span(1)
    _, second = history.span(2)
    history.span(3)
    _, third = history.span(3)  # imported again
    current, _ = history.span(4)

    def found(spans, warm_start):
        resolved = history.resolve(SpansBefore(spans, warm_start), current, **BEFORE)
        return {ids(resolved["statistics"])[0]}, *(
            {*ids(resolved[key])} for key in ("together", "learned")
        )

    assert found(1, 0) == ({third.id}, set(), set())
    assert found(3, 0) == ({third.id}, {third.id, second.id}, set())
    assert found(2, 1) == ({third.id}, {third.id}, {third.id, second.id, first.id})


def test_spans_validated_before_the_gates_module_was_renamed_count(history):
    first, statistics = history.span(1, gate="pipeline.validation.stop_on_anomalies")
    current, _ = history.span(2)
    found = history.resolve(NewestSpans(2), current, examples="Examples")
    assert ids(found["examples"]) == ids([current, first])
    before = history.resolve(SpansBefore(2, 0), current, **BEFORE)
    assert ids(before["statistics"]) == ids([statistics])


def test_a_warm_start_begins_from_the_last_blessed_model_of_other_data(history, task):
    kinds = {"model": "Model", "model_blessing": "ModelBlessing"}
    first, _ = history.span(1)
    assert history.resolve(UnseenByModel(json.dumps(task.to_dict())), first, **kinds)["model"] == []
    good = history.model(first, blessed=True, task=task)
    history.model(first, blessed=False, task=task)
    second, _ = history.span(2)
    assert ids(
        history.resolve(UnseenByModel(json.dumps(task.to_dict())), second, **kinds)["model"]
    ) == [good.id]
    # Once this run's own model is blessed, nothing changes for it.
    newer = history.model(second, blessed=True, task=task)
    assert ids(
        history.resolve(UnseenByModel(json.dumps(task.to_dict())), second, **kinds)["model"]
    ) == [good.id]
    third, _ = history.span(3)
    assert ids(
        history.resolve(UnseenByModel(json.dumps(task.to_dict())), third, **kinds)["model"]
    ) == [newer.id]


OTHERS = (
    ({"patch_shape_zyx": (8, 16, 16)}, "patch_shape_zyx [8, 16, 16] instead of [8, 32, 32]"),
    ({"class_names": ("background", "liver")}, "class_names ['background', 'liver'] instead of"),
    ({"image_dtype": "uint16", "outside_value": 0}, "image_dtype uint16 instead of int16"),
)


@pytest.mark.parametrize(("change", "words"), OTHERS)
def test_a_model_for_other_records_is_neither_compared_nor_continued(
    history, task, change, words, capsys
):
    """The Evaluator has it read the records of this task, and would fail after the training."""
    kinds = {"model": "Model", "model_blessing": "ModelBlessing"}
    first, _ = history.span(1)
    good = history.model(first, blessed=True, task=task)
    other = history.model(first, blessed=True, task=evolve(task, **change))
    current, _ = history.span(2)
    new = history.model(current, blessed=True, task=task)
    for strategy, of, use in (
        (EarlierBlessedModel, new, "compared"),
        (UnseenByModel, current, "continued"),
    ):
        found = history.resolve(strategy(json.dumps(task.to_dict())), of, **kinds)
        assert ids(found["model"]) == [good.id]
        (blessing,) = found["model_blessing"]
        assert blessing.get_int_custom_property("current_model_id") == good.id
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{other.uri}/Format-Serving, is not {use}: it is for {words}" in line
    history.artifacts["Model"].remove(good)
    assert (
        history.resolve(EarlierBlessedModel(json.dumps(task.to_dict())), new, **kinds)["model"]
        == []
    )


def test_the_newest_pushed_model_for_the_same_records_is_compared(task, tmp_path, capsys):
    pushed = tmp_path / "pushed"
    sizes = {2: (8, 32, 32), 10: (8, 32, 32), 11: (8, 16, 16)}
    for version, shape in sizes.items():
        write_export(pushed / str(version), evolve(task, patch_shape_zyx=shape))
        (pushed / str(version) / "saved_model.pb").write_text(str(version))

    def copied(folder, task):
        model = standard_artifacts.Model()
        model.uri = str(folder)
        parameters = {"pushed": str(pushed), "task": json.dumps(task.to_dict())}
        last_pushed_model.EXECUTOR_SPEC.executor_class().Do({}, {"model": [model]}, parameters)
        return {path.read_text() for path in folder.rglob("saved_model.pb")}

    assert copied(tmp_path / "same", task) == {"10"}
    assert "pushed/11, is not compared: it is for patch_shape_zyx" in capsys.readouterr().err
    other = evolve(task, patch_shape_zyx=(8, 64, 64))
    assert copied(tmp_path / "none", other) == set()
