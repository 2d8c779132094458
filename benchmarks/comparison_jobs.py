"""Runs several commands at a time, each after those that it needs."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocessing.errors import PipelineError

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Job:
    """A command whose output goes to a log file.

    Attributes:
      name: for people, and for the jobs that need this one.
      command: what runs. Its stdin is closed when this process ends, however that happens.
      log: file of its stdout and stderr.
      needs: names of the jobs that have to end first, if they are among the jobs to run.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    needs: tuple[str, ...] = ()


def run_jobs(
    jobs: Sequence[Job],
    workers: int,
    *,
    folder: Path,
    environment: Mapping[str, str],
    on_end: Callable[[Job], None] = lambda job: None,
) -> None:
    """Runs all jobs, at most `workers` at a time, in their order as far as what they need has ended.

    Jobs still running are killed if one fails, or if an exception (Ctrl-C) ends this function.

    Args:
      folder: the jobs' working directory.
      environment: variables of the jobs in addition to those of this process.
      on_end: called after each job.

    Raises PipelineError, with the job's log file, if one fails.
    """
    waiting = list(jobs)
    running: dict[Job, subprocess.Popen] = {}
    try:
        while waiting or running:
            unfinished = {job.name for job in (*waiting, *running)}
            ready = [job for job in waiting if not unfinished.intersection(job.needs)]
            for job in ready[: workers - len(running)]:
                running[job] = _start(job, folder, environment)
                waiting.remove(job)
            time.sleep(POLL_SECONDS)
            for job, process in list(running.items()):
                if process.poll() is None:
                    continue
                if process.returncode:
                    raise _failure(job, process.returncode)
                del running[job]
                on_end(job)
    finally:
        for process in running.values():
            process.kill()
        for process in running.values():
            process.wait()


def _start(job: Job, folder: Path, environment: Mapping[str, str]) -> subprocess.Popen:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("wb") as log:
        return subprocess.Popen(
            job.command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **environment},
            # Ctrl-C reaches this process alone, which ends its jobs.
            start_new_session=True,
        )


def _failure(job: Job, code: int) -> PipelineError:
    lines = job.log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    return PipelineError(job.log, f"{job.name} to succeed", f"exit code {code}: {last}")
