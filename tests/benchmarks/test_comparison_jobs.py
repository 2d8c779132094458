"""Jobs of the paper's comparison: order, failure, and no job that outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.comparison_jobs import Job, run_jobs
from preprocessing.errors import PipelineError
from tests.signals import default_signals

ROOT = Path(__file__).resolve().parents[2]
# Starts two jobs that write their process id and would sleep for ten minutes.
PARENT = """
import sys
from pathlib import Path
from benchmarks.comparison_jobs import Job, run_jobs
from benchmarks.paper_comparison import stopped_by_signals
from preprocessing.cli import run_command

folder = Path(sys.argv[1])
sleeper = "import os, sys, time; open(sys.argv[1], 'w').write(f'{os.getpid()}.'); time.sleep(600)"
jobs = [
    Job(name, (sys.executable, "-c", sleeper, str(folder / name)), folder / f"{name}.log")
    for name in ("a", "b")
]

def run(arguments):
    with stopped_by_signals(folder):
        run_jobs(jobs, 2, folder=folder, environment={})

sys.exit(run_command(run, type("Arguments", (), {"debug": False})))
"""


def job(folder: Path, name: str, code: str, needs=()) -> Job:
    return Job(name, (sys.executable, "-c", code), folder / f"{name}.log", needs)


def is_running(process_id: int) -> bool:
    try:
        status = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return status != "Z"


def test_jobs_run_at_the_same_time_and_after_what_they_need(tmp_path):
    # Each of the first two ends only if the other one has started.
    meet = "import pathlib, time\npathlib.Path('{}').touch()\nwhile not pathlib.Path('{}').exists(): time.sleep(0.01)"
    read = "import os; print(sorted(os.listdir()), os.environ['OMP_NUM_THREADS'])"
    work = tmp_path / "work"
    work.mkdir()
    ended = []
    jobs = [
        job(tmp_path, "last", read, needs=("a", "b", "finished before")),
        job(tmp_path, "a", meet.format("a", "b")),
        job(tmp_path, "b", meet.format("b", "a")),
    ]
    run_jobs(
        jobs,
        2,
        folder=work,
        environment={"OMP_NUM_THREADS": "1"},
        on_end=lambda each: ended.append(each.name),
    )
    assert sorted(ended[:2]) == ["a", "b"]
    assert ended[2] == "last"
    assert (tmp_path / "last.log").read_text() == "['a', 'b'] 1\n"


def test_a_failed_job_ends_the_others_and_its_log_is_named(tmp_path):
    write_id = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    log = tmp_path / "sleeps.log"
    fail = f"import pathlib, time\nwhile not pathlib.Path({str(log)!r}).read_text(): time.sleep(0.01)\nraise ValueError('no luck')"
    jobs = [job(tmp_path, "sleeps", write_id), job(tmp_path, "fails", fail)]
    jobs.append(job(tmp_path, "never", "print('started')", needs=("sleeps",)))
    with pytest.raises(PipelineError) as failure:
        run_jobs(jobs, 2, folder=tmp_path, environment={})
    assert str(failure.value) == (
        f"{tmp_path / 'fails.log'}: expected fails to succeed, found exit code 1: ValueError: no luck"
    )
    assert not is_running(int(log.read_text()))
    assert not (tmp_path / "never.log").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_jobs(tmp_path, number):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals,
    )
    files = [tmp_path / name for name in ("a", "b")]
    while not all(file.is_file() and file.read_text().endswith(".") for file in files):
        assert parent.poll() is None
        time.sleep(0.05)
    os.kill(parent.pid, number)
    _, said = parent.communicate(timeout=300)
    assert parent.returncode == 128 + number
    name = signal.Signals(number).name
    assert said == (
        f"{tmp_path}: stopped by {name}; the same command resumes after the finished runs\n"
    )
    assert not any(is_running(int(file.read_text()[:-1])) for file in files)
