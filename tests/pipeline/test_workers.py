"""Trainings of the pipeline that several workers share: the chief's Trainer and `pipeline.worker`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from tfx.components.trainer.fn_args_utils import FnArgs

from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.networks.checkpoint import read_safetensors
from ahnet_tf.presets import run_config
from ahnet_tf.training.logs import read_history
from pipeline.components.trainer import run_fn_2d, working_folder
from pipeline.configs import PipelineSettings
from pipeline.dag import create_pipeline
from pipeline.local.preflight import check_launch
from pipeline.training_job import JOB_FILE, make_job, newest_job, read_job, write_job
from pipeline.training_process import run_job
from pipeline.worker import main
from preprocessing.errors import InputError, PipelineError, SettingsError

ROOT = Path(__file__).resolve().parents[2]
# No augmentation and no evaluation: most of such a run's time goes into building their graphs.
SETTINGS = (
    *(
        "architecture=unet2d",
        "width=0.125",
        "unet_levels=2",
        "norm=sync_batch",
        "batch_size=4",
        "steps=8",
    ),
    *("warmup_steps=2", "evaluate_every=0", "checkpoint_every=8", "log_every=2", "seed=3"),
    *("learning_rate=0.0001", "flip_probability=0", "warp_probability=0"),
    "padding_probability=0",
)
# A training that none of several workers can begin.
IMPOSSIBLE = TrainingConfig(replicas=2, steps=300)


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]


def tf_config(index, ports=(2222, 2223)):
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    return json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})


@pytest.fixture(scope="module")
def small_task(task):
    return evolve(task, patch_shape_zyx=(4, 16, 16))


@pytest.fixture
def arguments(small_task, patch, write_records, tmp_path):
    """Gives what TFX's Trainer hands to its function, by the run's folder."""
    # Cases that differ: parts of one, with the organ further to the right in each.
    parts = []
    for case in range(4):
        image, label = (
            array[2:6, 8:24, 4 + case : 20 + case] for array in (patch.image_zyx, patch.label_zyx)
        )
        parts.append(
            replace(
                patch,
                image_zyx=image,
                label_zyx=label,
                case_id=f"case-{case}",
                valid_zyx=label.shape,
                volume_shape_zyx=label.shape,
                case_label_voxels=tuple(np.bincount(label.ravel(), minlength=3).tolist()),
            )
        )
    write_records(tmp_path / "records" / "train", parts, small_task)
    config = run_config(small_task, settings=SETTINGS).to_dict()["2d"]

    def make(run):
        outputs = tmp_path / run / "artifacts" / "Trainer2D"
        return FnArgs(
            train_files=[f"{tmp_path}/records/train/*"],
            eval_files=[f"{tmp_path}/records/eval/*"],
            serving_model_dir=str(outputs / "model" / "1" / "Format-Serving"),
            model_run_dir=str(outputs / "model_run" / "1"),
            custom_config=config | {"task": small_task.to_dict(), "code_version": "1"},
        )

    return make


@pytest.fixture
def start_worker(tmp_path):
    """Starts `python -m pipeline.worker` on tmp_path/shared; gives the process and its output's file."""
    processes = []

    def start(*options, ports=(2222, 2223)):
        words = [sys.executable, "-m", "pipeline.worker", "--output", str(tmp_path / "shared")]
        environment = {"PYTHONPATH": str(ROOT), "TF_CONFIG": tf_config(1, ports)}
        log = tmp_path / "worker.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [*words, *options], env=os.environ | environment, stdout=output, stderr=output
            )
        processes.append(process)
        return process, log

    yield start
    for process in processes:
        process.kill()
        process.wait()


def wait_for(log: Path, text: str) -> None:
    deadline = time.monotonic() + 120
    while text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


@pytest.mark.slow
def test_a_trainer_and_a_worker_learn_what_one_process_does(
    arguments, start_worker, tmp_path, monkeypatch
):
    alone, shared = arguments("alone"), arguments("shared")
    run_fn_2d(alone)

    ports = free_ports(2)
    worker, log = start_worker("--trainings", "1", ports=ports)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TF_CONFIG", tf_config(0, ports))
    # As the pipeline's own process is: one that TensorFlow has been at work in.
    run_fn_2d(shared)
    assert worker.wait(120) == 0

    work = working_folder(shared)
    said = [re.sub(r"\d+\.\d s", "N s", line) for line in log.read_text().splitlines()]
    assert said == [
        f"worker 1 of 2: waiting for trainings of {tmp_path / 'shared'}",
        f"worker 1 of 2: joining {work}: unet2d, 8 steps",
        "worker 1 of 2: finished it, N s",
    ]
    assert not work.exists()
    folders = [Path(each.model_run_dir) for each in (alone, shared)]
    # The job's file among others is not handed over.
    assert {path.name for path in folders[0].iterdir()} == {
        path.name for path in folders[1].iterdir()
    }
    rows = [[(r["step"], r["loss"]) for r in read_history(f / "history.csv")] for f in folders]
    # The first row to the five digits that are written.
    np.testing.assert_allclose(rows[1][0], rows[0][0], rtol=5e-5)
    # Tolerances as for the two workers in tests/ahnet_tf/training/test_interruptions.py.
    np.testing.assert_allclose(rows[1], rows[0], rtol=5e-4)
    one, two = (
        read_safetensors(Path(each.serving_model_dir) / "weights.safetensors")
        for each in (alone, shared)
    )
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_allclose(two[key], one[key], rtol=2e-3, atol=5e-3, err_msg=key)


def job_in(run: Path, task, training=IMPOSSIBLE, name="Trainer2D", initial=None):
    folder = run / "artifacts" / name / "unfinished" / "0123"
    return make_job(ModelConfig(), training, task, ["a.tfrecord"], ["b"], folder, initial)


def test_a_worker_goes_on_waiting_after_a_training_that_failed_until_it_is_stopped(
    start_worker, tmp_path, task
):
    process, log = start_worker()
    first = job_in(tmp_path / "shared", task)
    path = write_job(first)
    wait_for(log, "left it: ")
    # The same training again, as the chief's next run begins it.
    write_job(job_in(tmp_path / "shared", task, TrainingConfig()))
    wait_for(log, f"{TrainingConfig().steps} steps")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    name = f"{path.parent}"
    assert log.read_text().splitlines() == [
        f"worker 1 of 2: waiting for trainings of {tmp_path / 'shared'}",
        f"worker 1 of 2: joining {name}: ahnet, {IMPOSSIBLE.steps} steps",
        "worker 1 of 2: left it: replicas: expected 0 with several workers, each of which uses all "
        "its GPUs or its CPU, found 2",
        f"worker 1 of 2: joining {name}: ahnet, {TrainingConfig().steps} steps",
        f"{name}: stopped by SIGTERM; the same command goes on from what is saved",
    ]


def test_a_worker_that_waits_ends_with_a_signal(start_worker, tmp_path):
    process, log = start_worker()
    wait_for(log, "waiting for trainings")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 128 + signal.SIGINT
    expected = f"stopped by SIGINT while waiting for trainings of {tmp_path / 'shared'}"
    assert log.read_text().splitlines()[1:] == [expected]


def test_a_training_ends_with_its_worker_even_if_that_is_killed(start_worker, tmp_path, task):
    process, log = start_worker()
    write_job(job_in(tmp_path / "shared", task, TrainingConfig()))
    wait_for(log, "joining")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not children.read_text():
        time.sleep(0.05)
    training = Path("/proc") / children.read_text().strip()
    # By then it has begun: TensorFlow comes last.
    while "libtensorflow" not in (training / "maps").read_text():
        time.sleep(0.05)
    process.kill()
    deadline = time.monotonic() + 20
    while training.exists() and "(zombie)" not in (training / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_chief_tells_a_trainings_own_error_and_leaves_no_job(
    arguments, monkeypatch, capfd, small_task
):
    given = arguments("shared")
    given.custom_config["training"] = given.custom_config["training"] | {"replicas": 2}
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TF_CONFIG", tf_config(0))
    with pytest.raises(SettingsError, match="replicas: expected 0 with several workers") as raised:
        run_fn_2d(given)
    # Where it was raised, for --debug.
    assert "in check_replicas" in str(raised.value.__cause__)
    assert capfd.readouterr().err == ""
    assert list(working_folder(given).iterdir()) == []

    monkeypatch.setenv("TF_CONFIG", tf_config(1))
    with pytest.raises(SettingsError, match="the chief, which runs the pipeline, found worker 1 "):
        run_fn_2d(given)


def test_a_job_that_its_chief_has_left_is_ended(tmp_path, task):
    job = job_in(tmp_path, task, TrainingConfig())
    with pytest.raises(PipelineError, match="expected a chief at this training"):
        run_job(write_job(job), job, lambda: 0, wanted=lambda: False)


# Names of files as people give them.
names = st.text("aé 東'\\%", min_size=1, max_size=8)


@given(
    training=st.builds(
        TrainingConfig,
        seed=st.integers(0, 2**31),
        learning_rate=st.floats(1e-9, 1),
        class_weights=st.none() | st.just((0.25, 1.0, 3.0)),
    ),
    files=st.lists(names.map("/records/{}".format) | st.just("gs://bucket/records/a"), max_size=3),
    initial=st.none() | st.just("/run/base"),
)
def test_a_job_is_read_as_it_was_written(tmp_path_factory, task, training, files, initial):
    folder = tmp_path_factory.mktemp("job")
    job = make_job(ModelConfig(), training, task, files, files[:1], folder, initial)
    assert read_job(write_job(job)) == job
    assert job.train_files == tuple(map(str, files))
    assert job.initial == initial
    assert make_job(ModelConfig(), training, task, files, [], folder, initial).id != job.id


def test_paths_of_a_job_hold_in_every_working_directory(tmp_path, task, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = job_in(Path("run"), task, initial="base")
    assert job.train_files == (str(tmp_path / "a.tfrecord"),)
    assert job.initial == str(tmp_path / "base")
    assert newest_job(Path("run")) is None
    write_job(job)
    assert newest_job(tmp_path / "run") == job


def test_the_newest_job_of_a_run_counts(tmp_path, task):
    old, new = (job_in(tmp_path, task, name=name) for name in ("Trainer3D", "Trainer2D"))
    os.utime(write_job(old), (1, 1))
    write_job(new)
    assert newest_job(tmp_path) == new


@pytest.mark.parametrize("text", ["{", "[]", '{"id": "1"}'])
def test_a_file_that_is_no_job_is_refused(tmp_path, text):
    path = tmp_path / JOB_FILE
    path.write_text(text)
    with pytest.raises(InputError, match=f"{JOB_FILE}: expected a training job"):
        read_job(path)


@pytest.mark.parametrize(
    ("content", "options", "line"),
    [
        ("", [], "TF_CONFIG: expected two or more workers, found none beside this one. For"),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}',
            [],
            "TF_CONFIG: expected two or more workers, found none beside this one. For example",
        ),
        (tf_config(0), [], "TF_CONFIG: expected a worker beside the chief, found the chief. For"),
        ("{", [], "TF_CONFIG: expected JSON with cluster and task"),
        (tf_config(1), ["--trainings", "-1"], "--trainings: expected at least 0, found -1"),
        (tf_config(1), ["--output", __file__], "--output: expected a folder that all workers see"),
        (tf_config(1), ["--output", "gs://b/runs"], "found 'gs://b/runs'"),
    ],
)
def test_a_worker_refuses_at_once_in_one_line(
    tmp_path, monkeypatch, capsys, content, options, line
):
    monkeypatch.setenv("TF_CONFIG", content)
    assert main(["--output", str(tmp_path), *options]) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ")
    assert line in said


@pytest.mark.parametrize(
    ("index", "changes", "sentence"),
    [
        (1, {}, "TF_CONFIG: expected the chief, which runs the pipeline, found worker 1 of 2"),
        (0, {"tuner_trials": 2}, "--tune: expected one process, found 2 workers in TF_CONFIG"),
        (0, {"replicas": 2}, "replicas: expected 0 with several workers"),
    ],
)
def test_a_pipeline_that_several_workers_cannot_run_is_not_launched(
    tmp_path, task, monkeypatch, index, changes, sentence
):
    monkeypatch.setenv("TF_CONFIG", tf_config(index))
    replicas = changes.pop("replicas", 0)
    settings = PipelineSettings(
        input=str(tmp_path),
        output=str(tmp_path / "run"),
        task=task,
        config=run_config(task, settings=[f"replicas={replicas}"]),
        thresholds={"liver": 0.8},
        **changes,
    )
    with pytest.raises(SettingsError, match=sentence):
        check_launch(settings, [], [])
    assert not (tmp_path / "run").exists()


def test_workers_change_nothing_of_what_a_trainers_result_is_cached_by(task, tmp_path, monkeypatch):
    settings = PipelineSettings(
        input=str(tmp_path / "records"),
        output=str(tmp_path / "run"),
        task=task,
        config=run_config(task),
        thresholds={"liver": 0.8},
    )

    def trainers() -> list[dict]:
        nodes = create_pipeline(settings).components
        return [node.exec_properties for node in nodes if node.id.startswith("Trainer")]

    before = trainers()
    monkeypatch.setenv("TF_CONFIG", tf_config(0))
    assert len(before) == 2
    assert trainers() == before
