"""The image: its Dockerfile is linted, what it copies is checked, and its steps are taken in bare roots.

`make test-image` takes the steps: each installs an environment from nothing.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pathspec
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "Dockerfile"
# What Docker's Python images of Debian hold besides a Python in /usr/local; those that are not slim
# have compilers too.
SLIM = [
    "ca-certificates",
    "libbz2-1.0",
    "libcrypt1",
    "libexpat1",
    "libffi8",
    "liblzma5",
    "libncursesw6",
    "libreadline8",
    "libsqlite3-0",
    "libssl3",
    "libuuid1",
    "zlib1g",
]
COMPILER = "g++"
# Those with another name since 64-bit times.
RENAMED = {"trixie": {"libssl3": "libssl3t64", "libreadline8": "libreadline8t64"}}
# The build arguments of each stack, and where `make env` and `make env STACK=...` put its Python.
STACKS = {
    "2.15": ({"PYTHON": "3.10", "DEBIAN": "bookworm"}, "requirements.lock"),
    "current": ({"PYTHON": "3.12", "DEBIAN": "trixie"}, "requirements-current.lock"),
}


def instructions() -> list[tuple[str, str]]:
    """Returns the instructions of the Dockerfile with their arguments, in order."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def context_files(folder: Path = ROOT) -> list[Path]:
    """Returns the files below a folder that .dockerignore lets into the image, relative to it."""
    # Docker reads these patterns as lines of .gitignore but for two things: they begin at the context's
    # folder, and a file below an ignored folder can be taken in again. PathSpec leaves the latter out too.
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    anchored = [re.sub("^!?", r"\g<0>/", line) for line in lines if line and line[0] != "#"]
    rules = pathspec.PathSpec.from_lines("gitwildmatch", anchored)
    skipped = {".git", ".venv", ".venv-2.15", ".venv-current", ".env-peers", ".uv", "__pycache__"}
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in skipped]
        found += [(Path(parent) / name).relative_to(folder) for name in files]
    return sorted(path for path in found if not rules.match_file(path))


def source_files() -> set[Path]:
    """Returns the files of the checkout that git tracks or would."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {Path(line) for line in result.stdout.splitlines()}


def normalized(package: str) -> str:
    """Returns a package's name as PyPI compares names."""
    return re.sub(r"[-_.]+", "-", package).lower()


class Stage:
    """Takes the steps of one stage of a Dockerfile in a root of its own, by chroot."""

    def __init__(self, root: Path, python: Path):
        self.root = root
        self.folder = "/"
        self.user = "0"
        self.command: list[str] = []
        authorities = "/etc/ssl/certs/ca-certificates.crt"
        self.variables = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": "/tmp",
            "SSL_CERT_FILE": authorities,
            "PIP_CERT": authorities,
        }
        # Python, and how this machine reaches its package index.
        shutil.copytree(python, root / "usr/local", symlinks=True, dirs_exist_ok=True)
        for path in (authorities, "/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf"):
            if Path(path).is_file():
                shutil.copy2(path, root / path.lstrip("/"))
        subprocess.run(["chroot", root, "ldconfig"], check=True)

    def take(self, name: str, rest: str, stages: dict[str, Stage]) -> None:
        """Takes an instruction other than FROM."""
        if name == "COPY":
            self._copy(rest, stages)
        else:
            getattr(self, f"_{name.lower()}")(rest)

    def run(self, words: list[str], folder: str = "") -> subprocess.CompletedProcess:
        """Runs a command in the root, as the user and in the folder that the steps have set."""
        change = ["sh", "-c", 'cd "$0" && exec "$@"', folder or self.folder, *words]
        return subprocess.run(
            ["chroot", f"--userspec={self.user}:{self.user}", self.root, *change],
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=1200,
        )

    def _workdir(self, path: str) -> None:
        self.folder = path
        (self.root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def _user(self, user: str) -> None:
        self.user = user

    def _arg(self, text: str) -> None:
        name, value = text.split("=", 1)
        self.variables.setdefault(name, value)

    def _env(self, text: str) -> None:
        for word in shlex.split(text):
            name, value = word.split("=", 1)
            self.variables[name] = re.sub(r"\$(\w+)", lambda match: self.variables[match[1]], value)
        # The same packages in less time.
        self.variables.pop("UV_COMPILE_BYTECODE", None)

    def _copy(self, text: str, stages: dict[str, Stage]) -> None:
        options = [word for word in text.split() if word.startswith("--")]
        *sources, target = [word for word in text.split() if not word.startswith("--")]
        place = self.root / self.folder.lstrip("/") / target
        origin = next((o.split("=", 1)[1] for o in options if o.startswith("--from=")), None)
        if origin:
            (source,) = sources
            # Links instead of copies: the other stage is not used any more.
            words = ["cp", "-al", stages[origin].root / source.lstrip("/"), place]
            subprocess.run(words, check=True)
        else:
            for path in context_files():
                if sources == ["."] or any(fnmatch(str(path), source) for source in sources):
                    (place / path).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / path, place / path)
        owner = next((o.split("=", 1)[1] for o in options if o.startswith("--chown=")), "0")
        subprocess.run(["chown", "-R", f"{owner}:{owner}", place], check=True)

    def _run(self, command: str) -> None:
        result = self.run(["sh", "-c", command])
        assert result.returncode == 0, result.stderr

    def _cmd(self, text: str) -> None:
        self.command = json.loads(text)


def test_the_dockerfile_passes_hadolint():
    hadolint = Path(sys.executable).with_name("hadolint")
    result = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")


def test_it_copies_files_that_are_there():
    sources = [
        word
        for name, rest in instructions()
        if name == "COPY" and "--from=" not in rest
        for word in rest.split()[:-1]
        if not word.startswith("--")
    ]
    assert {"environment.sh", "requirements*.lock", "setup.py", "."} <= set(sources)
    copied = [str(path) for path in context_files()]
    for source in sources:
        assert source == "." or any(fnmatch(path, source) for path in copied), source
    locks = {path.name for path in ROOT.glob("requirements*.lock")}
    assert locks == {path for path in copied if path.endswith(".lock")}


def test_the_image_holds_the_packages_whole_and_nothing_that_git_ignores():
    found = set(context_files())
    floors = {"preprocessing", "ahnet_tf", "serving", "pipeline"}
    shipped = {path for path in source_files() if path.parts[0] in floors}
    assert found <= source_files()
    assert {path for path in shipped if path.parts[:2] != ("serving", "deploy")} <= found


def test_no_data_of_a_checkout_gets_into_the_image(tmp_path):
    """Records, models, scans and tables, in folders of their own or forgotten beside the code."""
    made = [
        "records/train/case-00000.tfrecord",
        "pipeline_run/serving_model/1/saved_model.pb",
        "scan.nii.gz",
        "notes.py",
        ".venv/lib/module.py",
        "demo/report.html",
        "preprocessing/volume.dcm",
        "pipeline/components/cases.csv",
        "serving/deploy/kubernetes/secret.yaml",
    ]
    for name in [*made, "pipeline/dag.py", "setup.py"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert context_files(tmp_path) == [Path("pipeline/dag.py"), Path("setup.py")]


def test_git_ignores_every_folder_that_the_documentation_writes_into():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    options = re.compile(r"--output ([\w.-]+)(?:[\s'`)/]|$)", re.MULTILINE)
    folders = {name for page in pages for name in options.findall(page.read_text(encoding="utf-8"))}
    folders = {name for name in folders if "." not in name}
    assert {"records", "run", "pipeline_run"} <= folders
    command = ["git", "check-ignore", *(f"{name}/x" for name in folders)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert {line.removesuffix("/x") for line in result.stdout.splitlines()} == folders


def test_the_last_user_is_a_number_other_than_roots():
    users = [rest for name, rest in instructions() if name == "USER"]
    assert users[-1].isdigit()
    assert int(users[-1]) > 0


@pytest.fixture
def bare_roots(tmp_path):
    """Yields a function that makes the root of an image by name; roots hold gigabytes, so they are removed."""
    if not os.environ.get("AHNET_IMAGE"):
        pytest.skip("make test-image runs this")
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("needs root rights and debootstrap (apt-get install debootstrap)")
    sites = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"],
        capture_output=True,
        text=True,
    ).stdout.split()
    made = []

    def make(image: str) -> Path:
        match = re.fullmatch(r"python:3\.\d+(-slim)?-(\w+)", image)
        assert match, image
        packages = [RENAMED.get(match[2], {}).get(name, name) for name in SLIM]
        packages += [] if match[1] else [COMPILER]
        root = tmp_path / f"root{len(made)}"
        made.append(root)
        words = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}"]
        result = subprocess.run(
            [*words, match[2], root, *sites[:1]], capture_output=True, text=True
        )
        if result.returncode:
            pytest.skip(f"debootstrap made no root: {result.stdout.strip().splitlines()[-1]}")
        return root

    yield make
    for root in made:
        subprocess.run(["rm", "-rf", root], check=True)


def python_of(stack: str) -> Path:
    """Returns the folder of a stack's Python: that of the environment of these tests, or of another one."""
    arguments, _ = STACKS[stack]
    for environment in (sys.prefix, ROOT / f".venv-{stack}", ROOT / ".venv"):
        python = Path(environment) / "bin" / f"python{arguments['PYTHON']}"
        if python.exists():
            return python.resolve().parents[1]
    pytest.skip(f"no environment of this stack (make env STACK={stack})")


def locked_versions(lock: str, python: str) -> dict[str, str]:
    """Returns the packages that a lock names for a version of Python, with their versions."""
    lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        if re.match(r"[\w.-]+(\[.*\])?==", line):
            pin = Requirement(line.rstrip("\\ "))
            version = {"python_version": python, "python_full_version": f"{python}.1"}
            if pin.marker is None or pin.marker.evaluate(version):
                found[normalized(pin.name)] = str(pin.specifier).removeprefix("==")
    return found


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stack", STACKS)
def test_its_steps_make_the_locked_environment_from_nothing(bare_roots, stack):
    """Each stage in a Debian of its own: neither this machine's compiler nor its caches."""
    python = python_of(stack)
    arguments, lock = STACKS[stack]
    stages: dict[str, Stage] = {}
    stage = None
    for name, rest in instructions():
        if name == "FROM":
            image, _, alias = re.sub(
                r"\$\{(\w+)\}", lambda found: arguments[found[1]], rest
            ).partition(" AS ")
            stage = stages[alias] = Stage(bare_roots(image), python)
        elif stage:
            stage.take(name, rest, stages)
        else:
            assert name == "ARG"

    assert stage.run(["sh", "-c", "command -v gcc g++ cc"]).stdout == ""
    probe = (
        "import importlib.metadata as m, importlib.util as u, json, farmhash\n"
        "modules = ['pipeline.components.trainer', 'ahnet_tf.networks', 'serving', 'preprocessing',\n"
        "           'tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor']\n"
        "found = [[d.name, d.version] for d in m.distributions()]\n"
        "print(json.dumps([found, [name for name in modules if not u.find_spec(name)]]))\n"
    )
    # Pods of a cluster may start anywhere, and Beam's workers do.
    result = stage.run(["python", "-c", probe], folder="/tmp")
    assert result.returncode == 0, result.stderr
    found, missing = json.loads(result.stdout)
    assert missing == []
    installed = {normalized(package): version for package, version in found}
    del installed["ahnet-tf"]
    assert installed == locked_versions(lock, arguments["PYTHON"])
    helped = stage.run([*stage.command, "--help"])
    assert helped.returncode == 0, helped.stderr
    assert "python -m pipeline.demo" in helped.stdout
