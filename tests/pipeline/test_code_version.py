"""The digest covers the code that a training runs, and nothing else."""

from __future__ import annotations

from pipeline.code_version import code_version, sources


def test_it_covers_what_a_training_imports_and_nothing_else():
    names = set(sources("pipeline.components.trainer"))
    needed = {
        "pipeline.components.trainer",
        "ahnet_tf.training.losses",
        "ahnet_tf.networks.ahnet",
        "serving.export.signatures",
    }
    assert needed | {"ahnet_tf", "ahnet_tf.networks", "preprocessing.records.schema"} <= names
    idle = {
        "preprocessing.convert",
        "ahnet_tf.evaluate",
        "serving.server",
        "pipeline.components.evaluator",
    }
    assert not idle & names


def test_it_is_stable_and_differs_between_modules():
    assert code_version("pipeline.components.trainer") == code_version(
        "pipeline.components.trainer"
    )
    assert code_version("pipeline.components.trainer") != code_version("ahnet_tf.training.losses")
