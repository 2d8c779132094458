"""The image: its Dockerfile is linted, and its steps are taken in a plain folder."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "Dockerfile"
# Steps that make the user and the folder's owner: they need root, and change nothing in a folder.
FOR_ROOT = ("useradd", "chown")


def instructions() -> list[tuple[str, str]]:
    """Returns the instructions of the Dockerfile with their arguments, in order."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def ignored(path: Path) -> bool:
    """Says whether .dockerignore keeps a file or folder at the top out of the image."""
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    return any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)


def normalized(package: str) -> str:
    """Returns a package's name as PyPI compares names."""
    return re.sub(r"[-_.]+", "-", package).lower()


class PlainFolder:
    """Takes the steps of a Dockerfile in a folder, as this user and with this machine's Python."""

    def __init__(self, root: Path):
        self.root = root
        self.folder = root
        self.user = "root"
        self.command: list[str] = []
        python = Path(os.path.realpath(sys.executable)).parent
        home = root / "home" / "ahnet"
        home.mkdir(parents=True)
        self.variables = {"PATH": f"{python}{os.pathsep}/usr/bin:/bin", "HOME": str(home)}

    def take(self, name: str, rest: str) -> None:
        getattr(self, f"_{name.lower()}")(rest)

    def run(self, words: list[str] | str, **options) -> subprocess.CompletedProcess:
        return subprocess.run(
            words, env=self.variables, capture_output=True, text=True, timeout=500, **options
        )

    def _from(self, image: str) -> None:
        version = "{}.{}".format(*sys.version_info)
        assert re.fullmatch(rf"python:{re.escape(version)}-slim-\w+", image)

    def _workdir(self, path: str) -> None:
        self.folder = self.root / path.lstrip("/")
        self.folder.mkdir(parents=True, exist_ok=True)

    def _user(self, user: str) -> None:
        self.user = user

    def _arg(self, text: str) -> None:
        name, value = text.split("=", 1)
        self.variables.setdefault(name, value)

    def _env(self, text: str) -> None:
        for word in shlex.split(text):
            name, value = word.split("=", 1)
            value = re.sub(r"\$(\w+)", lambda match: self.variables[match[1]], value)
            value = value.replace("/home/ahnet", str(self.root / "home" / "ahnet"))
            self.variables[name] = value

    def _copy(self, text: str) -> None:
        *sources, target = [word for word in text.split() if not word.startswith("--")]
        assert f"--chown={self.user}" in text
        for source in sources:
            entries = [ROOT / source] if source != "." else list(ROOT.iterdir())
            for entry in entries:
                if ignored(entry):
                    continue
                place = self.folder / target / entry.name
                if entry.is_dir():
                    caches = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(entry, place, dirs_exist_ok=True, ignore=caches)
                else:
                    shutil.copy2(entry, place)

    def _run(self, command: str) -> None:
        if command.startswith(FOR_ROOT):
            assert self.user == "root"
            return
        result = self.run(command, shell=True, cwd=self.folder)
        if result.returncode and "Network connectivity is disabled" in result.stderr:
            pytest.skip(f"a package is not in uv's cache: {result.stderr[-300:]}")
        assert result.returncode == 0, result.stderr

    def _cmd(self, text: str) -> None:
        self.command = [word.strip('" ') for word in text.strip("[]").split(",")]


def test_the_dockerfile_passes_hadolint():
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


def test_it_names_what_is_in_the_checkout_and_leaves_out_what_is_made_there():
    sources = [
        word
        for name, rest in instructions()
        if name == "COPY"
        for word in rest.split()[:-1]
        if not word.startswith("--")
    ]
    assert {"environment.sh", "requirements.lock", "requirements-gpu.lock", "setup.py", "."} <= set(
        sources
    )
    assert all((ROOT / source).exists() for source in sources)
    for made in (".git", ".venv", ".uv", "demo", ".env-peers"):
        assert ignored(ROOT / made), made
    assert not ignored(ROOT / "pipeline")


def test_the_last_user_is_a_number_other_than_roots():
    users = [rest for name, rest in instructions() if name == "USER"]
    assert users[-1].isdigit()
    assert int(users[-1]) > 0


@pytest.mark.slow
def test_its_steps_make_the_locked_environment_and_pods_find_the_project(tmp_path):
    """uv's cache and program are those of this checkout; packages are not fetched again."""
    if not (ROOT / ".uv" / "bin").is_dir():
        pytest.skip("the environment was not made by `make env`, so there is no .uv to use")
    image = PlainFolder(tmp_path / "image")
    cache = subprocess.run(
        [ROOT / ".uv" / "bin" / "uv", "cache", "dir"], capture_output=True, text=True, check=True
    )
    for name, rest in instructions():
        image.take(name, rest)
        if name == "WORKDIR":
            (image.folder / ".uv").symlink_to(ROOT / ".uv")
        image.variables |= {"UV_CACHE_DIR": cache.stdout.strip(), "UV_OFFLINE": "1"}
        # Nothing is fetched again, nor compiled for a minute: what is installed stays the same.
        for variable in ("UV_NO_CACHE", "UV_COMPILE_BYTECODE"):
            image.variables.pop(variable, None)

    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    pins = re.findall(r"^([\w.-]+)(?:\[.*\])?==([^ \\]+)", lock, re.MULTILINE)
    probe = (
        "import importlib.metadata as m, importlib.util as u, json\n"
        "modules = ['pipeline.components.trainer', 'ahnet_tf.networks', 'serving', 'preprocessing',\n"
        "           'tfx.orchestration.kubeflow.container_entrypoint']\n"
        "found = [[d.name, d.version] for d in m.distributions()]\n"
        "print(json.dumps([found, [name for name in modules if not u.find_spec(name)]]))\n"
    )
    # Pods of a cluster may start anywhere, and Beam's workers do.
    result = image.run(["python", "-c", probe], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    found, missing = json.loads(result.stdout)
    assert missing == []
    installed = {normalized(package): version for package, version in found}
    del installed["ahnet-tf"]
    assert installed == {normalized(package): version for package, version in pins}
    helped = image.run([*image.command, "--help"], cwd=image.folder)
    assert helped.returncode == 0
    assert "python -m pipeline.demo" in helped.stdout
