"""What one stack writes the other one reads: records, an unfinished run, a checkpoint, an export.

Runs where both environments are there: `make env STACK=2.15` and `make env STACK=current`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.signals import default_signals

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "tests" / "stored_0_1"
TASK = STORED / "records" / "task.json"
STEPS = 20
TRAINING = ["--config", str(STORED / "run_settings.json"), "--steps", str(STEPS)]
TRAINING += ["--set", "checkpoint_every=2", "--set", f"evaluate_every={STEPS}"]
# What a checkpoint and an export make of a fixed image: logits and probabilities.
ANSWERS = """
import sys
import numpy as np
from ahnet_tf.inference.predictor import open_predictor
from ahnet_tf.weights.checkpoint import load_network

run, export, output = sys.argv[1:]
with np.load("tests/stored_0_1/expected.npz") as arrays:
    image = arrays["image"]
model, _ = load_network(run)
logits = model(image, training=False).numpy()
np.savez(output, logits=logits, probabilities=open_predictor(export).predict(image))
"""


def python_of_the_other_stack() -> Path | None:
    """Returns the Python of an environment of this checkout whose stack is not the one of these tests."""
    for name in (".venv-2.15", ".venv-current", ".venv"):
        python = ROOT / name / "bin" / "python"
        if python.exists():
            probe = [python, "-c", "import sys; print(sys.version_info >= (3, 11))"]
            current = subprocess.run(probe, capture_output=True, text=True, check=True).stdout
            if json.loads(current.lower()) != (sys.version_info >= (3, 11)):
                return python
    return None


OTHER = python_of_the_other_stack()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(OTHER is None, reason="there is no environment of the other stack"),
]


def start(python: Path, *words: object) -> subprocess.Popen:
    return subprocess.Popen(
        [python, *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=default_signals,
    )


def run(python: Path, *words: object) -> str:
    process = start(python, *words)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def stop_after_a_checkpoint(process: subprocess.Popen, folder: Path) -> None:
    while process.poll() is None and not list(folder.glob("*/checkpoints/*")):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, output


@pytest.mark.parametrize("direction", ["this to the other", "the other to this"])
def test_artifacts_cross(direction, tmp_path):
    writer, reader = Path(sys.executable), OTHER
    if direction == "the other to this":
        writer, reader = reader, writer
    volumes, records, folder = (tmp_path / name for name in ("volumes", "records", "run"))
    run(writer, "-m", "preprocessing.phantom", "--output", volumes, "--cases", 3)
    convert = ["-m", "preprocessing.convert", "--input", volumes, "--output", records]
    run(writer, *convert, "--task", TASK, "--eval-fraction", 0.34)
    train = ["-m", "ahnet_tf.train", "--input", records, "--output", folder, *TRAINING]
    stop_after_a_checkpoint(start(writer, *train), folder)
    # The other stack goes on with the unfinished training on these records, and finishes it.
    run(reader, *train)
    run(
        writer, "-m", "serving.export", "--model", folder / "ahnet", "--output", tmp_path / "models"
    )

    answers = {}
    for name, python in (("writer", writer), ("reader", reader)):
        run(python, "-c", ANSWERS, folder / "ahnet", tmp_path / "models", tmp_path / f"{name}.npz")
        with np.load(tmp_path / f"{name}.npz") as arrays:
            answers[name] = dict(arrays)
    limit = 2e-5 * np.abs(answers["writer"]["logits"]).max()
    np.testing.assert_allclose(answers["reader"]["logits"], answers["writer"]["logits"], atol=limit)
    probabilities = [answers[name]["probabilities"] for name in ("reader", "writer")]
    np.testing.assert_allclose(*probabilities, atol=1e-5)
