"""One worker's part of a training job, in a process of its own: `python -m pipeline.training_process`.

Several workers can train together only in an interpreter whose TensorFlow has not been at work yet,
which that of a pipeline always has. The arguments are the job's file, the file for the outcome, and the
number of the process that waits for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ahnet_tf.training.distribution import Workers, check_replicas, workers_of
from ahnet_tf.training.loop import stop_requests
from pipeline.training_job import TrainingJob, read_job, write_job
from preprocessing import errors
from preprocessing.cli import quiet_frameworks
from preprocessing.errors import AHNetError, PipelineError, SettingsError, Stopped
from preprocessing.files import write_json

POLL_S = 0.5
# Of <linux/prctl.h>: the signal that a process gets when its parent ends.
PR_SET_PDEATHSIG = 1


class ProcessTraceback(Exception):  # noqa: N818
    """Where in its process an error was raised; the cause of the error that is raised again here."""


def check_chief(workers: Workers) -> None:
    """Refuses to run a pipeline as any worker but the chief.

    Raises:
      SettingsError: TF_CONFIG names this process another one.
    """
    if not workers.chief:
        raise SettingsError(
            "TF_CONFIG",
            "the chief, which runs the pipeline",
            f"worker {workers.index} of {workers.count}",
            "The other workers run python -m pipeline.worker.",
        )


def train_as_chief(job: TrainingJob) -> None:
    """Trains together with the other workers, who find the job's file as long as this takes.

    Raises:
      SettingsError: this process is not the chief.
      PipelineError, Stopped: see `run_job`.
    """
    workers = workers_of()
    check_chief(workers)
    path = write_job(job)
    print(f"{job.output}: training with {workers.count} workers, waiting for all", flush=True)
    try:
        with stop_requests() as requested:
            run_job(path, job, requested)
    finally:
        path.unlink(missing_ok=True)


def run_job(
    path: Path,
    job: TrainingJob,
    requested: Callable[[], int],
    wanted: Callable[[], bool] = lambda: True,
) -> None:
    """Does this worker's part of a job in a fresh process, which ends with this one at the latest.

    Args:
      path: the job's file.
      job: what it holds.
      requested: the signal that asks to stop, which is handed on, or 0 (see `stop_requests`).
      wanted: whether the job is still to be done.

    Raises:
      AHNetError: the training's own error; a PipelineError where that is none of the project's, where
        the process was killed, or where the job is no longer wanted.
      Stopped: SIGTERM or SIGINT, here or at another worker.
    """
    with tempfile.TemporaryDirectory(prefix="ahnet-training-") as folder:
        outcome = Path(folder) / "outcome.json"
        # A session of its own: Ctrl-C reaches it once, from here.
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "pipeline.training_process"),
                *(str(path), str(outcome), str(os.getpid())),
            ],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            ended = _wait(process, requested, wanted)
        finally:
            process.kill()
            process.wait()
        if outcome.is_file():
            _raise_again(json.loads(outcome.read_text(encoding="utf-8")), job)
            return
    if requested():
        name = signal.Signals(requested()).name
        message = f"{job.output}: stopped by {name}; the same command goes on from what is saved"
        raise Stopped(requested(), message)
    if not ended:
        raise PipelineError(job.output, "a chief at this training", "one that has left it")
    code = process.returncode
    found = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    raise PipelineError(job.output, "a training process that ends by itself", found)


def main(arguments: Sequence[str]) -> int:
    """Trains as the job says, and writes how that ended."""
    job_file, outcome = map(Path, arguments[:2])
    _end_with(int(arguments[2]))
    # Until the training takes it over: no handler of Python's runs while TensorFlow waits for workers.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Whoever starts this has decided already: quiet frameworks leave their mark in the environment.
    quiet_frameworks(debug="TF_CPP_MIN_LOG_LEVEL" not in os.environ)
    try:
        job = read_job(job_file)
        # Before the seconds that TensorFlow's import takes.
        check_replicas(job.training.replicas)
        from ahnet_tf.training.distribution import set_up_devices
        from ahnet_tf.training.trainer import train_network

        set_up_devices(job.training.replicas)
        train_network(
            job.model,
            job.training,
            job.task,
            job.train_files,
            job.eval_files,
            job.output,
            initial=job.initial,
        )
    except Exception as error:
        write_json(outcome, _described(error))
        return 1
    write_json(outcome, {})
    return 0


def _wait(
    process: subprocess.Popen, requested: Callable[[], int], wanted: Callable[[], bool]
) -> bool:
    """Waits for a process, handing on a signal; False if it is no longer wanted instead."""
    told = False
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL_S)
            return True
        if requested() and not told:
            process.send_signal(requested())
            told = True
        if not wanted():
            return False


def _end_with(parent: int) -> None:
    """Has Linux end this process with its parent, whatever it is at.

    A thread could not: TensorFlow waits for other workers with Python's lock held.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _described(error: Exception) -> dict[str, Any]:
    content: dict[str, Any] = {"type": type(error).__name__, "text": str(error)}
    content["traceback"] = traceback.format_exc()
    if isinstance(error, AHNetError | Stopped):
        # Paths and the like become texts.
        content["arguments"] = [a if isinstance(a, int) else str(a) for a in error.args]
    return content


def _raise_again(outcome: dict[str, Any], job: TrainingJob) -> None:
    """Raises the error that an outcome describes, if any."""
    if not outcome:
        return
    where = ProcessTraceback(f"\n{outcome['traceback']}")
    if "arguments" in outcome:
        raise getattr(errors, outcome["type"])(*outcome["arguments"]) from where
    first = next(iter(outcome["text"].splitlines()), "").rstrip(".")
    found = f"{outcome['type']}: {first}"
    raise PipelineError(job.output, "success", found, "--debug shows the traceback.") from where


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
