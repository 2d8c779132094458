"""Trainings whose folders lie in a file system that only TensorFlow knows."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf
from tfx.components.trainer.fn_args_utils import FnArgs

from pipeline.object_stores import on_local_disk


def write(path: str, text: str) -> None:
    tf.io.gfile.makedirs(path.rpartition("/")[0])
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(text)


def read(path: str) -> str:
    with tf.io.gfile.GFile(path) as file:
        return file.read()


@on_local_disk
def train(fn_args: FnArgs) -> None:
    """Writes as trainings do, by paths alone, and beside the export too."""
    base = Path(fn_args.base_model)
    learned = (base / "weights").read_text() + (base.parent / "checkpoint" / "weights").read_text()
    export = Path(fn_args.serving_model_dir)
    for folder in (export, export.parent / "checkpoint", Path(fn_args.model_run_dir)):
        folder.mkdir(parents=True)
        (folder / "weights").write_text(f"{folder.name}: {learned}")


def arguments(root: str) -> FnArgs:
    write(f"{root}/base/Format-Serving/weights", "2D")
    write(f"{root}/base/checkpoint/weights", "+")
    return FnArgs(
        serving_model_dir=f"{root}/model/Format-Serving",
        model_run_dir=f"{root}/model_run/7",
        base_model=f"{root}/base/Format-Serving",
    )


def test_what_a_training_writes_comes_to_its_address_and_nothing_stays_here(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    root = "ram://object-stores"
    before = arguments(root)
    train(before)
    assert read(f"{root}/model/Format-Serving/weights") == "Format-Serving: 2D+"
    assert read(f"{root}/model/checkpoint/weights") == "checkpoint: 2D+"
    assert read(f"{root}/model_run/7/weights") == "run: 2D+"
    assert before.model_run_dir == f"{root}/model_run/7"
    assert list(tmp_path.iterdir()) == []


def test_local_folders_are_used_as_they_are(tmp_path):
    train(arguments(str(tmp_path)))
    assert (tmp_path / "model_run" / "7" / "weights").read_text() == "7: 2D+"
