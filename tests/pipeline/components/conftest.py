"""A small network, and statistics of records as StatisticsGen computes them without its Beam job."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from ahnet_tf.config import ModelConfig
from preprocessing.tasks import Task


@pytest.fixture(scope="session")
def model_config(task) -> ModelConfig:
    """A network whose graph is made in little time; whole runs have an AH-Net."""
    return ModelConfig(
        architecture="unet3d",
        classes=3,
        intensity_window=task.intensity_window,
        width=0.125,
        unet_levels=2,
    )


@pytest.fixture(scope="session")
def statistics_of_records() -> Callable:
    """Returns the statistics of serialized records, with an inferred schema those of scalars only."""
    # Imported here because this file is loaded where TFX isn't installed, too.
    from tensorflow_data_validation.statistics import stats_impl
    from tfx_bsl.coders.example_coder import ExamplesToRecordBatchDecoder

    from pipeline.components.schema import make_schema, statistics_options

    known: dict = {}

    def gather(records: Sequence[bytes], task: Task, *, inferred: bool = False):
        key = (tuple(records), task, inferred)
        if key not in known:
            batch = ExamplesToRecordBatchDecoder().DecodeBatch(list(records))
            options = statistics_options(task, inferred=inferred)
            if not inferred:
                options.schema = make_schema(task)
            known[key] = stats_impl.generate_statistics_in_memory(batch, options)
        return known[key]

    return gather
