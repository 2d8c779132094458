"""The architecture: layers and packages, public APIs only, small folders, quick --help, style."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("preprocessing", "ahnet_tf", "serving", "pipeline")
SOURCES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
LARGEST_FOLDER = 14
# Which packages each package may import, on its own layer and below. Every package may also import the shared
# modules in the top folders of its own and lower layers, whose own rows bear the layer's name.
PACKAGES = {
    "preprocessing": (),
    "volumes": (),
    "dicom": ("volumes",),
    "datasets": ("dicom", "volumes"),
    "records": ("datasets", "volumes"),
    "phantom": ("datasets", "volumes"),
    "page": ("datasets", "volumes"),
    "ahnet_tf": (),
    "networks": (),
    "weights": ("networks",),
    "data": ("records",),
    "inference": ("networks", "weights", "datasets", "dicom", "volumes"),
    "evaluation": ("inference", "datasets", "volumes"),
    "report": ("evaluation", "page", "datasets", "volumes"),
    "training": (
        *("networks", "weights", "data", "evaluation", "report"),
        *("page", "volumes"),
    ),
    "serving": (),
    "export": ("inference", "networks", "weights", "records"),
    "client": ("inference", "volumes"),
    "embedded": ("inference",),
    "pipeline": ("evaluation", "records"),
    "components": (
        *("client", "embedded", "export", "training", "data", "networks", "weights", "inference"),
        "evaluation",
        *("records", "datasets", "volumes"),
    ),
    "local": ("components", "training", "data", "datasets", "records"),
    "kubeflow": (),
}
# Modules of the top folders that may import every package of their layer; all others are shared.
TOP_MODULES = {
    *("preprocessing.convert", "preprocessing.verify"),
    *("ahnet_tf.train", "ahnet_tf.predict", "ahnet_tf.evaluate"),
    *("ahnet_tf", "ahnet_tf.api", "ahnet_tf.segmenter"),
    *("serving.server", "serving.status"),
    *("pipeline.console", "pipeline.dag", "pipeline.demo", "pipeline.lineage"),
    *("pipeline.local_runner", "pipeline.kubeflow_runner"),
}
COMMAND, SHARED = "command", "shared"
COMMANDS = (
    "preprocessing.phantom",
    "preprocessing.convert",
    "preprocessing.verify",
    "ahnet_tf.train",
    "ahnet_tf.predict",
    "ahnet_tf.evaluate",
    "ahnet_tf.weights",
    "serving.export",
    "serving.server",
    "serving.status",
    "pipeline.local_runner",
    "pipeline.kubeflow_runner",
    "pipeline.kubeflow.rehearsal",
    "pipeline.lineage",
    "pipeline.demo",
    "pipeline.console",
)


def imported_modules(path: Path) -> set[str]:
    """Every module a file imports, wherever in the file the import stands."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports are not used"
            modules.add(node.module)
            modules.update(f"{node.module}.{name.name}" for name in node.names)
    return modules


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def place_of(module: str) -> tuple[int, str]:
    """Returns layer and package of a module; the package is COMMAND or SHARED in a layer's top folder."""
    layer, *path = module.split(".")
    name = path[0] if path else ""
    if name in PACKAGES:
        return LAYERS.index(layer), name
    return LAYERS.index(layer), COMMAND if module in TOP_MODULES else SHARED


def allowed(importer: str, imported: str) -> bool:
    """Returns whether the table lets one module import the other."""
    (layer, package), (other_layer, other) = place_of(importer), place_of(imported)
    if other_layer > layer:
        return False
    if package == COMMAND or other == SHARED:
        return True
    if other == COMMAND:
        return other_layer < layer
    return other == package or other in PACKAGES.get(
        package if package != SHARED else LAYERS[layer], ()
    )


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_follow_the_table(path):
    importer = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    ours = {name for name in imported_modules(path) if name.split(".")[0] in LAYERS}
    forbidden = {name for name in ours if not allowed(importer, name)}
    assert not forbidden, f"{relative(path)} may not import {forbidden}: see PACKAGES"


def test_the_picture_shows_the_table():
    """Every arrow is allowed, and every import that the table allows follows from the arrows."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    arrows = set(re.findall(r"^  (\w+) --> (\w+)$", text, re.MULTILINE))
    packages = {
        package: set(others) for package, others in PACKAGES.items() if package not in LAYERS
    }
    assert arrows <= {(package, other) for package, others in packages.items() for other in others}
    reachable = {
        package: {other for start, other in arrows if start == package} for package in packages
    }
    for _ in packages:
        for reached in reachable.values():
            reached.update(*(reachable[other] for other in tuple(reached)))
    assert {package: others - reachable[package] for package, others in packages.items()} == {
        package: set() for package in packages
    }


def test_folders_stay_small():
    counts = Counter(path.parent for path in SOURCES)
    assert not {relative(folder): n for folder, n in counts.items() if n > LARGEST_FOLDER}


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_only_public_keras(path):
    private = ("keras.src", "tensorflow.python", "keras.engine", "keras.utils.tf_utils")
    found = {name for name in imported_modules(path) if name.startswith(private)}
    assert not found
    # With TensorFlow 2.21 it is Keras 2 or 3, as the order of imports has it.
    assert not re.search(r"\btf\.keras\b", path.read_text(encoding="utf-8"))


def test_preprocessing_knows_no_network():
    for path in (ROOT / "preprocessing").rglob("*.py"):
        assert not any(name.split(".")[0] == "keras" for name in imported_modules(path))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_assert_outside_tests(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def test_no_file_without_a_purpose():
    names = {"utils.py", "helpers.py", "misc.py", "common.py"}
    assert not [relative(path) for path in SOURCES if path.name in names]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_quick_and_gives_examples(command):
    """--help imports no framework and shows examples."""
    probe = (
        "import runpy, sys\n"
        f"sys.argv = [{command!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_module({command!r}, run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    heavy = {'tensorflow', 'tfx', 'apache_beam'} & set(sys.modules)\n"
        "    sys.exit(f'imports {heavy}' if heavy else stop.code)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert f"python -m {command}" in result.stdout
    assert "examples:" in result.stdout
    assert "--debug" in result.stdout
    assert result.stderr == ""


@pytest.mark.slow
def test_format_style_and_types():
    for check in (
        ["ruff", "format", "--check", "--quiet", "."],
        ["ruff", "check", "--quiet", "."],
        ["mypy"],
    ):
        result = subprocess.run(
            [sys.executable, "-m", *check], capture_output=True, text=True, cwd=ROOT
        )
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_every_file_has_a_docstring(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
