"""`python -m pipeline.worker`: another worker of a pipeline's trainings, beside the chief."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ahnet_tf.training.distribution import Workers, workers_of
from ahnet_tf.training.loop import stop_requests
from pipeline.training_job import JOB_FILE, TrainingJob, newest_job
from pipeline.training_process import run_job
from preprocessing.cli import make_parser, run_command
from preprocessing.errors import AHNetError, SettingsError, Stopped

POLL_S = 1.0
# After the chief has ended a training, so much time is left to end the part in it here.
GRACE_S = 60.0

PURPOSE = """\
Trains together with a pipeline that runs on another machine, or in another process of this one.
The pipeline runs as the chief of several workers: TF_CONFIG is set where python -m
pipeline.local_runner is started, or in the Trainers' pods. Each other worker is one process of this
command with a TF_CONFIG of its own, the same cluster and another task. It waits for the pipeline's
trainings, joins each of them, and waits for the next; also after a training that failed, which the
pipeline goes on with when it is run again.

All workers see the pipeline's folder and its records on the same paths. Nothing is written there.
Exit code: 0 after --trainings, 143 or 130 after SIGTERM or Ctrl-C, which stop a training in progress
at all workers, with all that it has learned; 1 anything else."""

EXAMPLES = (
    "two processes of one machine; the first is the chief:",
    """  TF_CONFIG='{"cluster": {"worker": ["localhost:2222", "localhost:2223"]},""",
    """             "task": {"type": "worker", "index": 0}}' \\""",
    "    python -m pipeline.local_runner --input records --output run",
    """  TF_CONFIG='{"cluster": {"worker": ["localhost:2222", "localhost:2223"]},""",
    """             "task": {"type": "worker", "index": 1}}' \\""",
    "    python -m pipeline.worker --output run --trainings 2",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser("pipeline.worker", PURPOSE, EXAMPLES)
    parser.add_argument(
        "--output",
        required=True,
        metavar="RUN",
        help="folder of the pipeline's run: its --output, or the storage_root of a cluster",
    )
    parser.add_argument(
        "--trainings",
        type=int,
        default=0,
        metavar="N",
        help="end after N finished trainings; a pipeline has one in 2D and one in 3D "
        "(default: wait for ever)",
    )
    return run_command(_run, parser.parse_args(argv))


def other_worker() -> Workers:
    """Returns which worker TF_CONFIG names this process.

    Raises:
      SettingsError: TF_CONFIG is missing or damaged, or names no worker beside the chief.
    """
    workers = workers_of()
    remedy = 'For example {"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": '
    remedy += '{"type": "worker", "index": 1}}; the chief, index 0, runs the pipeline.'
    if workers.count == 1:
        raise SettingsError("TF_CONFIG", "two or more workers", "none beside this one", remedy)
    if workers.chief:
        raise SettingsError("TF_CONFIG", "a worker beside the chief", "the chief", remedy)
    return workers


def _run(arguments: argparse.Namespace) -> None:
    workers = other_worker()
    run = Path(arguments.output).absolute()
    if "://" in arguments.output or (run.exists() and not run.is_dir()):
        expected = "a folder that all workers see"
        raise SettingsError("--output", expected, repr(arguments.output))
    if arguments.trainings < 0:
        raise SettingsError("--trainings", "at least 0", arguments.trainings)

    def say(line: str) -> None:
        print(f"worker {workers.index} of {workers.count}: {line}", flush=True)

    say(f"waiting for trainings of {run}")
    with stop_requests() as requested:
        join_trainings(run, arguments.trainings, requested, say)


def join_trainings(
    run: Path, trainings: int, requested: Callable[[], int], say: Callable[[str], None]
) -> None:
    """Joins the trainings of a run, one after another, as they begin.

    Args:
      run: the pipeline's folder, which need not be there yet.
      trainings: how many finished ones are enough; 0 for no end.
      requested: the signal that asks to stop, or 0.
      say: is given a line as a training begins and one as it ends.

    Raises:
      Stopped: SIGTERM or SIGINT.
    """
    known: set[str] = set()
    finished = 0
    while not trainings or finished < trainings:
        if requested():
            name = signal.Signals(requested()).name
            raise Stopped(requested(), f"stopped by {name} while waiting for trainings of {run}")
        job = newest_job(run)
        if job is None or job.id in known:
            time.sleep(POLL_S)
            continue
        known.add(job.id)
        network = f"{job.model.architecture}, {job.training.steps} steps"
        say(f"joining {job.output}: {network}")
        begun = time.monotonic()
        try:
            run_job(Path(job.output) / JOB_FILE, job, requested, _wanted(run, job))
        except (AHNetError, Stopped) as error:
            if requested():
                raise
            say(f"left it: {error}")
            continue
        finished += 1
        say(f"finished it, {time.monotonic() - begun:.1f} s")


def _wanted(run: Path, job: TrainingJob) -> Callable[[], bool]:
    """Returns what says whether the chief is still at a job, or has only just ended it."""
    gone_since: list[float] = []

    def wanted() -> bool:
        newest = newest_job(run)
        if newest is not None:
            return newest.id == job.id
        gone_since.append(time.monotonic())
        return gone_since[-1] - gone_since[0] < GRACE_S

    return wanted


if __name__ == "__main__":
    sys.exit(main())
