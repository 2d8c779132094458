"""A killed Trainer resumes from its checkpoints, wherever TFX puts the next one's outputs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tfx.components.trainer.fn_args_utils import FnArgs

from ahnet_tf.presets import run_config
from pipeline.components.trainer import run_fn_2d, working_folder

ROOT = Path(__file__).resolve().parents[3]
# Killed after its second row: the checkpoint of step 5 is saved, that of step 10 not yet begun.
TRAINER = """
import json, signal, sys
# Before TFX, which puts a folder with another package of that name on the path.
from tests.ahnet_tf.forks import Strike
from tfx.components.trainer.fn_args_utils import FnArgs
from pipeline.components.trainer import run_fn_2d
Strike(signal.SIGKILL, 2).prepare()
run_fn_2d(FnArgs(**json.loads(sys.argv[1])))
"""


@pytest.fixture
def arguments(records, task, tmp_path):
    """Gives what TFX's Trainer hands to its function, by the number of its execution."""
    config = run_config(
        task,
        settings=[
            *(
                "2d.architecture=unet2d",
                "unet_levels=2",
                "width=0.125",
                "warmup_steps=2",
                "evaluate_every=20",
                "batch_size=1",
            ),
            *("steps=20", "checkpoint_every=5", "log_every=5", "seed=3"),
        ],
    ).to_dict()["2d"]

    def make(execution, **changes):
        outputs = tmp_path / "Trainer2D"
        return {
            "train_files": [f"{records}/train/*"],
            "eval_files": [f"{records}/eval/*"],
            "serving_model_dir": str(outputs / "model" / str(execution) / "Format-Serving"),
            "model_run_dir": str(outputs / "model_run" / str(execution)),
            "custom_config": config | {"task": task.to_dict(), "code_version": "1"} | changes,
        }

    return make


def test_only_the_same_training_has_the_same_working_folder(arguments):
    def folder(execution, **changes):
        return working_folder(FnArgs(**arguments(execution, **changes)))

    assert folder(1) == folder(2)
    assert folder(1).parent.parent.name == "Trainer2D"
    training = arguments(1)["custom_config"]["training"]
    assert folder(1) != folder(1, code_version="2")
    assert folder(1) != folder(1, training=training | {"learning_rate": 0.5})
    # How often a checkpoint is written changes nothing of what is learned.
    assert folder(1) == folder(1, training=training | {"checkpoint_every": 7})
    tuned = FnArgs(**arguments(1), hyperparameters={"values": {"learning_rate": 0.5}})
    assert working_folder(tuned) != folder(1)


@pytest.mark.slow
def test_a_killed_trainer_resumes_from_its_checkpoint(arguments, capsys):
    first = arguments(1)
    work = working_folder(FnArgs(**first))
    killed = subprocess.run(
        [sys.executable, "-c", TRAINER, json.dumps(first)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    second = arguments(2)
    run_fn_2d(FnArgs(**second))
    assert f"{work}: resuming after step 5\n" in capsys.readouterr().out
    finished = Path(second["model_run_dir"])
    result = json.loads((finished / "result.json").read_text(encoding="utf-8"))
    assert result["steps"] == 20
    steps = [line.split(",")[0] for line in (finished / "history.csv").read_text().splitlines()]
    assert steps[1:] == [str(step) for step in range(5, 21, 5)]
    assert (Path(second["serving_model_dir"]) / "weights.safetensors").is_file()
    assert not work.exists()
