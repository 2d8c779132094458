"""The digest covers the code that a training runs, and nothing else."""

from __future__ import annotations

from pipeline.code_version import code_version, sources


def test_it_covers_what_a_training_imports_and_nothing_else():
    names = set(sources("pipeline.trainer"))
    needed = {"pipeline.trainer", "ahnet_tf.losses", "ahnet_tf.nets.ahnet", "serving.signatures"}
    assert needed | {"ahnet_tf", "ahnet_tf.nets", "preprocessing.records"} <= names
    idle = {"preprocessing.convert", "ahnet_tf.evaluate", "serving.server", "pipeline.evaluation"}
    assert not idle & names


def test_it_is_stable_and_differs_between_modules():
    assert code_version("pipeline.trainer") == code_version("pipeline.trainer")
    assert code_version("pipeline.trainer") != code_version("ahnet_tf.losses")
