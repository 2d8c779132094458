"""Resolvers on a real metadata store: the spans, statistics and models that a run uses."""

from __future__ import annotations

import pytest
from ml_metadata import MetadataStore
from ml_metadata.proto import metadata_store_pb2 as mlmd
from tfx.types import standard_artifacts

from pipeline.components.anomaly_gate import stop_on_anomalies
from pipeline.components.resolvers import NewestSpans, SpanBefore, UnseenByModel

GATE = stop_on_anomalies.get_class_type()


class History:
    """Runs of a pipeline in a metadata store in memory: each imports a span, some train on it."""

    def __init__(self):
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

    def model(self, examples, blessed):
        """Trains on examples and judges the model; returns it."""
        model = self.artifact(standard_artifacts.Model)
        self.execution("Trainer", {"examples": examples}, {"model": model})
        self.artifact(
            standard_artifacts.ModelBlessing, blessed=int(blessed), current_model_id=model.id
        )
        return model

    def resolve(self, strategy, current, **kinds):
        given = {"current": [current]}
        given |= {key: self.artifacts.get(name, []) for key, name in kinds.items()}
        return strategy.resolve_artifacts(self.store, given)


@pytest.fixture
def history():
    return History()


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


def test_a_new_span_is_compared_with_the_one_before_that_passed(history):
    kinds = {"examples": "Examples", "statistics": "ExampleStatistics"}
    first, statistics = history.span(1)
    history.span(2, passes=False)
    current, _ = history.span(3)
    found = history.resolve(SpanBefore(), current, **kinds)
    assert ids(found["statistics"]) == [statistics.id]
    assert history.resolve(SpanBefore(), first, **kinds)["statistics"] == []


def test_spans_validated_before_the_gates_module_was_renamed_count(history):
    first, statistics = history.span(1, gate="pipeline.validation.stop_on_anomalies")
    current, _ = history.span(2)
    found = history.resolve(NewestSpans(2), current, examples="Examples")
    assert ids(found["examples"]) == ids([current, first])
    kinds = {"examples": "Examples", "statistics": "ExampleStatistics"}
    assert ids(history.resolve(SpanBefore(), current, **kinds)["statistics"]) == ids([statistics])


def test_a_warm_start_begins_from_the_last_blessed_model_of_other_data(history):
    kinds = {"model": "Model", "model_blessing": "ModelBlessing"}
    first, _ = history.span(1)
    assert history.resolve(UnseenByModel(), first, **kinds)["model"] == []
    good = history.model(first, blessed=True)
    history.model(first, blessed=False)
    second, _ = history.span(2)
    assert ids(history.resolve(UnseenByModel(), second, **kinds)["model"]) == [good.id]
    # Once this run's own model is blessed, nothing changes for it.
    newer = history.model(second, blessed=True)
    assert ids(history.resolve(UnseenByModel(), second, **kinds)["model"]) == [good.id]
    third, _ = history.span(3)
    assert ids(history.resolve(UnseenByModel(), third, **kinds)["model"]) == [newer.id]
