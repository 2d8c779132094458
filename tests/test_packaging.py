"""The wheel holds the product and nothing else, and runs with the packages of its core alone."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import pytest
from packaging.requirements import Requirement

from ahnet_tf.config import ModelConfig
from ahnet_tf.inference.predictor import ExportSettings
from ahnet_tf.networks import build_network
from preprocessing.errors import EXTRAS
from preprocessing.tasks import load_task
from serving.export.exporter import export_model

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("preprocessing", "ahnet_tf", "serving", "pipeline")
# Given to the orchestrator of a user, not read by the code.
NOT_INSTALLED = "serving/deploy/"
EXPORT = ROOT / "tests" / "stored_0_1" / "export"
RECORDS = ROOT / "tests" / "stored_0_1" / "records"
NETWORK = ROOT / "tests" / "stored_0_1" / "networks" / "ahnet"
# Used only where a user has them: torch to read .pth files, IPython if the program is a notebook.
OPTIONAL = {"torch", "IPython"}
# Of an extra, but of the core's own: the child process of a back end, started where it is installed.
BACK_ENDS = {"openvino"}

# In a sitecustomize.py: the packages in BLOCKED are as if they were not installed.
BLOCKER = """
import json, os, sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    blocked = frozenset(json.loads(os.environ["BLOCKED"]))

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in cls.blocked:
            return None
        return super().find_spec(name, path, target)

sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the files that git knows or would add: building leaves files in the folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    copy = tmp_path_factory.mktemp("checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", ".", "--no-deps", "--no-build-isolation", "-w", folder, cwd=checkout)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    pip("install", wheel, "--no-deps", "--target", folder, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def core_only(installed, tmp_path_factory):
    """Returns a function that runs Python with the installed wheel and its core's packages only."""
    needed = requirements(installed)
    blocked = [
        package
        for package, providers in providers_by_package().items()
        if not needed & providers and package not in FLOORS
    ]
    assert set(EXTRAS) <= set(blocked)
    site = tmp_path_factory.mktemp("site")
    (site / "sitecustomize.py").write_text(BLOCKER)
    folder = tmp_path_factory.mktemp("empty")
    # TFX's own modules, which other tests import, set this for the whole process.
    inherited = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    variables = inherited | {
        "BLOCKED": json.dumps(blocked),
        "PYTHONPATH": f"{installed}{os.pathsep}{site}",
    }

    def run(*words: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def pip(*words: object, cwd: Path) -> None:
    command = [sys.executable, "-m", "pip", *map(str, words), "--quiet", "--no-index"]
    variables = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    result = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def normalized(name: str) -> str:
    """Returns a package's name as PyPI compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(installed: Path, *extras: str) -> set[str]:
    """Returns the packages that the wheel needs with some extras, and those that these need."""
    (own,) = importlib.metadata.distributions(path=[str(installed)])
    waiting = [(own.requires, extras)]
    found: dict[str, set[str]] = {}
    while waiting:
        texts, extras = waiting.pop()
        for requirement in map(Requirement, texts or []):
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": each}) for each in ("", *extras)):
                continue
            name = normalized(requirement.name)
            if name not in found or not requirement.extras <= found[name]:
                found.setdefault(name, set()).update(requirement.extras)
                further = importlib.metadata.requires(requirement.name)
                waiting.append((further, tuple(requirement.extras)))
    return set(found)


def providers_by_package() -> dict[str, set[str]]:
    """Returns the installed distributions that provide a package, by the name it is imported by."""
    providers: dict[str, set[str]] = {}
    for distribution in importlib.metadata.distributions():
        named = (distribution.read_text("top_level.txt") or "").split()
        for package in named or {file.parts[0] for file in distribution.files or []}:
            name = normalized(distribution.metadata["Name"])
            providers.setdefault(package.removesuffix(".py"), set()).add(name)
    return providers


def imported_packages(*floors: str) -> set[str]:
    """Returns the packages of others that some floors import, wherever in a file."""
    found = set()
    for path in (path for floor in floors for path in (ROOT / floor).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.partition(".")[0])
    return found - set(FLOORS) - sys.stdlib_module_names


def test_the_wheel_holds_the_product_and_nothing_else(checkout, wheel):
    product = {
        path.relative_to(checkout).as_posix()
        for floor in FLOORS
        for path in (checkout / floor).rglob("*")
        if path.is_file()
    }
    expected = {name for name in product if not name.startswith(NOT_INSTALLED)}
    assert any(name.endswith(".jinja") for name in expected)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in names if ".dist-info/" not in name} == expected


def test_every_pattern_of_data_files_names_files():
    """A pattern without files is left over, or misspelt: the wheel's content does not tell."""
    (setup,) = (
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    (data,) = (word.value for word in setup.keywords if word.arg == "package_data")
    for package, patterns in ast.literal_eval(data).items():
        folders = [package.replace(".", "/")] if package else FLOORS
        for folder in folders:
            for pattern in patterns:
                found = [path for path in (ROOT / folder).glob(pattern) if path.is_file()]
                assert found, f"{pattern} of {folder}"


@pytest.mark.slow
def test_every_package_is_installed_where_it_is_imported(installed):
    """By the core, or by the extra that the message without it names."""
    providers = providers_by_package()
    core = requirements(installed)
    (own,) = importlib.metadata.distributions(path=[str(installed)])
    named = [Requirement(text) for text in own.requires]
    # TensorFlow Addons is a package of one of the two stacks only, without an extra.
    here = {each.name for each in named if not each.marker or each.marker.evaluate({"extra": ""})}
    always = {each.name for each in named if "extra" not in str(each.marker)}
    elsewhere = {package.replace("-", "_") for package in always - here}
    assert elsewhere <= {"tensorflow_addons"}
    for package in imported_packages(*FLOORS) - OPTIONAL - elsewhere:
        needed = requirements(installed, EXTRAS[package]) - core if package in EXTRAS else core
        assert providers[package] & needed, f"{package} is not installed"
    for package in imported_packages("preprocessing", "ahnet_tf") - BACK_ENDS:
        assert package not in EXTRAS, f"{package} belongs to an extra, and the core imports it"


@pytest.mark.slow
def test_the_console_command(installed, core_only):
    ahnet = installed / "bin" / "ahnet"
    helped = core_only(ahnet, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    names = re.findall(r"^  (\w+) +(\w.*)$", helped.stdout.partition("positional")[0], re.MULTILINE)
    assert {"convert", "train", "predict", "evaluate", "serve", "pipeline"} <= set(dict(names))
    for name in dict(names):
        command = core_only(ahnet, name, "--help")
        assert command.stdout.startswith(f"usage: ahnet {name} "), command.stderr
    assert core_only(ahnet, "--version").stdout == "ahnet-tf 0.1.0\n"
    misspelt = core_only(ahnet, "convrt", "--input", "x")
    assert misspelt.returncode == 2
    assert "found 'convrt'. Did you mean 'convert'?" in misspelt.stderr


@pytest.mark.slow
def test_the_core_predicts_without_the_extras(installed, core_only, tmp_path):
    # Of the networks, the one whose graph is made in the least time.
    model = ModelConfig(architecture="unet3d", width=1 / 16, unet_levels=2)
    settings = ExportSettings(load_task("ct_liver_small"), model, (8, 32, 32))
    export = str(export_model(build_network(model), settings, tmp_path / "models" / "1"))
    cases = tmp_path / "cases"
    phantom = core_only(
        *(installed / "bin" / "ahnet", "phantom", "--output", cases),
        *("--cases", 1, "--shape", 32, 32, 8, "--spacing-mm", 10, 10, 20),
    )
    assert phantom.returncode == 0, phantom.stderr
    assert core_only("-m", "ahnet_tf.train", "--help").returncode == 0
    probe = f"""
import ahnet_tf
from ahnet_tf.inference.predictor import open_predictor
from ahnet_tf.predict import main
from preprocessing.errors import ServingError

assert ahnet_tf.__file__.startswith({str(installed)!r}), ahnet_tf.__file__
try:
    open_predictor("localhost:1")
except ServingError as error:
    print(error)
result = ahnet_tf.load({export!r}).segment({str(cases / "volume-0.nii.gz")!r})
result.save({str(tmp_path / "segmentation-0.nii.gz")!r})
print(result.labels.shape)
raise SystemExit(main(["--model", {export!r}, {str(cases)!r}, {str(tmp_path / "labels")!r}]))
"""
    result = core_only("-c", probe)
    assert result.returncode == 0, result.stderr
    refusal, shape, *_ = result.stdout.splitlines()
    assert refusal.endswith("In a checkout, pip install '.[serving]' adds it.")
    assert nib.load(tmp_path / "segmentation-0.nii.gz").shape == ast.literal_eval(shape)
    assert (tmp_path / "labels" / "segmentation-0.nii.gz").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("pipeline", ["pipeline.local_runner", "--input", RECORDS, "--output", "run"]),
        ("pipeline", ["pipeline.lineage", EXPORT / "1", "--metadata", __file__]),
        ("pipeline", ["pipeline.demo", "--output", "demo"]),
        ("serving", ["serving.server", "--model-base-path", EXPORT]),
        ("serving", ["serving.status", "--target", "localhost:1"]),
        ("serving", ["serving.export", "--model", NETWORK, "--output", "models"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_part_without_its_extra_says_so_in_one_line(core_only, extra, command):
    result = core_only("-m", *command)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert re.search(rf"error: {extra}: expected the package \w+, found none\. ", last)
    endings = [f"In a checkout, pip install '.[{extra}]' adds it."]
    if extra == "pipeline" and sys.version_info >= (3, 11):
        # For an older C library than TFX 1.21 needs.
        endings.append("'make env STACK=2.15' makes an environment with TFX 1.15.")
    assert last.endswith(tuple(endings))
    assert "Traceback" not in result.stderr
