"""The strongest networks that a user would pick on a CPU in place of this project's TensorFlow.

MONAI's AHNet in torch, by itself and compiled, in OpenVINO and in ONNX Runtime; and this project's own
OpenVINO back end.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.in_turn import OURS, Candidate, leave_out, open_workers
from benchmarks.peers import peer_versions
from benchmarks.report import versions
from preprocessing.errors import SettingsError

# AH-Net as published, as MONAI calls its settings.
MONAI_NETWORK = {
    "blocks": (3, 4, 6, 3),
    "channels": 1,
    "classes": 3,
    "pvp_levels": 4,
    "upsampling": "trilinear",
}
FORMATS = {"channels-first": False, "channels-last": True}
PRECISIONS = ("float32", "bfloat16")
RUNTIMES = ("OpenVINO", "ONNX Runtime")
OURS_OPENVINO = f"{OURS}, OpenVINO"
# AVX-512 BF16 and AMX; without them bfloat16 is emulated, slower than float32.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}


def has_rival(figures: Sequence[Mapping[str, Any]]) -> bool:
    """Returns whether a rival was measured."""
    return any(not each["network"].startswith(OURS) for each in figures)


def against_rivals(figures: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """Compares figures that were taken in turn: this project's back end with the best of the rivals.

    The back end is OpenVINO where it was measured, as `predict` chooses. Returns how many times as fast
    as the fastest rival it is, its peak memory and that of the rival with the least, in MiB.

    Raises:
      SettingsError: this project or all rivals were left out.
    """
    ours = {each["network"]: each for each in figures if each["network"].startswith(OURS)}
    rivals = [each for each in figures if each["network"] not in ours]
    for side, found in (("this project", ours), ("a rival", rivals)):
        if not found:
            raise SettingsError("benchmark", f"a network of {side} that runs here", "none")
    own = ours.get(OURS_OPENVINO) or ours[OURS]
    fastest = min(each["seconds_median"] for each in rivals)
    least = min(each["peak_memory_mib"] for each in rivals)
    return fastest / own["seconds_median"], own["peak_memory_mib"], least


def package_versions() -> dict[str, str]:
    """Returns the versions of both environments' packages."""
    own = ["tensorflow", "keras", "numpy"]
    if importlib.util.find_spec("openvino") is not None:
        own.append("openvino")
    peers = peer_versions("torch", "monai", "onnxruntime", "openvino")
    peers["openvino of MONAI's network"] = peers.pop("openvino")
    return versions(*own) | peers


def precisions(only: str | None = None, cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, ...]:
    """Returns the precisions that this processor computes by itself, or `only` that one.

    Says which it lacks. Raises SettingsError if that is `only`.
    """
    flags: set[str] = set()
    for line in cpuinfo.read_text(encoding="utf-8").splitlines():
        if line.startswith("flags"):
            flags |= set(line.split())
    able = list(PRECISIONS)
    if not flags & _BFLOAT16_FLAGS:
        able.remove("bfloat16")
        leave_out("bfloat16", "this processor has neither AVX-512 BF16 nor AMX")
    if only is not None and only not in able:
        raise SettingsError("precision", "float32 on this processor", only)
    return (only,) if only else tuple(able)


class Networks:
    """AH-Net for windows of a size [z, y, x]: MONAI's as ONNX, this project's for OpenVINO.

    Both OpenVINOs keep what they compile, and have compiled it before: what that takes is not in the
    memory of the processes that are measured.
    """

    def __init__(self, folder: str, shape_zyx: Sequence[int], threads: int):
        self._folder, self._shape, self._threads = Path(folder), tuple(shape_zyx), threads
        self._environment = {"AHNET_CACHE": str(self._folder / "cache")}

    def monai(
        self, precision: str, allocator: str, request: dict[str, Any], *, compiled: bool
    ) -> list[Candidate]:
        """Returns MONAI's network in both memory formats, prepared by a request."""
        load = {"do": "load", "threads": self._threads, **MONAI_NETWORK}
        own = {"precision": precision, "compiled": compiled}
        return [
            Candidate(
                f"MONAI {name}, torch.compile" if compiled else f"MONAI {name}",
                "benchmarks.monai_worker",
                (load, request | own | {"channels_last": channels_last}),
                allocator,
            )
            for name, channels_last in FORMATS.items()
        ]

    def runtimes(self, precision: str, module: str, request: dict[str, Any]) -> list[Candidate]:
        """Returns MONAI's network in each runtime that has the precision, prepared by a request."""
        path = self._folder / "monai.onnx"
        if not path.exists():
            z, y, x = self._shape
            exporter = Candidate(
                "MONAI as ONNX",
                "benchmarks.monai_worker",
                (
                    {"do": "load", "threads": self._threads, **MONAI_NETWORK},
                    {"do": "export", "shape": (1, 1, y, x, z), "output": str(path)},
                ),
            )
            if not _prepare_once(exporter):
                return []
        common = {"path": str(path), "precision": precision, "threads": self._threads}
        candidates = []
        for runtime in RUNTIMES:
            if (runtime, precision) == ("ONNX Runtime", "bfloat16"):
                leave_out(runtime, "it computes float32 only on CPUs")
                continue
            own = {"runtime": runtime, "cache": str(self._folder / f"cache-{precision}")}
            prepare = (request | common | own,)
            candidate = Candidate(f"MONAI in {runtime}", module, prepare)
            if runtime != "OpenVINO" or _prepare_once(candidate, _first_use(request)):
                candidates.append(candidate)
        return candidates

    def ours_openvino(self, precision: str, request: dict[str, Any]) -> list[Candidate]:
        """Returns this project's OpenVINO back end, if it is installed, prepared by a request."""
        if importlib.util.find_spec("openvino") is None:
            leave_out(OURS_OPENVINO, "OpenVINO is not installed: pip install '.[openvino]'")
            return []
        checkpoint = self._folder / "checkpoint"
        if not checkpoint.exists():
            write = {"do": "write_checkpoint", "folder": str(checkpoint), "window": self._shape}
            if not _prepare_once(Candidate(OURS, "benchmarks.tensorflow_worker", (write,))):
                return []
        load = {"checkpoint": str(checkpoint), "precision": precision, "threads": self._threads}
        candidate = Candidate(
            OURS_OPENVINO,
            "benchmarks.openvino_worker",
            ({"do": "load", **load}, request),
            environment=self._environment,
        )
        return [candidate] if _prepare_once(candidate, _first_use(request)) else []


def _first_use(request: Mapping[str, Any]) -> dict[str, str]:
    """Returns the request after which what `request` prepared has been compiled."""
    return {"do": "once" if request["do"] == "prepare" else "once_window"}


def _prepare_once(candidate: Candidate, *more: dict[str, Any]) -> bool:
    """Prepares a candidate in a process that then ends; returns whether it did."""
    whole = dataclasses.replace(candidate, requests=(*candidate.requests, *more))
    with ExitStack() as stack:
        return bool(open_workers(stack, [whole]))
