"""Killed, stopped and multi-worker trainings end as an uninterrupted one of a single process."""

import contextlib
import json
import random
import signal
import socket

import numpy as np
import pytest

from ahnet_tf.training.distribution import Workers, workers_of
from ahnet_tf.training.logs import read_history
from ahnet_tf.weights.checkpoint import read_safetensors
from preprocessing.errors import SettingsError
from tests.ahnet_tf.forks import Strike

SMALL = [
    "architecture=unet2d",
    "width=0.125",
    "unet_levels=2",
    "norm=batch",
    "warmup_steps=2",
    "batch_size=2",
]
OFTEN = ["checkpoint_every=4", "evaluate_every=8", "log_every=3", "weight_decay=0.01"]
STEPS = 24


def options(records, output, *settings, steps):
    given = ["--input", str(records), "--output", str(output), "--preset", "ct_liver_small"]
    given += ["--stage", "2d", "--steps", str(steps)]
    for setting in (*SMALL, *settings):
        given += ["--set", setting]
    return given


def rows_of(run):
    return read_history(run / "mcgcn" / "history.csv")


def seen(run):
    """Returns the history without the columns that depend on the speed of the machine."""
    timed = ("seconds", "patches_per_second", "voxels_per_second", "waiting_share")
    # Texts, since NaN is not equal to itself.
    return [str({k: v for k, v in row.items() if k not in timed}) for row in rows_of(run)]


def files_of(run):
    folder = run / "mcgcn"
    names = ("weights.safetensors", "last/weights.safetensors", "evaluation.json")
    return [(folder / name).read_bytes() for name in names]


@pytest.mark.slow
def test_runs_killed_and_stopped_many_times_end_as_uninterrupted(forks, toy_records, tmp_path):
    """Killed at random points of steps, checkpoints and evaluations, and once before the first step."""
    settings = [*OFTEN, "ema_momentum=0.9", "dropout=0.2"]
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    given = [*options(toy_records, undisturbed, *settings, steps=STEPS), "--deterministic"]
    log = tmp_path / "log"
    assert forks.wait(forks.train(given, log)) == 0, log.read_text()[-2000:]
    seconds_a_step = rows_of(undisturbed)[-1]["seconds"] / STEPS

    given[3] = str(disturbed)
    chance = random.Random(7)
    strikes = [Strike(signal.SIGKILL, -1, chance.uniform(0.2, 1.5))]
    strikes += [
        Strike(signal.SIGKILL, 1, chance.uniform(0.001, 2 * seconds_a_step)) for _ in range(4)
    ]
    for strike in strikes:
        assert forks.wait(forks.train(given, log, strike)) == -signal.SIGKILL
    # The one between two steps, the other while the network is built.
    for number, rows in ((signal.SIGTERM, 1), (signal.SIGINT, 0)):
        process = forks.train(given, tmp_path / "stopped", Strike(number, rows))
        assert forks.wait(process) == 128 + number
        line = (tmp_path / "stopped").read_text().splitlines()[-1]
        step = int(line.split("after step ")[1].split()[0])
        assert f"stopped by {number.name} after step {step} of {STEPS}, which is saved" in line
        checkpoints = (disturbed / "mcgcn" / "checkpoints" / "checkpoint").read_text()
        assert f'model_checkpoint_path: "ckpt-{step}"' in checkpoints
    assert not (disturbed / "mcgcn" / "result.json").exists()
    assert forks.wait(forks.train(given, log)) == 0, log.read_text()[-2000:]

    assert json.loads((disturbed / "mcgcn" / "result.json").read_text())["steps"] == STEPS
    assert seen(disturbed) == seen(undisturbed)
    assert files_of(disturbed) == files_of(undisturbed)
    left = {path.name for path in (disturbed / "mcgcn").rglob("*") if path.name.startswith(".")}
    assert not left
    assert len(list((disturbed / "mcgcn" / "checkpoints").iterdir())) == 5


def cluster():
    """Returns TF_CONFIG of two workers on this machine."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(("localhost", 0))
        addresses = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    return [
        json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})
        for index in range(2)
    ]


@pytest.mark.slow
def test_two_workers_learn_what_one_process_does(forks, toy_records, tmp_path):
    """With synchronised batch norm, the other worker killed once and both stopped once."""
    settings = ["norm=sync_batch", "batch_size=4", "checkpoint_every=4", "evaluate_every=8"]
    settings += ["log_every=2", "learning_rate=0.0001", "ema_momentum=0.5"]
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    log = tmp_path / "log"
    given = options(toy_records, alone, *settings, steps=16)
    assert forks.wait(forks.train(given, log)) == 0, log.read_text()[-2000:]

    given = options(toy_records, shared, *settings, steps=16)
    logs = [tmp_path / f"log{index}" for index in range(2)]

    def start(strike=None):
        """Starts both, the other one with a strike."""
        strikes = (None, strike)
        return [
            forks.train(given, log, each, TF_CONFIG=task)
            for log, each, task in zip(logs, strikes, cluster(), strict=True)
        ]

    chief, other = start(Strike(signal.SIGKILL, 3))
    assert forks.wait(other) == -signal.SIGKILL
    assert forks.wait(chief) == 1
    line = logs[0].read_text().splitlines()[-1]
    assert "worker 0 of 2: expected all workers running" in line
    assert "Start all of them again" in line

    processes = start(Strike(signal.SIGTERM, 1))
    assert [forks.wait(process) for process in processes] == [143, 143]
    assert [forks.wait(process) for process in start()] == [0, 0]

    rows = [[(row["step"], row["loss"]) for row in rows_of(run)] for run in (alone, shared)]
    np.testing.assert_allclose(rows[1][:2], rows[0][:2], rtol=1e-5)
    # Then what float32 rounds off grows (see the test of two replicas, which is exact in float64).
    np.testing.assert_allclose(rows[1], rows[0], rtol=5e-4)
    for name in ("weights.safetensors", "last/weights.safetensors"):
        one, two = (read_safetensors(run / "mcgcn" / name) for run in (alone, shared))
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_allclose(two[key], one[key], rtol=2e-3, atol=5e-3, err_msg=key)
    scores = [
        json.loads((run / "mcgcn" / "evaluation.json").read_text()) for run in (alone, shared)
    ]
    assert scores[0]["cases"].keys() == scores[1]["cases"].keys()
    for case, score in scores[0]["cases"].items():
        assert scores[1]["cases"][case] == pytest.approx(score, abs=0.01)
    assert "worker" not in {path.name for path in shared.iterdir()}
    # The other worker has nothing to say.
    assert "network" not in logs[1].read_text().split("stopped by")[-1]


@pytest.mark.slow
def test_multi_worker_strategy_keeps_signal_handlers(forks, tmp_path):
    """TensorFlow replaces the handler of SIGTERM when it connects workers, and ignores the signal."""
    code = (
        "import os; from ahnet_tf.training.distribution import set_up_devices; set_up_devices(0); "
    )
    code += f"os.kill(os.getpid(), {int(signal.SIGTERM)}); import time; time.sleep(1)"
    logs = [tmp_path / f"log{index}" for index in range(2)]
    processes = [
        forks.start(code, log, TF_CONFIG=task) for log, task in zip(logs, cluster(), strict=True)
    ]
    assert [forks.wait(process) for process in processes] == [-signal.SIGTERM] * 2


CLUSTER = {"worker": ["a:1", "b:2"]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"cluster": CLUSTER, "task": {"type": "worker", "index": 1}}, Workers(2, 1)),
        (
            {"cluster": CLUSTER | {"chief": ["c:3"]}, "task": {"type": "worker", "index": 0}},
            Workers(3, 1),
        ),
        (
            {"cluster": CLUSTER | {"chief": ["c:3"]}, "task": {"type": "chief", "index": 0}},
            Workers(3, 0),
        ),
        ({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}, Workers(1, 0)),
        ({}, Workers(1, 0)),
    ],
)
def test_workers_from_tf_config(content, expected):
    assert workers_of({"TF_CONFIG": json.dumps(content)}) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "TF_CONFIG: expected JSON"),
        ("[]", "TF_CONFIG: expected JSON"),
        (json.dumps({"cluster": CLUSTER | {"ps": ["c:3"]}}), "found ps"),
        (json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": 2}}), "worker 2"),
        (json.dumps({"cluster": CLUSTER, "task": {"type": "evaluator", "index": 0}}), "evaluator"),
        (json.dumps({"cluster": CLUSTER, "task": {"index": "first"}}), "TF_CONFIG: expected JSON"),
    ],
)
def test_damaged_tf_config_is_refused(text, message):
    with pytest.raises(SettingsError, match=message):
        workers_of({"TF_CONFIG": text})
