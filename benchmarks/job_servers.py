"""Engines for the portable runner of Beam, in tests and benchmarks; `make test-flink` and the like install them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A heap of Java; the workers' memory is their own.
HEAP = "-Xmx2g"
NETWORK = ["--artifact-port", "0", "--expansion-port", "-1"]


class Engine:
    """A job server on a port that it keeps when it is restarted."""

    def __init__(self, name: str, programs: Path, folder: Path):
        self.name, self.folder = name, folder
        self.program = (
            programs.resolve() / name / ("prism" if name == "prism" else "job-server.jar")
        )
        self.process: subprocess.Popen | None = None
        self.port = free_port()

    def _command(self, *, retries: bool) -> list[str]:
        port, java = str(self.port), ["java", HEAP, "-jar", str(self.program)]
        artifacts = ["--artifacts-dir", str(self.folder / "artifacts")]
        if self.name == "prism":
            return [str(self.program), "--job_port", port, "--serve_http=false"]
        if self.name == "spark":
            master = "local[2,4]" if retries else "local[2]"
            return [*java, "--spark-master-url", master, "--job-port", port, *NETWORK, *artifacts]
        configuration = self.folder / "flink"
        configuration.mkdir(exist_ok=True)
        (configuration / "flink-conf.yaml").write_text(
            "restart-strategy.type: fixed-delay\nrestart-strategy.fixed-delay.attempts: 3\n"
            if retries
            else ""
        )
        flink = ["--flink-master", "[local]", "--flink-conf-dir", str(configuration)]
        return [*java, *flink, "--job-port", port, *NETWORK, *artifacts]

    def start(self, *, retries: bool = False) -> None:
        with open(self.folder / "log", "a") as log:
            command = self._command(retries=retries)
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for_port(self.port, self.process, self.folder / "log")

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait()
            self.process = None

    def options(self, *environment: str, parallelism: int = 2) -> list[str]:
        endpoint = ["--runner", "PortableRunner", "--job_endpoint", f"localhost:{self.port}"]
        # Prism has no such option; its workers convert as many cases at the same time as come.
        parallel = [] if self.name == "prism" else ["--parallelism", str(parallelism)]
        return [*endpoint, *parallel, "--environment_type", *environment]


class Pool:
    """Beam's pool of workers, each in a process of its own."""

    def __init__(self, folder: Path):
        self.port = free_port()
        # The pool starts `python` of the PATH.
        paths = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        module = "apache_beam.runners.worker.worker_pool_main"
        with open(folder / "log", "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, "--service_port", str(self.port)],
                env=os.environ | paths,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for_port(self.port, self.process, folder / "log")

    @property
    def environment(self) -> tuple[str, ...]:
        return ("EXTERNAL", "--environment_config", f"localhost:{self.port}")

    def workers(self) -> list[int]:
        """Returns the ids of its processes."""
        task = Path(f"/proc/{self.process.pid}/task")
        return [int(pid) for path in task.glob("*/children") for pid in path.read_text().split()]

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def wait_for_port(port: int, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
            return
        time.sleep(0.1)
    raise AssertionError(log.read_text())
