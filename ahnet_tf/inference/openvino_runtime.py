"""OpenVINO as a back end of prediction on CPUs, in a process of its own.

TensorFlow and OpenVINO each bring a oneDNN, thread pools and allocators. They are never loaded into one
process: a fault of either would end both. Windows and probabilities are passed in shared memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from ahnet_tf.inference.openvino_process import NETWORK_FILE, Job, shared_arrays, shared_bytes
from preprocessing.errors import AHNetError, ModelError, named_extra

# The paths of this process come first: `ahnet_tf` may not be installed.
_START = (
    "import sys; sys.path[:] = sys.argv[4:]; "
    "from ahnet_tf.inference.openvino_process import main; main(*map(int, sys.argv[1:4]))"
)
# Time for a process to end by itself; it may be compiling.
_GRACE_S = 5


def is_preferred() -> bool:
    """Returns whether OpenVINO is installed and there is no GPU for TensorFlow; imports neither."""
    return _is_installed() and not _has_gpu()


def _is_installed() -> bool:
    return importlib.util.find_spec("openvino") is not None


def _has_gpu() -> bool:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(Path("/dev").glob("nvidia[0-9]*"))


def cache_folder() -> Path | None:
    """Returns the folder of converted and compiled networks; None where nothing can be written.

    That is AHNET_CACHE, else `ahnet` in XDG_CACHE_HOME, by default ~/.cache.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(os.environ.get("AHNET_CACHE") or Path(base) / "ahnet")
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder.absolute() if os.access(folder, os.W_OK | os.X_OK) else None


class OpenVINONetwork:
    """A network from raw intensities to probabilities, as OpenVINO computes it.

    Args:
      where: the folder of the network, for messages.
      digest: of all that the network's answers depend on.
      precision: "float32" or "bfloat16".
      window_shape: (z, y, x, channel) of most windows.
      classes: of the probabilities.
      write_saved_model: called unless the cache has the network; returns a SavedModel's folder, and may
        write it into the empty folder that it is given.

    Raises:
      ModelError: OpenVINO is not installed, or can't read the network.
      SettingsError: the processor lacks the precision.
    """

    def __init__(
        self,
        where: Path,
        digest: str,
        *,
        precision: str,
        window_shape: tuple[int, ...],
        classes: int,
        write_saved_model: Callable[[Path], Path],
    ):
        with named_extra(ModelError):
            if not _is_installed():
                raise ModuleNotFoundError(name="openvino")
            version = importlib.metadata.version("openvino")
        cache = cache_folder()
        converted = None if cache is None else cache / f"{digest}-{version}"
        self._job = Job(str(where), None, converted, precision, window_shape, classes)
        self._write_saved_model = write_saved_model
        self._lock = threading.Lock()
        self._process: _Process | None = self._start()

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        """Returns probabilities float32 [batch, z, y, x, class] of windows [batch, z, y, x, channel].

        The windows of a batch follow each other, each on all cores: it is as fast as together, and
        the batch size changes neither the compiled network nor its memory.
        """
        answers = np.empty((*windows.shape[:-1], self._job.classes), np.float32)
        with self._lock:
            if self._process is None:
                self._process = self._start()
            try:
                self._process.compute(windows, answers)
            except ModelError:
                if not self._process.is_running():
                    self._process = None
                raise
            except BaseException:
                # An interruption: the next windows must not be given the answer to these.
                self._process.kill()
                self._process = None
                raise
        return answers

    def _start(self) -> _Process:
        job = self._job
        if job.converted is not None and (job.converted / NETWORK_FILE).is_file():
            return _Process(job)
        with tempfile.TemporaryDirectory(prefix="ahnet-") as temporary:
            saved_model = self._write_saved_model(Path(temporary)).absolute()
            return _Process(dataclasses.replace(job, saved_model=saved_model))


class _Process:
    """A process of `openvino_process`; it ends with this object, or with this process."""

    def __init__(self, job: Job):
        self._where, self._classes = job.where, job.classes
        self._memory = os.memfd_create("ahnet-windows")
        weakref.finalize(self, os.close, self._memory)
        self._window_shape: tuple[int, ...] = ()
        self._grow(job.window_shape)
        child_requests, self._requests = multiprocessing.Pipe(duplex=False)
        self._answers, child_answers = multiprocessing.Pipe(duplex=False)
        with child_requests, child_answers:
            descriptors = (self._memory, child_requests.fileno(), child_answers.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, *map(str, descriptors), *sys.path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=descriptors,
            )
        weakref.finalize(self, _end, self._process, self._requests)
        self._exchange(job)

    def compute(self, windows: np.ndarray, answers: np.ndarray) -> None:
        """Fills `answers` [batch, z, y, x, class] with the probabilities of windows."""
        shape = windows.shape[1:]
        self._grow(shape)
        for window, answer in zip(windows, answers, strict=True):
            self._image[0] = window
            self._exchange(shape)
            answer[...] = self._found[0]

    def is_running(self) -> bool:
        """Returns whether the process can be asked again."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Ends the process in the midst of what it computes."""
        self._process.kill()
        self._process.wait()

    def _grow(self, window_shape: tuple[int, ...]) -> None:
        """Makes room for a window and its probabilities, at the place where the process will look."""
        size = shared_bytes(window_shape, self._classes)
        if size > os.fstat(self._memory).st_size:
            os.truncate(self._memory, size)
        if window_shape != self._window_shape:
            self._image, self._found = shared_arrays(self._memory, window_shape, self._classes)
            self._window_shape = window_shape

    def _exchange(self, message: Job | tuple[int, ...]) -> None:
        """Sends a message and waits for its answer; raises the error that it is."""
        try:
            self._requests.send(message)
            error = self._answers.recv()
        except (EOFError, BrokenPipeError):
            code = self._process.wait()
            found = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            remedy = "SIGKILL usually means that memory ran out." if found == "SIGKILL" else ""
            expected = "an answer of OpenVINO's process"
            raise ModelError(self._where, expected, f"its end by {found}", remedy) from None
        if isinstance(error, AHNetError):
            raise error


def _end(process: subprocess.Popen, requests: Connection) -> None:
    requests.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)
        return
    process.kill()
    process.wait()


def networks_digest() -> str:
    """Returns a digest of the code that builds networks, on which a checkpoint's answers depend."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].glob("networks/*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
