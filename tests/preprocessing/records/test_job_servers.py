"""The whole conversion on Flink, Spark and Prism; `make test-flink`, `test-spark` and `test-prism` run this.

engines.sh makes the engines: job servers, which start a cluster of Flink or Spark in their own process,
with two slots each. Workers are processes of Beam's worker pool, which engines reach by gRPC only, as beside
the task managers of a real cluster; or they are threads of the launching process (LOOPBACK).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.job_servers import HEAP, Engine, Pool
from preprocessing.convert import main
from preprocessing.phantom.ct import PhantomSettings, make_case
from preprocessing.phantom.dataset import write_cases
from preprocessing.phantom.dbt import DBTSettings
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.nifti import write_image

ROOT = Path(__file__).resolve().parents[3]
FOLDER = os.environ.get("AHNET_ENGINES", "")
CT = PhantomSettings(shape_xyz=(48, 40, 12), spacing_mm=(6.5, 6.5, 13.0))
DBT = DBTSettings(shape_xyz=(40, 72, 12), spacing_mm=(1.6, 1.6, 3.4), fewest_masses=1)
SMALL = ["--patch-shape", "8", "32", "32", "--allow-rejected"]
# So many patches that a run can be met in the middle.
MANY, FEW = ["--patches-per-case", "400"], ["--patches-per-case", "4"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not FOLDER, reason="make test-flink, test-spark, test-prism run this"),
]


@pytest.fixture(scope="module", params=["flink", "spark", "prism"])
def engine(request, tmp_path_factory):
    """A running job server."""
    name = request.param
    if not (Path(FOLDER) / f"{name}.version").is_file():
        log = Path(FOLDER) / f"{name}.log"
        reason = log.read_text()[-300:] if log.is_file() else f"make test-{name} gets it"
        pytest.skip(f"{name} could not be had: {' '.join(reason.split())}")
    engine = Engine(name, Path(FOLDER), tmp_path_factory.mktemp(name))
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def pool(tmp_path_factory):
    pool = Pool(tmp_path_factory.mktemp("pool"))
    yield pool
    pool.stop()


def arguments(data: Path, output: Path, task: str) -> list[str]:
    return ["--input", str(data / task), "--output", str(output), "--task", TASKS[task], *SMALL]


TASKS = {"ct": "ct_liver", "dbt": "dbt_lesion"}


@pytest.fixture(scope="module")
def data(tmp_path_factory, dicom):
    """Twelve CTs and twelve tomosyntheses, as NIfTI and as DICOM; one of each is damaged."""
    folder = tmp_path_factory.mktemp("data")
    write_cases(folder / "ct", 8, 0, settings=CT, progress=False)
    for number in range(20, 23):
        image, label = make_case(0, number, CT)
        stored = (image.voxels.T.astype("int32") + 1024).clip(0, 4095).astype("uint16")
        case = folder / "ct" / f"series-{number}"
        tags = {"PixelSpacing": [6.5, 6.5], "SeriesInstanceUID": f"1.2.3.{number}"}
        dicom.ct_series(case / "slices", stored, step=(0, 0, 13.0), seed=number, **tags)
        # Where `ct_series` has put the slices, in RAS+ instead of LPS.
        affine = [[-6.5, 0, 0, 20], [0, -6.5, 0, 30], [0, 0, 13, 40], [0, 0, 0, 1]]
        write_image(case / "label.nii.gz", Volume(label.voxels, np.array(affine, float)))
    (folder / "ct" / "volume-99.nii.gz").write_bytes(b"no volume")
    (folder / "ct" / "segmentation-99.nii.gz").write_bytes(b"no labels")
    write_cases(folder / "dbt", 6, 0, settings=DBT, progress=False)
    write_cases(folder / "dbt", 6, 0, first=6, settings=DBT, dicom=True, progress=False)
    (damaged,) = (folder / "dbt").glob("PHANTOM-00011_*.dcm")
    damaged.write_bytes(damaged.read_bytes()[:4000])
    return folder


@pytest.fixture(scope="module")
def expected(data, tmp_path_factory):
    """Returns what the DirectRunner writes, for a task and options."""
    known = {}

    def convert(task: str, options: list[str]) -> dict[str, bytes]:
        key = (task, *options)
        if key not in known:
            output = tmp_path_factory.mktemp("direct") / "out"
            assert main([*arguments(data, output, task), *options]) == 0
            known[key] = tree(output)
        return known[key]

    return convert


def tree(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@contextlib.contextmanager
def started(*words: str):
    """Runs the command in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "preprocessing.convert", *words],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            # A job server that it has started is of the same session.
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def finish(process: subprocess.Popen) -> tuple[int, str]:
    _, error = process.communicate(timeout=600)
    return process.returncode, error


def run(*words: str) -> tuple[int, str]:
    with started(*words) as process:
        return finish(process)


def run_and_kill_a_worker(words: list[str], output: Path, pool: Pool) -> tuple[int, str]:
    with started(*words) as process:
        wait_for_cases(process, output, 2)
        os.kill(pool.workers()[0], signal.SIGKILL)
        return finish(process)


def wait_for_cases(process: subprocess.Popen, output: Path, count: int) -> None:
    outcomes = output.parent / f".{output.name}.partial" / "outcomes"
    while process.poll() is None and len(list(outcomes.glob("*.json"))) < count:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()


def error_line(error: str) -> str:
    assert "Traceback" not in error
    line = error.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert len(line) < 700
    return line


@pytest.mark.parametrize("task", TASKS)
def test_the_same_bytes_from_workers_in_processes(engine, pool, data, expected, tmp_path, task):
    code, error = run(
        *arguments(data, tmp_path / "out", task), *FEW, *engine.options(*pool.environment)
    )
    assert code == 0, error
    assert tree(tmp_path / "out") == expected(task, FEW)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["converted"], manifest["rejected"]) == (11, 1)
    (rejected,) = [entry for entry in manifest["cases"] if entry["status"] == "rejected"]
    assert f"rejected {rejected['case_id']}: {rejected['reason']}" in error


def test_the_same_bytes_from_one_command(engine, data, expected, tmp_path):
    """As docs/engines.md says, without a job server that runs already."""
    runner = f"{engine.name.capitalize()}Runner"
    options = {
        "flink": ["--flink_job_server_jar", "--flink_master", "[local]", "--parallelism", "2"],
        "spark": ["--spark_job_server_jar", "--spark_master_url", "local[2]"],
        "prism": ["--prism_location"],
    }[engine.name]
    options.insert(1, str(engine.program))
    if engine.name != "prism":
        options.append(f"--job_server_jvm_properties={HEAP}")
    words = arguments(data, tmp_path / "out", "ct")
    code, error = run(*words, *FEW, "--runner", runner, *options, "--environment_type", "LOOPBACK")
    assert code == 0, error
    assert tree(tmp_path / "out") == expected("ct", FEW)


def test_a_killed_worker_is_one_line_and_resume_completes(engine, pool, data, expected, tmp_path):
    output = tmp_path / "out"
    words = [*arguments(data, output, "ct"), *MANY, *engine.options(*pool.environment)]
    code, error = run_and_kill_a_worker(words, output, pool)
    assert code == 1
    assert "found a worker that was lost" in error_line(error)
    assert not output.exists()
    code, error = run(*words, "--resume")
    assert code == 0, error
    assert "of 12 cases were finished already" in error
    assert tree(output) == expected("ct", MANY)


def test_a_restarted_job_server_is_one_line_and_resume_completes(engine, data, expected, tmp_path):
    output = tmp_path / "out"
    words = [*arguments(data, output, "ct"), *MANY, *engine.options("LOOPBACK")]
    with started(*words) as process:
        wait_for_cases(process, output, 2)
        engine.stop(signal.SIGKILL)
        engine.start()
        code, error = finish(process)
    assert code == 1
    assert "found a job server that went away" in error_line(error)
    assert not output.exists()
    code, error = run(*words, "--resume")
    assert code == 0, error
    assert tree(output) == expected("ct", MANY)


def test_engines_that_retry_go_on_after_a_killed_worker(engine, pool, data, expected, tmp_path):
    if engine.name == "prism":
        pytest.skip("Prism does not retry")
    engine.stop()
    engine.start(retries=True)
    output = tmp_path / "out"
    words = [*arguments(data, output, "ct"), *MANY, *engine.options(*pool.environment)]
    code, error = run_and_kill_a_worker(words, output, pool)
    engine.stop()
    engine.start()
    assert code == 0, error
    assert "of 12 cases were finished already" in error
    assert tree(output) == expected("ct", MANY)


def test_a_failed_job_is_one_line(engine, data, tmp_path):
    (tmp_path / ".out.partial").mkdir()
    # Nobody can write there, not even root.
    (tmp_path / ".out.partial" / "train").symlink_to("/proc")
    words = arguments(data, tmp_path / "out", "ct")
    code, error = run(*words, *FEW, *engine.options("LOOPBACK"))
    assert code == 1
    assert "expected a Beam job that finishes, found FileNotFoundError" in error_line(error)
    assert not (tmp_path / "out").exists()


def test_an_artifact_store_out_of_reach_is_one_line(engine, data, tmp_path):
    if engine.name == "prism":
        pytest.skip("Prism keeps artifacts in memory")
    engine.stop()
    shutil.rmtree(engine.folder / "artifacts", ignore_errors=True)
    (engine.folder / "artifacts").symlink_to("/proc/nothing")
    engine.start()
    words = arguments(data, tmp_path / "out", "ct")
    code, error = run(*words, *FEW, *engine.options("LOOPBACK"))
    (engine.folder / "artifacts").unlink()
    assert code == 1
    assert "can't write its --artifacts_dir" in error_line(error)
    assert list(tmp_path.iterdir()) == []
