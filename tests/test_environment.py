"""`make env` on machines that lack something: one clear sentence, nothing half-made."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# How a machine reaches its package index.
INDEX = ("SSL_CERT_FILE", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "HTTPS_PROXY", "https_proxy")
TOOLS = ("sh", "dirname", "cat", "cksum", "uname", "grep", "rm", "sed", "flock")


@pytest.fixture
def bare_machine(tmp_path):
    """A checkout in a folder with a space, and a PATH that holds a shell's tools but no Python."""
    checkout = tmp_path / "a checkout"
    checkout.mkdir()
    for name in ("environment.sh", "requirements.lock", "requirements-gpu.lock", "setup.py"):
        shutil.copy(ROOT / name, checkout)
    binaries = tmp_path / "bin"
    binaries.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        if found:
            (binaries / tool).symlink_to(found)
    return checkout, binaries


def make_environment(checkout, binaries, **settings):
    home = {"PATH": str(binaries), "HOME": str(checkout), "UV_PYTHON_DOWNLOADS": "never"}
    return subprocess.run(
        [shutil.which("sh"), str(checkout / "environment.sh")],
        env=home | settings,
        capture_output=True,
        text=True,
        timeout=60,
    )


def add_program(binaries: Path, name: str, script: str) -> None:
    program = binaries / name
    program.write_text(f"#!{shutil.which('sh')}\n{script}\n")
    program.chmod(0o755)


def test_no_python_at_all(bare_machine):
    result = make_environment(*bare_machine)
    assert result.returncode == 1
    assert "error: expected a Python with pip, found none" in result.stderr
    assert not (bare_machine[0] / ".venv").exists()


def test_no_python310(bare_machine):
    checkout, binaries = bare_machine
    if not (ROOT / ".uv").is_dir():
        pytest.skip("the environment was not made by `make env`, so there is no .uv to use")
    (checkout / ".uv").symlink_to(ROOT / ".uv")
    # A pyenv shim whose version is gone: there, but of no use.
    add_program(binaries, "python3.10", "echo 'pyenv: python3.10: command not found' >&2; exit 127")
    result = make_environment(checkout, binaries)
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "expected Python 3.10" in errors[0]
    assert "pyenv install 3.10" in errors[0]
    assert "make env PYTHON=" in errors[0]
    assert not (checkout / ".venv").exists()


def test_python_of_another_version(bare_machine):
    checkout, binaries = bare_machine
    if not (ROOT / ".uv").is_dir():
        pytest.skip("the environment was not made by `make env`, so there is no .uv to use")
    (checkout / ".uv").symlink_to(ROOT / ".uv")
    add_program(binaries, "python9", "[ \"$1\" = --version ] && echo 'Python 9.0' && exit; exit 1")
    result = make_environment(checkout, binaries, PYTHON=str(binaries / "python9"))
    assert result.returncode == 1
    assert "expected a Python 3.10, found Python 9.0" in result.stderr


def test_no_compiler(bare_machine):
    """The package without wheels is tried first; nothing else has been downloaded by then."""
    checkout, binaries = bare_machine
    if not (ROOT / ".uv").is_dir():
        pytest.skip("the environment was not made by `make env`, so there is no .uv to use")
    (checkout / ".uv").symlink_to(ROOT / ".uv")
    python = os.path.realpath(sys.executable)
    index = {name: os.environ[name] for name in INDEX if name in os.environ}
    result = make_environment(checkout, binaries, PYTHON=python, UV_NO_CACHE="1", **index)
    if "Failed to fetch" in result.stderr:
        pytest.skip(f"no package index: {result.stderr[:300]}")
    assert result.returncode == 1
    progress, error = result.stderr.strip().splitlines()
    assert progress.startswith("Making .venv with Python 3.10")
    assert error.startswith("error: expected a C++ compiler and Python's headers")
    assert "apt-get install g++ python3-dev" in error
    assert not list((checkout / ".venv").glob("lib/python3.10/site-packages/*.dist-info"))


def test_gpu_is_yes_or_no(bare_machine):
    result = make_environment(*bare_machine, GPU="two")
    assert result.returncode == 1
    assert "error: GPU=two: expected 1 (with CUDA's libraries), 0 or nothing" in result.stderr


def test_the_libraries_for_gpus_are_those_that_tensorflow_names():
    wanted = {}
    for requirement in importlib.metadata.requires("tensorflow"):
        if found := re.match(r"(nvidia[\w-]*) ?\(?==([\w.]*)", requirement):
            wanted[found[1]] = found[2]
    lock = (ROOT / "requirements-gpu.lock").read_text(encoding="utf-8")
    assert wanted
    assert dict(re.findall(r"^([\w-]+)==(\S+)", lock, re.MULTILINE)) == wanted
    assert lock.count("--hash=sha256:") >= len(wanted)


def test_other_platforms_are_refused(bare_machine):
    checkout, binaries = bare_machine
    (binaries / "uname").unlink()
    add_program(binaries, "uname", "echo Darwin arm64")
    result = make_environment(checkout, binaries)
    assert result.returncode == 1
    assert "expected Linux on x86_64, found Darwin arm64" in result.stderr


def test_an_existing_environment_is_left_alone():
    """The stamp says it is complete: nothing is installed again."""
    if not (ROOT / ".venv" / ".complete").is_file():
        pytest.skip("the environment was not made by `make env`")
    before = os.stat(ROOT / ".venv" / ".complete").st_mtime_ns
    result = subprocess.run(
        [str(ROOT / "environment.sh")], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert os.stat(ROOT / ".venv" / ".complete").st_mtime_ns == before


def test_make_lets_python_keep_its_bytecode():
    """Else each process compiles TFX anew where the variable is set."""
    probe = 'probe: ; @echo "[$$PYTHONDONTWRITEBYTECODE]"'
    result = subprocess.run(
        ["make", "-C", ROOT, "-s", "--eval", probe, "probe"],
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.stdout == "[]\n", result.stderr
