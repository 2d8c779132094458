"""The whole conversion on Flink, where `AHNET_FLINK_JOB_SERVER_JAR` names Beam's job server for it.

`make test-flink` says where that file comes from. The job server starts a Flink cluster of its own in
one JVM; the workers run in the launching process (LOOPBACK), which they reach by gRPC only.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from preprocessing.convert import main
from preprocessing.phantom.ct import PhantomSettings
from preprocessing.phantom.dataset import write_cases

ROOT = Path(__file__).resolve().parents[3]
JAR = os.environ.get("AHNET_FLINK_JOB_SERVER_JAR", "")
SETTINGS = PhantomSettings(shape_xyz=(48, 40, 12), spacing_mm=(6.5, 6.5, 13.0))
PATCHES = ["--patch-shape", "8", "32", "32", "--patches-per-case", "4", "--allow-rejected"]
# What Flink needs to see of Java from version 17 on (Beam's own tests give it the same).
OPENED = [f"--job_server_jvm_properties=--add-opens=java.base/java.{package}=ALL-UNNAMED"
          for package in ("lang", "nio", "util")]  # fmt: skip
FLINK = [
    *("--runner", "FlinkRunner", "--flink_job_server_jar", JAR, "--flink_master", "[local]"),
    *("--environment_type", "LOOPBACK", "--parallelism", "2"),
    *OPENED,
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not JAR, reason="AHNET_FLINK_JOB_SERVER_JAR does not name Beam's job server for Flink"
    ),
]


def tree(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def on_flink(data, output):
    """Runs the command in a process of its own; returns its exit code and stderr."""
    arguments = ["--input", str(data), "--output", str(output), *PATCHES, *FLINK]
    process = subprocess.Popen(
        [sys.executable, "-m", "preprocessing.convert", *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, error = process.communicate(timeout=500)
    except subprocess.TimeoutExpired:
        # The job server is of the same session.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return process.returncode, error


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six cases and one that is rejected."""
    folder = tmp_path_factory.mktemp("data")
    write_cases(folder, 6, 0, settings=SETTINGS)
    (folder / "volume-7.nii.gz").write_bytes(b"no volume")
    (folder / "segmentation-7.nii.gz").write_bytes(b"no labels")
    return folder


def test_flink_writes_the_same_bytes(data, tmp_path):
    code, error = on_flink(data, tmp_path / "flink")
    assert code == 0, error
    assert main(["--input", str(data), "--output", str(tmp_path / "direct"), *PATCHES]) == 0
    assert tree(tmp_path / "flink") == tree(tmp_path / "direct")
    manifest = json.loads((tmp_path / "flink" / "manifest.json").read_text())
    assert (manifest["converted"], manifest["rejected"]) == (6, 1)


def test_a_failed_job_is_one_line(data, tmp_path):
    (tmp_path / ".out.partial").mkdir()
    # Nobody can write there, not even root.
    (tmp_path / ".out.partial" / "train").symlink_to("/proc")
    code, error = on_flink(data, tmp_path / "out")
    assert code == 1
    line = error.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "expected a Beam job that finishes, found " in line
    assert not (tmp_path / "out").exists()
