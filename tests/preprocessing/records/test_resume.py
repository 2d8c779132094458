"""Conversions that are stopped, started twice, or run out of room: what is left, and what can be resumed."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import attrs
import numpy as np
import pytest

from preprocessing.convert import main
from preprocessing.datasets.discovery import find_cases
from preprocessing.errors import SettingsError
from preprocessing.phantom.ct import PhantomSettings
from preprocessing.phantom.dataset import write_cases
from preprocessing.records.case_conversion import ConversionSettings, ConvertCase
from preprocessing.records.output_folder import check_output, partial_folder
from preprocessing.tasks import PRESETS
from tests.signals import default_signals

ROOT = Path(__file__).resolve().parents[3]
# Of so many cases a run that is stopped has finished the first ones, and is writing the next.
CASES, FINISHED = 7, 4
SETTINGS = PhantomSettings(shape_xyz=(48, 40, 12), spacing_mm=(6.5, 6.5, 13.0))
PATCHES = ["--patch-shape", "8", "32", "32", "--patches-per-case", "12"]

# Sends itself a signal at a point of its own progress, and goes on once the signal has been taken.
STRUCK = f"""
import os, signal, sys, threading, time
from collections import Counter
from preprocessing.convert import main
from preprocessing.records import case_conversion

taken, cases, encode = threading.Event(), Counter(), case_conversion.encode_patch

def take(*arguments):
    os.write(2, f"taken at {{time.time()}}\\n".encode())
    taken.set()
    signal.default_int_handler(*arguments)

def strike(patch, task):
    cases[patch.case_id] += 1
    if len(cases) > {FINISHED} and cases[patch.case_id] > 2 and not taken.is_set():
        os.kill(os.getpid(), int(sys.argv[1]))
        taken.wait()
    return encode(patch, task)

signal.signal(signal.SIGINT, take)
case_conversion.encode_patch = strike
sys.exit(main(sys.argv[2:]))
"""


def command(folder, *options):
    paths = ["--input", str(folder / "data"), "--output", str(folder / "out")]
    return [*paths, *PATCHES, "--direct_running_mode", "in_memory", *options]


def tree(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def struck(folder, number, *options):
    """Runs a conversion that gets a signal while it writes a case's records."""
    words = [sys.executable, "-c", STRUCK, str(int(number)), *command(folder, *options)]
    return subprocess.run(
        words,
        cwd=ROOT,
        text=True,
        stderr=subprocess.PIPE,
        timeout=300,
        preexec_fn=default_signals,
        check=False,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    write_cases(folder / "data", CASES, 0, settings=SETTINGS)
    return folder


@pytest.fixture(scope="module")
def whole(data):
    """What an undisturbed run writes."""
    assert main(command(data)) == 0
    return tree(data / "out")


@pytest.fixture(scope="module")
def killed_run(data, tmp_path_factory):
    """A folder in which a run was killed while it wrote a case's records."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "data").symlink_to(data / "data")
    assert struck(folder, signal.SIGKILL).returncode == -signal.SIGKILL
    return folder


@pytest.fixture
def killed(killed_run, tmp_path):
    folder = tmp_path / "killed"
    # With the files' times, as they were.
    shutil.copytree(killed_run, folder, symlinks=True)
    return folder


def finished(folder):
    return sorted(path.stem for path in folder.glob(".out.partial/outcomes/*.json"))


def records_of(folder, cases):
    paths = folder.rglob("*.tfrecord")
    return {p.name: p.stat().st_mtime_ns for p in paths if p.name.rpartition("-")[0] in cases}


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_that_looks_finished(killed):
    assert not (killed / "out").exists()
    assert len(finished(killed)) == FINISHED < CASES
    assert list((killed / ".out.partial").rglob("*.tmp"))
    assert not (killed / ".out.partial" / "manifest.json").exists()


def test_resume_converts_only_what_is_missing_and_gives_the_same_bytes(killed, whole, capsys):
    cases = finished(killed)
    before = records_of(killed, cases)
    assert before
    assert main(command(killed, "--resume")) == 0
    assert f"{len(cases)} of {CASES} cases were finished already" in capsys.readouterr().err
    assert tree(killed / "out") == whole
    assert records_of(killed, cases) == before
    assert sorted(os.listdir(killed)) == ["data", "out"]


def test_without_resume_the_next_run_starts_from_the_beginning_and_says_so(killed, whole, capsys):
    cases = finished(killed)
    before = records_of(killed, cases)
    assert main(command(killed)) == 0
    error = capsys.readouterr().err
    assert f"removed an unfinished run with {len(cases)} finished cases" in error
    assert "were finished already" not in error
    assert tree(killed / "out") == whole
    after = records_of(killed, cases)
    assert all(after[name] > before[name] for name in before)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--seed", "7"], "settings.seed 7"),
        (["--patches-per-case", "3"], "settings.task.patches_per_case 3"),
        (["--eval-fraction", "0.5"], "settings.eval_fraction 0.5"),
    ],
)
def test_resume_with_other_settings_is_refused(killed, capsys, options, found):
    before = tree(killed)
    assert main(command(killed, "--resume", *options)) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: --resume: expected the settings of the run that stopped")
    assert found in line
    assert tree(killed) == before


def test_resume_redoes_cases_with_damaged_records_or_changed_inputs(killed, whole, capsys):
    cases = finished(killed)
    damaged, cut = (next(killed.rglob(f"{case}-*.tfrecord")) for case in cases[:2])
    content = bytearray(damaged.read_bytes())
    content[1000] ^= 1
    damaged.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-1])
    # The same voxels, but a file of another day.
    source = killed / "data"
    copy = killed / "copy"
    shutil.copytree(source, copy, copy_function=shutil.copy2)
    source.unlink()
    copy.rename(source)
    os.utime(source / f"{cases[2]}.nii.gz", (1, 1))
    assert main(command(killed, "--resume")) == 0
    error = capsys.readouterr().err
    assert f"{FINISHED - 3} of {CASES} cases were finished already" in error
    assert tree(killed / "out") == whole


def test_resume_sees_edited_masks_and_other_files_behind_links(tmp_path, dicom):
    """Masks as in 3D-IRCADb, in folders of a folder, one of them stored elsewhere."""
    shape = (4, 24, 20)
    case, stored = tmp_path / "data" / "3Dircadb1.1", tmp_path / "stored"
    voxels = np.random.default_rng(0).integers(900, 1200, shape).astype(np.int16)
    dicom.ct_series(case / "PATIENT_DICOM", voxels)
    liver = np.zeros(shape, np.int16)
    liver[:, 4:20, 4:16] = 255
    dicom.ct_series(case / "MASKS_DICOM" / "liver", liver, RescaleIntercept=0)
    for name, column in (("first", 6), ("second", 9)):
        tumour = np.where(np.arange(20) == column, liver, 0).astype(np.int16)
        dicom.ct_series(stored / name, tumour, RescaleIntercept=0)
        for path in stored.rglob("*"):
            os.utime(path, (1, 1))
    link = case / "MASKS_DICOM" / "livertumor"
    link.symlink_to(stored / "first")
    (found,) = find_cases([tmp_path / "data"], need_labels=True)
    task = attrs.evolve(PRESETS["ct_liver"], patch_shape_zyx=(4, 16, 16))
    for name in ("train", "outcomes"):
        (tmp_path / "out" / name).mkdir(parents=True)
    transform = ConvertCase(ConversionSettings(task), str(tmp_path / "out"))
    outcome = tmp_path / "out" / "outcomes" / f"{found.case_id}.json"

    def converts():
        before = outcome.stat().st_mtime_ns if outcome.exists() else None
        assert list(transform.process((found, "train"))) == [found.case_id]
        entry = json.loads(outcome.read_text())["entry"]
        assert entry["status"] == "converted", entry["reason"]
        return outcome.stat().st_mtime_ns != before

    assert converts()
    assert not converts()
    os.utime(next((case / "MASKS_DICOM" / "liver").iterdir()), (2, 2))
    assert converts()
    assert not converts()
    # The same names, sizes and times.
    link.unlink()
    link.symlink_to(stored / "second")
    assert converts()
    assert not converts()


def test_an_output_that_can_not_be_replaced_is_refused_before_any_work(killed, tmp_path, capsys):
    before = tree(killed / ".out.partial")
    (killed / "out").write_text("mine")
    assert main(command(killed)) == 1
    assert "expected a new or empty folder, found a file" in capsys.readouterr().err
    (killed / "out").unlink()
    # A finished data set beside an unfinished one that was to replace it.
    (killed / "out").mkdir()
    (killed / "out" / "task.json").write_text("{}")
    assert main(command(killed)) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "found a finished data set" in line
    assert tree(killed / ".out.partial") == before
    with pytest.raises(SettingsError, match=r"found /proc, where a file system is mounted"):
        check_output("/proc", overwrite=True)


def test_a_run_whose_folder_can_not_be_renamed_is_finished_by_the_next(
    data, whole, tmp_path, monkeypatch, capsys
):
    (tmp_path / "data").symlink_to(data / "data")

    def busy(*_, **__):
        raise OSError(errno.EBUSY, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr("preprocessing.records.storage.move_over", busy)
        assert main(command(tmp_path)) == 1
    assert "Device or resource busy" in capsys.readouterr().err
    assert len(finished(tmp_path)) == CASES
    assert main(command(tmp_path, "--resume")) == 0
    assert f"{CASES} of {CASES} cases were finished already" in capsys.readouterr().err
    assert tree(tmp_path / "out") == whole


def test_an_output_behind_a_link_is_replaced_and_the_link_kept(data, whole, tmp_path):
    (tmp_path / "data").symlink_to(data / "data")
    (tmp_path / "large disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large disk")
    assert main(command(tmp_path)) == 0
    assert (tmp_path / "out").is_symlink()
    assert tree(tmp_path / "large disk") == whole


def test_a_case_that_a_library_fails_on_is_rejected_alone(data, tmp_path, monkeypatch):
    from preprocessing.records import case_conversion

    case = find_cases([data / "data"], need_labels=True)[0]

    def fail(*_, **__):
        raise RuntimeError("header of another kind")

    monkeypatch.setattr(case_conversion, "read_case_image", fail)
    settings = ConversionSettings(PRESETS["ct_liver"])
    entry = case_conversion.convert_case(case, "train", settings, str(tmp_path))
    assert entry["status"] == "rejected"
    expected = "expected a case that can be read, found RuntimeError: header of another kind"
    assert entry["reason"] == f"{case.path}: {expected}"


def test_resume_without_an_earlier_run_is_a_run(data, whole, tmp_path, capsys):
    (tmp_path / "data").symlink_to(data / "data")
    assert main(command(tmp_path, "--resume")) == 0
    assert tree(tmp_path / "out") == whole
    assert main(command(tmp_path, "--resume")) == 1
    assert "found a finished data set" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--resume"], ["--overwrite"]])
def test_a_second_run_is_refused_while_one_is_running(killed, capsys, options):
    partial = killed / ".out.partial"
    settings = json.loads((partial / "settings.json").read_text())
    with partial_folder(str(killed / "out"), settings, resume=True, overwrite=False):
        before = tree(partial)
        assert main(command(killed, *options)) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "expected a folder that no other run is writing to" in line
        assert tree(partial) == before
    assert main(command(killed, "--resume")) == 0


@pytest.mark.parametrize("mode", ["in_memory", "multi_threading"])
def test_a_full_disk_is_one_line_and_no_data_set(data, whole, tmp_path, capsys, mode):
    """A limit on the size of files stands for a disk without room: writing fails in the same place."""
    (tmp_path / "data").symlink_to(data / "data")
    largest = max(len(content) for name, content in whole.items() if name.startswith("train/"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, hard))
    try:
        assert main(command(tmp_path, "--direct_running_mode", mode)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err
    line = error.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "expected a Beam job that finishes, found OSError: [Errno 27] File too large." in line
    assert "--resume keeps the finished cases" in line
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    assert main(command(tmp_path, "--resume")) == 0
    assert tree(tmp_path / "out") == whole


def test_an_output_that_can_not_be_written_is_one_line(data, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    places = [tmp_path / "file" / "out", Path("/proc/out"), Path("/sys/out")]
    for place in places:
        arguments = ["--input", str(data / "data"), "--output", str(place)]
        assert main(arguments) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ")
        assert str(place.parent) in line


def test_names_that_look_like_patterns(data, whole, tmp_path):
    folder = tmp_path / "a[1]*"
    folder.mkdir()
    (folder / "data").symlink_to(data / "data")
    (folder / ".out.partial" / "train").mkdir(parents=True)
    (folder / ".out.partial" / "train" / "volume-0-00007.tfrecord").write_bytes(b"of a killed run")
    assert main(command(folder)) == 0
    assert tree(folder / "out") == whole
    assert main(command(folder)) == 1


@pytest.mark.slow
def test_interrupted_by_the_keyboard(data, whole, tmp_path):
    (tmp_path / "data").symlink_to(data / "data")
    threads = ["--direct_running_mode", "multi_threading", "--direct_num_workers", "1"]
    run = struck(tmp_path, signal.SIGINT, *threads)
    ended, error = time.time(), run.stderr
    assert run.returncode == 130, error
    # The user does not wait long.
    assert ended - float(re.search(r"taken at (\S+)", error)[1]) < 20
    assert "interrupted" in error
    assert "Traceback" not in error
    assert json.loads((tmp_path / ".out.partial" / "settings.json").read_text())
    assert main(command(tmp_path, "--resume")) == 0
    assert tree(tmp_path / "out") == whole
