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
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
# How a machine reaches its package index.
INDEX = ("SSL_CERT_FILE", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "HTTPS_PROXY", "https_proxy")
TOOLS = ("sh", "dirname", "cat", "cksum", "uname", "grep", "rm", "sed", "flock", "getconf", "mkdir")
LOCKS = sorted(path.name for path in ROOT.glob("requirements*.lock"))


@pytest.fixture
def bare_machine(tmp_path):
    """A checkout in a folder with a space, and a PATH that holds a shell's tools but no Python."""
    checkout = tmp_path / "a checkout"
    checkout.mkdir()
    for name in ("environment.sh", "setup.py", *LOCKS):
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


def set_glibc(binaries: Path, minor: int) -> None:
    """Lets the machine's C library be glibc 2.`minor`."""
    (binaries / "getconf").unlink(missing_ok=True)
    add_program(binaries, "getconf", f"echo glibc 2.{minor}")


def add_python(binaries: Path, name: str, minor: int) -> Path:
    """Adds a program that says of itself that it is Python 3.`minor`, and does nothing else."""
    says = f"case $1 in --version) echo Python 3.{minor}.9 ;; -c) echo {minor} ;; *) exit 1 ;; esac"
    add_program(binaries, name, says)
    return binaries / name


def add_recording_uv(checkout: Path) -> None:
    """Puts a uv in place that writes down its arguments and makes nothing but the folder."""
    (checkout / ".uv" / "bin").mkdir(parents=True)
    script = """case "$1 $2" in
--version*) sed -n 's/^uv_version=/uv /p' environment.sh; exit ;;
"python install") exit 1 ;;
venv*) for environment in "$@"; do :; done; mkdir -p "$environment/bin" ;;
esac
echo "$@" >>uv_calls"""
    add_program(checkout / ".uv" / "bin", "uv", script)


def test_no_python_at_all(bare_machine):
    result = make_environment(*bare_machine)
    assert result.returncode == 1
    assert "error: expected a Python with pip, found none" in result.stderr
    assert not (bare_machine[0] / ".venv").exists()


CHOICES = [
    # glibc, Pythons of the machine, settings, lock, environment, Python
    (36, ("python3.10", "python3.12"), {}, "requirements.lock", ".venv", "3.10"),
    (41, ("python3.10", "python3.12"), {}, "requirements-current.lock", ".venv", "3.12"),
    (39, ("python3.11", "python3.13"), {}, "requirements-current.lock", ".venv", "3.13"),
    (41, ("python3.10",), {}, "requirements.lock", ".venv", "3.10"),
    (38, ("python3.10", "python3.13"), {}, "requirements.lock", ".venv", "3.10"),
    (
        41,
        ("python3.10", "python3.12"),
        {"STACK": "2.15"},
        "requirements.lock",
        ".venv-2.15",
        "3.10",
    ),
    (
        *(41, ("python3.10", "python3.12"), {"STACK": "current"}),
        *("requirements-current.lock", ".venv-current", "3.12"),
    ),
    (
        *(41, ("python3.10", "python3.12"), {"PYTHON": "python3.10"}),
        *("requirements.lock", ".venv", "3.10"),
    ),
    (
        *(41, ("python3.12", "python3.11"), {"PYTHON": "python3.11"}),
        *("requirements-current.lock", ".venv", "3.11"),
    ),
]


@pytest.mark.parametrize(("glibc", "pythons", "settings", "lock", "environment", "python"), CHOICES)
def test_the_stack_fits_the_machine(
    bare_machine, glibc, pythons, settings, lock, environment, python
):
    checkout, binaries = bare_machine
    set_glibc(binaries, glibc)
    add_recording_uv(checkout)
    for name in pythons:
        add_python(binaries, name, int(name.removeprefix("python3.")))
    result = make_environment(checkout, binaries, **settings)
    assert result.returncode == 0, result.stderr
    assert f"Making {environment} with Python {python}.9" in result.stderr
    calls = (checkout / "uv_calls").read_text().splitlines()
    assert f"pip sync -q --python {environment}/bin/python --require-hashes {lock}" in calls
    # The one package that has to be compiled is in the old stack alone.
    assert any("compiled.txt" in call for call in calls) == (lock == "requirements.lock")
    assert (checkout / environment / ".complete").is_file()


def test_the_current_stack_without_its_pipeline(bare_machine):
    """Where TFX 1.21 has no wheels, those who insist get everything else."""
    checkout, binaries = bare_machine
    set_glibc(binaries, 36)
    add_recording_uv(checkout)
    add_python(binaries, "python3.12", 12)
    result = make_environment(checkout, binaries, STACK="current")
    assert result.returncode == 0, result.stderr
    assert "Without the pipeline: its TFX needs glibc 2.39, found 2.36" in result.stderr
    locked = (checkout / ".venv-current" / "packages.txt").read_text()
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", locked, re.MULTILINE))
    whole = (checkout / "requirements-current.lock").read_text()
    left_out = dict(re.findall(r"^([\w-]+)==(\S+)", whole, re.MULTILINE)).keys() - pins
    assert {"tensorflow", "keras", "apache-beam"} <= pins.keys()
    assert left_out == {
        "tfx",
        "ml-metadata",
        "tensorflow-data-validation",
        "tensorflow-model-analysis",
    }
    # Whole entries: each pin that is left has its hashes, and no hash is left over.
    entry = r"(^[\w-]+(\[.*\])?==.*\\\n(    --hash=sha256:\w+( \\)?\n)+(    #.*\n)*)+|^    #.*\n"
    assert re.sub(entry, "", locked, flags=re.MULTILINE) == ""


REFUSED = [
    (36, ("python3.9",), {}, "expected Python 3.10 on this machine", "pyenv install 3.10"),
    (41, (), {}, "expected Python 3.11, 3.12 or 3.13 on this machine", "pyenv install 3.12"),
    (
        41,
        ("python3.12",),
        {"STACK": "2.15"},
        "expected Python 3.10 on",
        "PYTHON=/path/to/python3.10",
    ),
    (36, ("python3.9",), {"PYTHON": "python3.9"}, "expected a Python 3.10, found Python 3.9", ""),
    (36, ("python3.12",), {"PYTHON": "python3.12"}, "TFX needs glibc 2.39", "STACK=current"),
    (
        *(41, ("python3.10",), {"PYTHON": "python3.10", "STACK": "current"}),
        *("expected a Python 3.11, 3.12 or 3.13, found Python 3.10", "python3.12"),
    ),
    (41, ("python3.12",), {"STACK": "2.21"}, "STACK=2.21: expected current", "2.15"),
    (27, ("python3.10",), {}, "expected glibc 2.28 or newer, found 2.27", "Use the Dockerfile"),
]


@pytest.mark.parametrize(("glibc", "pythons", "settings", "sentence", "remedy"), REFUSED)
def test_machines_that_neither_stack_takes(
    bare_machine, glibc, pythons, settings, sentence, remedy
):
    checkout, binaries = bare_machine
    set_glibc(binaries, glibc)
    add_recording_uv(checkout)
    for name in pythons:
        add_python(binaries, name, int(name.removeprefix("python3.")))
    # A pyenv shim whose version is gone: there, but of no use.
    for name in {"python3.10", "python3.12"}.difference(pythons):
        add_program(binaries, name, "echo 'pyenv: command not found' >&2; exit 127")
    result = make_environment(checkout, binaries, **settings)
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert sentence in errors[0]
    assert remedy in errors[0]
    assert not (checkout / ".venv").exists()


def test_another_c_library(bare_machine):
    checkout, binaries = bare_machine
    (binaries / "getconf").unlink()
    result = make_environment(checkout, binaries)
    assert result.returncode == 1
    assert "error: expected glibc 2.28 or newer, found another C library" in result.stderr


def python310() -> str:
    """Returns the path of a Python 3.10: of the environment of these tests, or of another one."""
    for environment in (Path(sys.prefix), ROOT / ".venv", ROOT / ".venv-2.15"):
        if (environment / "bin" / "python3.10").exists():
            return os.path.realpath(environment / "bin" / "python3.10")
    pytest.skip("no Python 3.10 (make env STACK=2.15)")


def test_no_compiler(bare_machine):
    """The package without wheels is tried first; nothing else has been downloaded by then."""
    checkout, binaries = bare_machine
    if not (ROOT / ".uv").is_dir():
        pytest.skip("the environment was not made by `make env`, so there is no .uv to use")
    (checkout / ".uv").symlink_to(ROOT / ".uv")
    python = python310()
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
    """Of the stack that runs these tests: TensorFlow names versions in the old one, ranges in the current."""
    name = "requirements-gpu.lock"
    if sys.version_info >= (3, 11):
        name = "requirements-current-gpu.lock"
    wanted = {}
    for text in importlib.metadata.requires("tensorflow"):
        requirement = Requirement(text)
        if requirement.name.startswith("nvidia-"):
            wanted[requirement.name] = requirement.specifier
    lock = (ROOT / name).read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", lock, re.MULTILINE))
    assert wanted.keys() == pins.keys()
    assert all(wanted[package].contains(version) for package, version in pins.items())
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
