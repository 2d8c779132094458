"""A server process and clients that put it under load, for `benchmarks.serving`."""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preprocessing.errors import ServingError

WINDOW_ZYX = (32, 128, 128)
# Share of voxels whose label may differ by rounding: windows are merged into different batches.
ROUNDING = 1e-3


def export_random(folder: Path, seed: int) -> None:
    """Exports an AH-Net of the default size with random weights."""
    from ahnet_tf.config import ModelConfig
    from ahnet_tf.inference.predictor import ExportSettings
    from ahnet_tf.networks import build_network
    from preprocessing.tasks import load_task
    from serving.export.exporter import export_model

    config = ModelConfig()
    settings = ExportSettings(load_task("ct_liver"), config, WINDOW_ZYX)
    begin = time.perf_counter()
    export_model(build_network(config, seed=seed), settings, folder)
    print(f"exported in {time.perf_counter() - begin:.0f} s")


class Server:
    """`python -m serving.server` in a separate process."""

    def __init__(self, models: Path, port: int = 0):
        words = ["--model-base-path", str(models), "--port", str(port), "--waiting", "64"]
        begin = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serving.server", *words],
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.address = self.process.stdout.readline().split()[-1]
        self.start_seconds = time.perf_counter() - begin

    @property
    def port(self) -> int:
        """The server's gRPC port."""
        return int(self.address.rpartition(":")[2])

    def memory_mib(self) -> float:
        """The resident memory of the process."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text).group(1)) / 1024

    def end(self, number: int = signal.SIGTERM) -> None:
        """Sends the process a signal and waits for its end."""
        self.process.send_signal(number)
        self.process.wait()


@contextmanager
def running(models: Path) -> Iterator[Server]:
    """Runs a server until the context ends."""
    server = Server(models)
    try:
        yield server
    finally:
        server.end()


def small_volume():
    """One window of noise as a volume of int16 HU [x, y, z]."""
    from preprocessing.volumes.geometry import Volume

    voxels = np.random.default_rng(0).integers(-1000, 1000, WINDOW_ZYX[::-1]).astype(np.int16)
    return Volume(voxels, np.diag([0.8, 0.8, 2.5, 1.0]))


@dataclass(frozen=True)
class Load:
    """Results of a load.

    Attributes:
      seconds: time of each answered volume.
      errors: messages for the volumes without an answer.
      wrong: number of answers that match none of the expected ones.
    """

    seconds: list[float]
    errors: list[str]
    wrong: int


def answers(models: Path) -> list[np.ndarray]:
    """Returns the label map of the small volume for each version in a folder, computed in this process."""
    from ahnet_tf.inference.predictor import open_predictor
    from ahnet_tf.inference.segment import segment_volume

    folders = sorted(models.glob("[0-9]*"))
    return [segment_volume(small_volume(), open_predictor(folder)).labels for folder in folders]


def load(address: str, clients: int, seconds: float, expected: Sequence[np.ndarray]) -> Load:
    """Lets clients segment the small volume repeatedly and compares each answer with `expected`."""
    from serving.client.sync import AHNetClient

    volume, end = small_volume(), time.perf_counter() + seconds

    def work(_: int) -> tuple[list[float], list[str], int]:
        taken, errors, wrong = [], [], 0
        with AHNetClient(address, attempts=60) as client:
            while time.perf_counter() < end:
                begin = time.perf_counter()
                try:
                    labels = client.segment(volume).labels
                    taken.append(time.perf_counter() - begin)
                    wrong += min(float(np.mean(labels != each)) for each in expected) > ROUNDING
                except ServingError as error:
                    errors.append(str(error))
        return taken, errors, wrong

    with ThreadPoolExecutor(clients) as pool:
        taken, errors, wrong = zip(*pool.map(work, range(clients)), strict=True)
    chain = itertools.chain.from_iterable
    return Load(list(chain(taken)), list(chain(errors)), sum(wrong))
