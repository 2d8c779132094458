"""Conversion on Flink's embedded cluster against Beam's DirectRunner: throughput, memory, overhead.

python -m benchmarks.engines [--cases 200] [--engines .engines]

Phantom CTs of 128 x 128 x 32 voxels. Flink's workers are processes of Beam's worker pool, one thread for
each of its slots: parallelism 1, parallelism 2 in one worker, and 2 in two workers. A job's time is that of
the command, imports and the start of workers included, as it is for users; so each job also runs on two
cases alone, and what a case costs is the difference divided by the other cases. `make test-flink` installs
the engine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.job_servers import ROOT, Engine, Pool
from benchmarks.report import goal, print_table, versions, write_report
from preprocessing.cli import make_parser, run_command
from preprocessing.errors import SettingsError
from preprocessing.phantom.ct import PhantomSettings
from preprocessing.phantom.dataset import write_cases

SETTINGS = PhantomSettings()
FEW = 2
PATCHES = ["--task", "ct_liver_small"]
DIRECT = {
    "DirectRunner, 1 thread": ["--direct_running_mode", "in_memory"],
    "DirectRunner, 2 threads": [
        *("--direct_running_mode", "multi_threading", "--direct_num_workers", "2")
    ],
}
# Parallelism, and processes of workers.
FLINK = {
    "Flink, parallelism 1": (1, 1),
    "Flink, parallelism 2 in one worker": (2, 1),
    "Flink, parallelism 2 in two workers": (2, 2),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    examples = ["python -m benchmarks.engines --cases 200"]
    parser = make_parser("benchmarks.engines", __doc__.splitlines()[0], examples)
    parser.add_argument("--cases", type=int, default=200, help="phantom CTs (default: 200)")
    parser.add_argument(
        "--engines", type=Path, default=ROOT / ".engines", help="folder of make test-flink"
    )
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    if arguments.cases <= FEW:
        raise SettingsError("--cases", f"more than {FEW}", arguments.cases)
    version = arguments.engines / "flink.version"
    if not version.is_file():
        raise SettingsError("--engines", "Flink, by make test-flink", f"no {version}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        megavoxels = {}
        for count in (FEW, arguments.cases):
            write_cases(folder / f"data{count}", count, 0, settings=SETTINGS, progress=False)
        for path, count in ((folder / f"data{n}", n) for n in (FEW, arguments.cases)):
            megavoxels[count] = _megavoxels(path)
        jobs = {}
        for name, options in DIRECT.items():
            jobs[name] = {n: _job(folder, n, options) for n in megavoxels}
        engine = Engine("flink", arguments.engines, folder)
        engine.start()
        try:
            for name, (parallelism, processes) in FLINK.items():
                jobs[name] = {
                    n: _on_flink(engine, folder, n, parallelism, processes) for n in megavoxels
                }
        finally:
            engine.stop()
    figures = {name: _figures(each, megavoxels) for name, each in jobs.items()}
    columns = list(next(iter(figures.values())))
    rows = [(name, *(f"{value:.4g}" for value in each.values())) for name, each in figures.items()]
    print_table(("", *columns), rows)
    same = {
        name: each["digest"] for name, job in jobs.items() for n, each in job.items() if n > FEW
    }
    goals = [
        goal("data sets that differ from the DirectRunner's", "==", 0, len({*same.values()}) - 1)
    ]
    packages = versions("apache-beam", "tensorflow", "numpy")
    packages |= {"flink job server": version.read_text()}
    settings = {"cases": arguments.cases, "shape_xyz": list(SETTINGS.shape_xyz), "task": PATCHES[1]}
    write_report("engines", figures, goals, packages, settings)


def _megavoxels(data: Path) -> float:
    from preprocessing.volumes.nifti import read_image

    paths = sorted(data.glob("volume-*"))
    return sum(read_image(path).voxels.size for path in paths) / 1e6


def _figures(job: dict[int, dict], megavoxels: dict[int, float]) -> dict[str, float]:
    few, many = sorted(job)
    seconds = job[many]["seconds"] - job[few]["seconds"]
    return {
        "seconds of the job": job[many]["seconds"],
        f"seconds with {few} cases": job[few]["seconds"],
        "ms a further case": 1000 * seconds / (many - few),
        "megavoxels/s": (megavoxels[many] - megavoxels[few]) / seconds,
        "MiB of the command": job[many]["command"],
        "MiB of all workers": job[many]["workers"],
        "MiB of the job server": job[many]["server"],
    }


def _on_flink(engine: Engine, folder: Path, cases: int, parallelism: int, processes: int) -> dict:
    (folder / "pool").mkdir(exist_ok=True)
    pool = Pool(folder / "pool")
    try:
        options = engine.options(*pool.environment, parallelism=parallelism)
        options += ["--sdk_worker_parallelism", str(processes)]
        return _job(folder, cases, options, pool, engine)
    finally:
        pool.stop()


def _job(
    folder: Path,
    cases: int,
    options: Sequence[str],
    pool: Pool | None = None,
    engine: Engine | None = None,
) -> dict:
    """Runs the command; returns its seconds, the largest memory of each kind of process, a digest."""
    output = folder / "out"
    words = ["--input", folder / f"data{cases}", "--output", output, "--overwrite", *PATCHES]
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "preprocessing.convert", *map(str, words), *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    most = {"command": 0.0, "workers": 0.0, "server": 0.0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            workers = pool.workers() if pool else []
            server = [engine.process.pid] if engine and engine.process else []
            kinds = {"command": [process.pid], "workers": workers, "server": server}
            for kind, pids in kinds.items():
                most[kind] = max(most[kind], sum(map(_resident_mib, pids)))

    thread = threading.Thread(target=watch)
    thread.start()
    _, error = process.communicate()
    seconds = time.perf_counter() - start
    done.set()
    thread.join()
    if process.returncode:
        raise SettingsError("benchmark", "a job that finishes", error[-500:])
    return {"seconds": seconds, **most, "digest": (output / "manifest.json").read_text()}


def _resident_mib(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    sys.exit(main())
