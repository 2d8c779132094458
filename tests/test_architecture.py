"""The house keeps its shape: four floors, imports point down, nothing private, nothing leaks."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("preprocessing", "ahnet_tf", "serving", "pipeline")
SOURCES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
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
    "pipeline.worker",
    "pipeline.demo",
)


def imported_modules(path: Path) -> set[str]:
    """Every module a file imports, wherever in the file the import stands."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its floor"
            modules.add(node.module)
            modules.update(f"{node.module}.{name.name}" for name in node.names)
    return modules


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_imports_point_down(path):
    floor = FLOORS.index(path.relative_to(ROOT).parts[0])
    above = FLOORS[floor + 1 :]
    upward = {name for name in imported_modules(path) if name.split(".")[0] in above}
    assert not upward, f"{relative(path)} stands below what it imports: {upward}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_only_public_keras(path):
    private = ("keras.src", "tensorflow.python", "keras.engine", "keras.utils.tf_utils")
    found = {name for name in imported_modules(path) if name.startswith(private)}
    assert not found


def test_preprocessing_knows_no_network():
    for path in (ROOT / "preprocessing").rglob("*.py"):
        assert not any(name.split(".")[0] == "keras" for name in imported_modules(path))
        assert "tf.keras" not in path.read_text(encoding="utf-8"), relative(path)


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_assert_on_what_users_give(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def test_no_drawer_for_odds_and_ends():
    names = {"utils.py", "helpers.py", "misc.py", "common.py"}
    assert not [relative(path) for path in SOURCES if path.name in names]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_quick_and_gives_examples(command):
    """--help answers without the frameworks and shows how the command is typed."""
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


def test_format_and_style():
    for check in (["format", "--check", "--quiet"], ["check", "--quiet"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *check, "."], capture_output=True, text=True, cwd=ROOT
        )
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_every_file_says_what_it_holds(path):
    """A file's first line stands, word for word, in docs/architecture.md."""
    if path.name == "__init__.py":
        return
    first_line = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).split("\n")[0]
    name = path.relative_to(ROOT / path.relative_to(ROOT).parts[0])
    described = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert f"| `{name}` | {first_line} |" in described
