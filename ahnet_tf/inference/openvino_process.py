"""The process in which OpenVINO computes; `openvino_runtime` starts it and talks to it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import mmap
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from preprocessing.errors import AHNetError, ModelError, SettingsError, named_extra
from preprocessing.files import atomic_write

# OpenVINO's names of the precisions, by those of `ExportSettings`.
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
# Compiled networks that one process keeps; a volume needs one, clients of a server may send more.
KEPT_SIZES = 4
# Bytes to which OpenVINO's tensors are aligned.
_ALIGNMENT = 64
NETWORK_FILE = "network.xml"


@dataclass(frozen=True)
class Job:
    """What a process computes.

    Attributes:
      where: the folder of the network, for messages.
      saved_model: the SavedModel to convert; None if `converted` has the network.
      converted: folder that keeps the converted and compiled network; None to keep nothing.
      precision: "float32" or "bfloat16".
      window_shape: (z, y, x, channel) of the windows to expect, for which the network is compiled at
        once.
      classes: of the probabilities.
    """

    where: str
    saved_model: Path | None
    converted: Path | None
    precision: str
    window_shape: tuple[int, ...]
    classes: int


def shared_arrays(
    memory: int, window_shape: tuple[int, ...], classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a window [1, z, y, x, channel] and its probabilities [1, z, y, x, class] in shared memory.

    `memory` is a file descriptor of at least `shared_bytes`. Both are float32.
    """
    shapes = (1, *window_shape), (1, *window_shape[:-1], classes)
    buffer = mmap.mmap(memory, shared_bytes(window_shape, classes))
    image = np.frombuffer(buffer, np.float32, math.prod(shapes[0])).reshape(shapes[0])
    offset = _aligned(image.nbytes)
    found = np.frombuffer(buffer, np.float32, math.prod(shapes[1]), offset)
    return image, found.reshape(shapes[1])


def shared_bytes(window_shape: tuple[int, ...], classes: int) -> int:
    """Returns the bytes of a window (z, y, x, channel) and its probabilities."""
    return _aligned(4 * math.prod(window_shape)) + 4 * math.prod(window_shape[:-1]) * classes


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def main(memory: int, incoming: int, outgoing: int) -> None:
    """Receives a `Job`, then the shapes of windows in the shared memory; answers None or an error.

    All three are file descriptors. Ends when the other process closes its end, or has ended.
    """
    # Ctrl-C reaches every process of a terminal; the other one decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests = Connection(incoming, writable=False)
    answers = Connection(outgoing, readable=False)
    with contextlib.suppress(EOFError, BrokenPipeError):
        job = requests.recv()
        try:
            network = _CompiledNetwork(job, memory)
        except AHNetError as error:
            answers.send(error)
            return
        answers.send(None)
        # While the other process reads the first volume. An error comes again with the first window.
        with contextlib.suppress(ModelError, RuntimeError):
            network.request(job.window_shape)
        while True:
            answers.send(network.compute(requests.recv()))


def _import_openvino() -> ModuleType:
    """Imports OpenVINO without its telemetry; raises ModelError if it is not installed.

    The package reports each import to its maker, unless the module that sends is missing.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    with named_extra(ModelError):
        import openvino
    return openvino


class _CompiledNetwork:
    """A network from raw intensities to probabilities, compiled once for each size of window.

    Raises:
      ModelError: OpenVINO is not installed, or can't read the network.
      SettingsError: the processor lacks the precision.
    """

    def __init__(self, job: Job, memory: int):
        self._openvino = _import_openvino()
        self._job, self._memory = job, memory
        self._precision = PRECISIONS[job.precision]
        self._core = self._openvino.Core()
        able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if job.precision == "bfloat16" and "BF16" not in able:
            remedy = "AVX-512 BF16 or AMX is needed."
            raise SettingsError("precision", "float32 on this processor", job.precision, remedy)
        name = self._core.get_property("CPU", "FULL_DEVICE_NAME")
        self._processor = hashlib.sha256(f"{name} {sorted(able)}".encode()).hexdigest()[:8]
        kept = self._kept(job.window_shape)
        # The compiled network has all weights: beside it, the original would be a second copy.
        self._model: Any = None
        if job.saved_model is not None:
            self._model = self._convert(job.saved_model)
        elif kept is not None and not kept.is_file():
            self._model = self._read(kept.parent)
        self._requests: dict[tuple[int, ...], tuple[Any, list[Any]]] = {}

    def compute(self, window_shape: tuple[int, ...]) -> ModelError | None:
        """Computes the probabilities of the window (z, y, x, channel) in the shared memory."""
        try:
            self.request(window_shape).infer()
        except ModelError as error:
            return error
        except RuntimeError as error:
            return ModelError(self._job.where, "a network that OpenVINO can run", _reason(error))
        return None

    def request(self, window_shape: tuple[int, ...]) -> Any:
        """Returns the compiled network for windows (z, y, x, channel), bound to the shared memory."""
        if window_shape not in self._requests:
            while len(self._requests) >= KEPT_SIZES:
                self._requests.pop(next(iter(self._requests)))
            request = self._compile(window_shape).create_infer_request()
            image, found = shared_arrays(self._memory, window_shape, self._job.classes)
            # The request does not own them.
            tensors = [self._openvino.Tensor(each, shared_memory=True) for each in (image, found)]
            request.set_input_tensor(tensors[0])
            request.set_output_tensor(tensors[1])
            self._requests[window_shape] = request, tensors
        return self._requests[window_shape][0]

    def _kept(self, window_shape: tuple[int, ...]) -> Path | None:
        """Returns the file of the compiled network in the cache, if there is a cache."""
        if self._job.converted is None:
            return None
        sizes = "x".join(map(str, window_shape))
        return self._job.converted / f"{self._precision}-{sizes}-{self._processor}"

    def _compile(self, window_shape: tuple[int, ...]) -> Any:
        config = {"INFERENCE_PRECISION_HINT": self._precision, "PERFORMANCE_HINT": "LATENCY"}
        kept = self._kept(window_shape)
        blob = None if kept is None else _read_checked(kept)
        if blob is not None:
            with contextlib.suppress(RuntimeError):
                return self._core.import_model(blob, "CPU", config)
        if self._model is None and kept is not None:
            self._model = self._read(kept.parent)
        model = self._model.clone()
        model.reshape([1, *window_shape])
        _pool_slices_as_maxima(model)
        compiled = self._core.compile_model(model, "CPU", config)
        if kept is not None:
            # The cache may be full or not writable.
            with contextlib.suppress(OSError, RuntimeError), atomic_write(kept) as temporary:
                exported = io.BytesIO()
                compiled.export_model(exported)
                _write_checked(temporary, exported.getvalue())
        return compiled

    def _read(self, converted: Path) -> Any:
        path = converted / NETWORK_FILE
        try:
            return self._core.read_model(str(path))
        except RuntimeError as error:
            remedy = "Remove its folder; the network is then converted again."
            raise ModelError(path, "a whole file", _reason(error), remedy) from None

    def _convert(self, saved_model: Path) -> Any:
        """Returns the network of a SavedModel, and keeps it if there is room."""
        try:
            model = self._core.read_model(str(saved_model))
        except RuntimeError as error:
            raise self._unreadable(error) from None
        names = [[port.any_name for port in ports] for ports in (model.inputs, model.outputs)]
        if names != [["image"], ["probabilities"]]:
            raise self._unreadable(f"{names[0]} -> {names[1]}")
        if self._job.converted is None:
            return model
        try:
            with atomic_write(self._job.converted) as temporary:
                temporary.mkdir()
                path = temporary / NETWORK_FILE
                self._openvino.save_model(model, str(path), compress_to_fp16=False)
        except (OSError, RuntimeError):
            return model
        # As later processes will find it: what is compiled is kept under a digest of the network.
        return self._read(self._job.converted)

    def _unreadable(self, found: object) -> ModelError:
        expected = "a network that OpenVINO can read"
        remedy = "Export it again with python -m serving.export, or use --backend tensorflow."
        return ModelError(self._job.where, expected, _reason(found), remedy)


def _pool_slices_as_maxima(model: Any) -> None:
    """Replaces the max pools of two slices (`ops.slice_max_pool`) by maxima, in a model of fixed size.

    OpenVINO would transpose their map [1, z, y * x, channel], and transpose the result back.
    """
    from openvino import opset13

    for node in model.get_ordered_ops():
        if node.get_type_name() != "MaxPool" or list(node.get_attributes()["kernel"]) != [2, 1]:
            continue
        before, users = node.input_value(0).get_node(), node.output(0).get_target_inputs()
        after = [
            user.get_node() for user in users if user.get_node().get_type_name() == "Transpose"
        ]
        if before.get_type_name() != "Transpose" or len(after) != 1:
            continue
        slices = before.input_value(0)
        _, z, area, channels = slices.get_shape()
        if z % 2:
            # The last slice has no partner.
            continue
        pairs = opset13.reshape(slices, np.array([z // 2, 2, area * channels]), False)
        larger = opset13.maximum(*opset13.split(pairs, 1, 2).outputs())
        shape = np.array([1, z // 2, area, channels])
        after[0].output(0).replace(opset13.reshape(larger, shape, False).output(0))


def _write_checked(path: Path, content: bytes) -> None:
    """Writes a file that begins with the SHA-256 of its content: OpenVINO does not notice damage."""
    with open(path, "wb") as file:
        file.write(hashlib.sha256(content).digest())
        file.write(content)


def _read_checked(path: Path) -> bytes | None:
    """Returns what `_write_checked` wrote; None if it is missing, not whole or can't be read."""
    try:
        with open(path, "rb") as file:
            digest, content = file.read(hashlib.sha256().digest_size), file.read()
    except OSError:
        return None
    return content if hashlib.sha256(content).digest() == digest else None


def _reason(error: object) -> str:
    """Returns the line of OpenVINO's error that explains it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "no translator" in line or "No conversion" in line]
    return (telling or lines[-1:] or ["an error without a text"])[0][:300]
