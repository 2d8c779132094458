"""Volumes as input: a whole run on two spans, killed and failing conversions, links."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tfx.types import standard_artifacts
from tfx.types.experimental.simple_artifacts import File

from pipeline.components.convert_volumes import ConvertVolumesExecutor, fingerprint
from pipeline.configs import spans_of
from pipeline.lineage import main as lineage
from pipeline.local_runner import main
from preprocessing.errors import InputError, PipelineError
from preprocessing.files import write_json
from preprocessing.phantom.dataset import write_cases

pytestmark = pytest.mark.slow


def read_result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory, grid) -> Path:
    """Two batches of two cases each."""
    folder = tmp_path_factory.mktemp("volumes")
    for span in (1, 2):
        write_cases(
            folder / f"span-{span}", 2, seed=5, first=2 * span, settings=grid, progress=False
        )
    return folder


def test_a_new_span_warm_starts_from_the_model_of_the_one_before(
    volumes, task, tiny_options, tmp_path, capsys
):
    write_json(tmp_path / "task.json", task.to_dict())
    run, later = tmp_path / "run", tmp_path / "later"
    shutil.copytree(volumes, tmp_path / "volumes")
    volumes = tmp_path / "volumes"
    shutil.move(volumes / "span-2", later)
    options = ["--volumes", str(volumes), "--task", str(tmp_path / "task.json")]
    options += ["--output", str(run), *tiny_options]
    # A network whose graph is made in little time; a whole AH-Net is trained in test_whole_run.py.
    for setting in ("steps=2", "warmup_steps=1", "evaluate_every=0", "3d.architecture=mcgcn"):
        options += ["--set", setting]
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
    # It was compared with the first span's model.
    capsys.readouterr()
    assert lineage([second["pushed"], "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)
    assert any("baseline_model" in step["inputs"] for step in steps)
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


def test_the_fingerprint_of_a_broken_link_changes_when_its_target_appears(tmp_path):
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes" / "volume.nii").symlink_to(tmp_path / "stored.nii")
    (tmp_path / "volumes" / "case").symlink_to(tmp_path / "stored")
    first = fingerprint(tmp_path / "volumes")
    (tmp_path / "stored.nii").write_bytes(b"1")
    second = fingerprint(tmp_path / "volumes")
    (tmp_path / "stored").mkdir()
    (tmp_path / "stored" / "volume.nii").write_bytes(b"1")
    assert len({first, second, fingerprint(tmp_path / "volumes")}) == 3


class Killed(BaseException):
    """What ends a process: nothing may catch it."""


def execute(folder: Path, number: int, volumes: Path, task, allow=()) -> dict[str, bytes]:
    """Runs the component as its execution `number`; returns the files of its outputs."""
    examples, manifest = standard_artifacts.Examples(), File()
    for artifact, name in ((examples, "examples"), (manifest, "manifest")):
        artifact.uri = str(folder / "ConvertVolumes" / name / str(number))
        Path(artifact.uri).mkdir(parents=True)
    settings = {
        "task": task.to_dict(),
        "seed": 0,
        "eval_fraction": 0.5,
        "allow": list(allow),
        "code_version": "0",
    }
    executor = ConvertVolumesExecutor(ConvertVolumesExecutor.Context(beam_pipeline_args=[]))
    executor.Do(
        {},
        {"examples": [examples], "manifest": [manifest]},
        {
            "volumes": str(volumes),
            "settings": json.dumps(settings),
            "spans": 0,
            "span": 0,
            "fingerprint": fingerprint(volumes),
        },
    )
    assert json.loads(examples.split_names) == ["train", "eval"]
    assert not list((folder / "ConvertVolumes").glob("*/unfinished/*"))
    assert not list((folder / "ConvertVolumes" / "unfinished").iterdir())
    return {
        f"{name}/{path.relative_to(root)}": path.read_bytes()
        for name, root in (("examples", Path(examples.uri)), ("manifest", Path(manifest.uri)))
        for path in root.rglob("*")
        if path.is_file()
    }


def test_a_conversion_that_is_killed_between_its_moves_is_finished_by_the_next_run(
    volumes, task, tmp_path, monkeypatch
):
    """It is killed before each of its steps in turn, the first of which leaves a whole conversion."""
    steps: list[str] = []
    last = 10**9

    def watch(owner, name):
        original = getattr(owner, name)

        def step(*arguments, **options):
            # Steps on the output of the conversion; the conversion itself has its own tests.
            if "unfinished" in str(arguments[0]) and ".partial" not in str(arguments[0]):
                if len(steps) == last:
                    raise Killed
                steps.append(f"{name} {arguments[0]}")
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, step)

    data = volumes / "span-1"
    expected = execute(tmp_path / "whole", 1, data, task)
    assert {name.split("/")[1] for name in expected} == {
        *("Split-train", "Split-eval", "manifest.json", "task.json")
    }
    for owner, name in ((shutil, "copy"), (shutil, "rmtree"), (Path, "rename")):
        watch(owner, name)
    assert execute(tmp_path / "watched", 1, data, task) == expected
    count = len(steps)
    assert count >= 5
    for last in range(count):
        folder = tmp_path / f"killed-{last}"
        steps.clear()
        with pytest.raises(Killed):
            execute(folder, 1, data, task)
        steps.clear()
        limit, last = last, 10**9
        assert execute(folder, 2, data, task) == expected, f"killed before step {limit}"


def test_a_conversion_without_its_records_is_done_again(volumes, task, tmp_path, monkeypatch):
    """Only its manifest is left, of a run that was killed while it moved the splits one by one."""
    data, folder = volumes / "span-1", tmp_path / "run"
    monkeypatch.setattr(shutil, "copy", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        execute(folder, 1, data, task)
    monkeypatch.undo()
    (records,) = folder.glob("ConvertVolumes/unfinished/*/records")
    shutil.rmtree(records / "train")
    assert execute(folder, 2, data, task) == execute(tmp_path / "whole", 1, data, task)


def test_a_case_behind_a_broken_link_is_named_in_one_line(volumes, task, tmp_path):
    data = tmp_path / "volumes"
    shutil.copytree(volumes / "span-1", data)
    image = min(data.rglob("volume-*.nii.gz"))
    image.unlink()
    image.symlink_to(tmp_path / "unmounted" / image.name)
    with pytest.raises(PipelineError) as caught:
        execute(tmp_path / "run", 1, data, task)
    line = str(caught.value)
    assert f"found 1 that the conversion rejects, first {image.name.split('.')[0]}: " in line
    assert "a broken link" in line
    assert "\n" not in line


def test_a_folder_of_spans_that_is_not_there_is_named(tmp_path):
    (tmp_path / "spans").symlink_to(tmp_path / "unmounted")
    with pytest.raises(InputError, match="spans: expected a folder of batches of cases, found No"):
        spans_of(tmp_path / "spans")
