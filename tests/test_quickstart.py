"""The example notebook runs as it is, learns to find a liver, and shows the picture."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
LARGEST_PICTURE = 300_000


def outputs_of(notebook, kind: str) -> list:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


def text_of(notebook) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output["text"] for output in outputs if output.output_type == "stream")


def test_stored_outputs_are_small_and_tell_nothing_of_a_machine():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    (picture,) = outputs_of(notebook, "image/png")
    assert len(base64.b64decode(picture)) < LARGEST_PICTURE
    assert not re.search(r"/(home|root|work|tmp|usr)/", NOTEBOOK.read_text(encoding="utf-8"))
    for cell in notebook.cells:
        assert "execution" not in cell.metadata
        assert not [o for o in cell.get("outputs", []) if o.get("name") == "stderr"]


@pytest.mark.parametrize(
    "link", re.findall(r"\]\((?!https?:)([^)#]+)\)", NOTEBOOK.read_text(encoding="utf-8"))
)
def test_links_lead_somewhere(link):
    assert (NOTEBOOK.parent / link).exists()


@pytest.mark.slow
def test_the_notebook_runs_and_finds_the_liver(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": str(tmp_path)}}
    # Raises the error of a cell.
    NotebookClient(notebook, timeout=540, kernel_name="python3", resources=resources).execute()

    (picture,) = outputs_of(notebook, "image/png")
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    (dice,) = re.findall(r"liver Dice ([\d.]+)", text_of(notebook))
    # Liver everywhere would be 0.08.
    assert float(dice) > 0.5
    assert (tmp_path / "quickstart" / "predictions" / "segmentation-101.nii.gz").is_file()
    assert "INFO:" not in text_of(notebook)
    # Beam would load scripts from elsewhere into a notebook.
    assert outputs_of(notebook, "application/javascript") == []
