"""A whole run on volumes in two spans: conversion, tuning, training, warm start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipeline.components.convert_volumes import fingerprint
from pipeline.local_runner import main
from preprocessing.files import write_json
from preprocessing.phantom.ct import PhantomSettings
from preprocessing.phantom.dataset import write_cases

pytestmark = pytest.mark.slow
GRID = PhantomSettings(shape_xyz=(32, 32, 16), spacing_mm=(10.0, 10.0, 10.0))


def read_result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    """Two batches of two cases each."""
    folder = tmp_path_factory.mktemp("volumes")
    for span in (1, 2):
        write_cases(folder / f"span-{span}", 2, seed=5, first=2 * span, settings=GRID)
    return folder


def test_a_new_span_warm_starts_from_the_model_of_the_one_before(
    volumes, task, tiny_options, tmp_path, capsys
):
    write_json(tmp_path / "task.json", task.to_dict())
    run, later = tmp_path / "run", tmp_path / "later"
    shutil.move(volumes / "span-2", later)
    options = ["--volumes", str(volumes), "--task", str(tmp_path / "task.json")]
    options += ["--output", str(run), *tiny_options, "--steps", "2", "--set", "warmup_steps=1"]
    options += ["--set", "evaluate_every=0"]
    options += ["--spans", "2", "--threshold-liver", "0", "--allow", "skew,drift"]
    assert main([*options, "--tune", "1", "--tune-steps", "2", "--schema", "inferred"]) == 0
    first = read_result(run)
    assert {"ConvertVolumes", "SchemaGen", "Tuner", "Trainer3D", "Pusher"} <= set(first["executed"])
    (tried,) = run.glob("artifacts/Tuner/tuner_results/*/tuner_results.json")
    trials = json.loads(tried.read_text(encoding="utf-8"))
    assert len(trials) == 1
    best = trials[0]["learning_rate"]
    (used,) = run.glob("artifacts/Trainer3D/model_run/*/training.json")
    assert json.loads(used.read_text())["training"]["learning_rate"] == best
    assert 0.01 / 4 <= best <= 0.01 * 4
    (manifest,) = run.glob("artifacts/ConvertVolumes/manifest/*/manifest.json")
    assert json.loads(manifest.read_text())["converted"] == 2
    assert not list(run.glob("artifacts/ConvertVolumes/unfinished/*"))

    shutil.move(later, volumes / "span-2")
    assert main([*options, "--warm-start", "--largest-loss", "1"]) == 0
    second = read_result(run)
    assert "Trainer2D" not in second["seconds"]
    assert second["scores"]["overall"]["cases"] == 2
    started = run.glob("artifacts/Trainer3D/model_run/*/transfer.txt")
    newest = max(started, key=lambda path: int(path.parent.name))
    assert "fresh: 0 weights" in newest.read_text(encoding="utf-8")
    card = (Path(second["report"]) / "model_card.md").read_text(encoding="utf-8")
    assert "started from the last blessed model" in card
    assert "Converted 2 of 2 cases found; 0 rejected." in card

    capsys.readouterr()
    assert main([*options, "--warm-start", "--largest-loss", "1"]) == 0
    assert read_result(run)["executed"] == []


def test_the_fingerprint_changes_with_volumes_in_linked_folders(tmp_path):
    (tmp_path / "stored").mkdir()
    (tmp_path / "stored" / "volume.nii").write_bytes(b"1")
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes" / "a").symlink_to(tmp_path / "stored")
    first = fingerprint(tmp_path / "volumes")
    (tmp_path / "stored" / "volume.nii").write_bytes(b"22")
    assert fingerprint(tmp_path / "volumes") != first


def test_the_fingerprint_changes_with_the_volumes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "volume.nii").write_bytes(b"1")
    first = fingerprint(tmp_path)
    assert fingerprint(tmp_path) == first
    (tmp_path / "a" / "volume.nii").write_bytes(b"22")
    second = fingerprint(tmp_path)
    (tmp_path / "a" / "volume.nii").rename(tmp_path / "a" / "other.nii")
    assert len({first, second, fingerprint(tmp_path)}) == 3
