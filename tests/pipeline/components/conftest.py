"""A small network, and statistics of records as StatisticsGen computes them without its Beam job."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import tensorflow_data_validation as tfdv
from tensorflow_data_validation.statistics import stats_impl
from tensorflow_metadata.proto.v0 import statistics_pb2
from tfx_bsl.coders.example_coder import ExamplesToRecordBatchDecoder

from ahnet_tf.config import ModelConfig
from pipeline.components.schema import make_schema, statistics_options
from preprocessing.tasks import Task


def options_of(task: Task, inferred: bool) -> tfdv.StatsOptions:
    options = statistics_options(task, inferred=inferred)
    if not inferred:
        options.schema = make_schema(task)
    return options


@pytest.fixture(scope="session")
def model_config(task) -> ModelConfig:
    """The smallest AH-Net with all its parts."""
    return ModelConfig(
        architecture="ahnet",
        classes=3,
        intensity_window=task.intensity_window,
        width=0.125,
        blocks=(1, 1, 1, 1),
        growth=4,
        dense_layers=1,
        pvp_levels=1,
    )


@pytest.fixture(scope="session")
def statistics_of_records() -> Callable[..., statistics_pb2.DatasetFeatureStatisticsList]:
    """Returns the statistics of serialized records, with an inferred schema those of scalars only."""

    known: dict = {}

    def gather(records: Sequence[bytes], task: Task, *, inferred: bool = False):
        key = (tuple(records), task, inferred)
        if key not in known:
            batch = ExamplesToRecordBatchDecoder().DecodeBatch(list(records))
            options = options_of(task, inferred)
            known[key] = stats_impl.generate_statistics_in_memory(batch, options)
        return known[key]

    return gather
