"""OpenVINO as a back end of prediction on CPUs, compiled once for each size of window."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from preprocessing.errors import ModelError, SettingsError, named_extra
from preprocessing.files import atomic_write

# OpenVINO's names of the precisions, by those of `ExportSettings`.
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
# Compiled networks that one predictor keeps; a volume needs one, clients of a server may send more.
KEPT_SIZES = 4


def is_preferred() -> bool:
    """Returns whether OpenVINO is installed and there is no GPU for TensorFlow; imports neither."""
    return importlib.util.find_spec("openvino") is not None and not _has_gpu()


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
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def import_openvino() -> ModuleType:
    """Imports OpenVINO without its telemetry; raises ModelError if it is not installed.

    The package reports each import to its maker, unless the module that sends is missing.
    """
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    with named_extra(ModelError):
        import openvino
    return openvino


class CompiledNetwork:
    """A network from raw intensities to probabilities, as OpenVINO computes it.

    Args:
      where: the folder of the network, for messages.
      digest: of all that the network's answers depend on; None to cache nothing.
      precision: "float32" or "bfloat16".
      write_saved_model: called unless the cache has the network; returns a SavedModel's folder, and may
        write it into the empty folder that it is given.

    Raises:
      ModelError: OpenVINO is not installed, or can't read the network.
      SettingsError: the processor lacks the precision.
    """

    def __init__(
        self,
        where: object,
        digest: str | None,
        precision: str,
        write_saved_model: Callable[[Path], Path],
    ):
        openvino = import_openvino()
        self._where = where
        self._core = openvino.Core()
        self._config = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bfloat16" and "BF16" not in able:
            remedy = "AVX-512 BF16 or AMX is needed."
            raise SettingsError("precision", "float32 on this processor", precision, remedy)
        cache = None if digest is None else cache_folder()
        if cache is not None:
            self._config["CACHE_DIR"] = str(cache / "compiled")
        converted = None if cache is None else cache / f"{digest}-{openvino.__version__[:6]}"
        try:
            if converted is not None and (converted / "network.xml").is_file():
                self._model = self._core.read_model(str(converted / "network.xml"))
            else:
                self._model = self._convert(write_saved_model)
                if converted is not None:
                    self._keep(openvino, converted)
        except RuntimeError as error:
            raise self._unreadable(error) from None
        self._lock = threading.Lock()
        self._requests: dict[tuple[int, ...], Any] = {}

    def __call__(self, windows: np.ndarray) -> np.ndarray:
        """Returns probabilities float32 [batch, z, y, x, class] of windows [batch, z, y, x, channel].

        The windows of a batch follow each other, each on all cores: it is as fast as together, and
        the batch size changes neither the compiled network nor its memory.
        """
        with self._lock:
            try:
                request = self._request(windows.shape[1:])
                shape = request.get_output_tensor(0).shape[1:]
                answers = np.empty((len(windows), *shape), np.float32)
                for window, answer in zip(windows, answers, strict=True):
                    image = np.ascontiguousarray(window[np.newaxis], np.float32)
                    answer[...] = request.infer([image], share_inputs=True, share_outputs=True)[0][
                        0
                    ]
            except RuntimeError as error:
                raise ModelError(
                    self._where, "a network that OpenVINO can run", _reason(error)
                ) from None
        return answers

    def _request(self, window_shape: tuple[int, ...]) -> Any:
        if window_shape not in self._requests:
            model = self._model.clone()
            model.reshape([1, *window_shape])
            try:
                compiled = self._core.compile_model(model, "CPU", self._config)
            except RuntimeError:
                # The cache may be full or damaged.
                without = {k: v for k, v in self._config.items() if k != "CACHE_DIR"}
                compiled = self._core.compile_model(model, "CPU", without)
            while len(self._requests) >= KEPT_SIZES:
                self._requests.pop(next(iter(self._requests)))
            self._requests[window_shape] = compiled.create_infer_request()
        return self._requests[window_shape]

    def _convert(self, write_saved_model: Callable[[Path], Path]) -> Any:
        with tempfile.TemporaryDirectory(prefix="ahnet-") as temporary:
            model = self._core.read_model(str(write_saved_model(Path(temporary))))
        names = [[port.any_name for port in ports] for ports in (model.inputs, model.outputs)]
        if names != [["image"], ["probabilities"]]:
            raise self._unreadable(f"{names[0]} -> {names[1]}")
        return model

    def _keep(self, openvino: ModuleType, folder: Path) -> None:
        """Writes the network into the cache, if there is room."""
        try:
            with atomic_write(folder) as temporary:
                temporary.mkdir()
                path = str(temporary / "network.xml")
                openvino.save_model(self._model, path, compress_to_fp16=False)
        except (OSError, RuntimeError):
            return

    def _unreadable(self, found: object) -> ModelError:
        expected = "a network that OpenVINO can read"
        remedy = "Export it again with python -m serving.export, or use --backend tensorflow."
        return ModelError(self._where, expected, _reason(found), remedy)


def networks_digest() -> str:
    """Returns a digest of the code that builds networks, on which a checkpoint's answers depend."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].glob("networks/*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _reason(error: object) -> str:
    """Returns the line of OpenVINO's error that explains it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "no translator" in line or "No conversion" in line]
    return (telling or lines[-1:] or ["an error without a text"])[0][:300]
