"""The digest covers the code that a training runs, and nothing else."""

from __future__ import annotations

from pathlib import Path

from pipeline.code_version import ROOT, code_version, sources


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


def test_it_covers_the_template_of_the_model_card(monkeypatch):
    report = {"pipeline.components.report": ROOT / "pipeline" / "components" / "report.py"}
    monkeypatch.setattr("pipeline.code_version.sources", lambda module: report)
    digest = code_version.__wrapped__
    before = digest("pipeline.components.report")
    read = Path.read_bytes

    def changed(path: Path) -> bytes:
        return read(path) + (b"changed" if path.suffix == ".jinja" else b"")

    monkeypatch.setattr(Path, "read_bytes", changed)
    assert digest("pipeline.components.report") != before
