"""AH-Net's training step and forward pass on a GPU against MONAI's AHNet on the same card, in turn.

python -m benchmarks.gpu [--repeats 9] [--shape 128] [--shape 256] [--device cpu]

This project in TensorFlow with and without XLA (jit_compile), MONAI eager and by torch.compile, both in
channels-last; float32 (in TF32 where the GPU has it, both) and bfloat16 arithmetic with float32 variables
(mixed_bfloat16, autocast). Every network is a process of its own. Memory is the peak of what the framework's
allocator gave out during a call. On the CPU, where `--shape small` is quick, it is the process's peak, and
no goal is set.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.in_turn import (
    OURS,
    Candidate,
    figures_of,
    in_turn,
    open_workers,
    print_figures,
)
from benchmarks.peers import peer_versions, peers_python
from benchmarks.report import goal, versions, write_report
from benchmarks.rivals import MONAI_NETWORK
from preprocessing.cli import make_parser, run_command
from preprocessing.errors import SettingsError

# Shapes [batch, z, y, x, channel], and what makes the network smaller.
SHAPES = {
    "128": (((1, 32, 128, 128, 1), (2, 32, 128, 128, 1)), {}),
    "256": (((1, 32, 256, 256, 1), (2, 32, 256, 256, 1)), {}),
    "small": (((1, 32, 64, 64, 1),), {"blocks": (1, 1, 1, 1), "pvp_levels": 2}),
}
WORKS = ("forward", "training")
PRECISIONS = {"float32": "float32", "mixed_bfloat16": "bfloat16"}
THREADS = 2
WARM_UP = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser("benchmarks.gpu", __doc__.splitlines()[0], ["python -m benchmarks.gpu"])
    parser.add_argument("--repeats", type=int, default=9, help="timed calls of each (default: 9)")
    parser.add_argument(
        "--shape",
        choices=SHAPES,
        action="append",
        help="rows and columns of patches of 32 slices; may be repeated (default: 128 and 256)",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default: cuda)")
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    if arguments.device == "cuda" and not any(Path("/dev").glob("nvidia[0-9]*")):
        remedy = "--device cpu --shape small tries the script."
        raise SettingsError("device", "an NVIDIA GPU", "none", remedy)
    peers_python()
    figures, goals = [], []
    for name in arguments.shape or ("128", "256"):
        shapes, settings = SHAPES[name]
        for shape in shapes:
            for work in WORKS:
                for precision in PRECISIONS:
                    case = work, shape, precision
                    networks = [
                        *ours(*case, settings, arguments.device),
                        *monai(*case, settings, arguments.device),
                    ]
                    found = measure(networks, case, arguments.repeats)
                    figures += found
                    if arguments.device == "cuda":
                        goals += goals_of(found)
    if not figures:
        raise SettingsError("benchmark", "a network that runs here", "none")
    packages = versions("tensorflow", "keras", "numpy") | peer_versions("torch", "monai")
    settings = {"repeats": arguments.repeats, "device": arguments.device}
    if arguments.device == "cuda":
        settings["gpu"] = _gpu_name()
    write_report("gpu", figures, goals, packages, settings)


def ours(work: str, shape, precision: str, settings: dict, device: str) -> list[Candidate]:
    """Returns this project's network with and without XLA."""
    request = {
        "do": "prepare",
        "work": work,
        "shape": shape,
        "precision": precision,
        "threads": THREADS,
        "settings": settings,
        "device": device,
    }
    return [
        Candidate(
            f"{OURS}, jit_compile" if jit_compile else OURS,
            "benchmarks.tensorflow_worker",
            (request | {"jit_compile": jit_compile},),
            environment={"TF_FORCE_GPU_ALLOW_GROWTH": "true"},
        )
        for jit_compile in (False, True)
    ]


def monai(work: str, shape, precision: str, settings: dict, device: str) -> list[Candidate]:
    """Returns MONAI's network, eager and compiled."""
    batch, z, y, x, channels = shape
    load = {"do": "load", "threads": THREADS} | MONAI_NETWORK | settings
    request = {
        "do": "prepare",
        "work": work,
        "shape": (batch, channels, y, x, z),
        "precision": PRECISIONS[precision],
        "channels_last": True,
        "device": device,
    }
    return [
        Candidate(
            "MONAI, torch.compile" if compiled else "MONAI",
            "benchmarks.monai_worker",
            (load, request | {"compiled": compiled}),
        )
        for compiled in (False, True)
    ]


def measure(networks: Sequence[Candidate], case: tuple, repeats: int) -> list[dict]:
    """Returns the figures of networks that do the same work (work, shape, precision) in turn."""
    work, (batch, *shape_zyx, _), precision = case
    with ExitStack() as stack:
        found = figures_of(in_turn(open_workers(stack, networks), repeats, WARM_UP))
    labels = {
        "work": work,
        "patches": batch,
        "patch_zyx": "x".join(map(str, shape_zyx)),
        "precision": precision,
    }
    figures = [labels | each for each in found]
    print_figures(figures, tuple(labels))
    return figures


def goals_of(figures: list[dict]) -> list[dict]:
    """Returns the goals of one work: the faster of this project's networks against MONAI's.

    Raises:
      SettingsError: none of one side ran.
    """
    best = {}
    for is_ours, side in ((True, "this project"), (False, "MONAI")):
        found = [each for each in figures if each["network"].startswith(OURS) == is_ours]
        if not found:
            raise SettingsError("benchmark", f"a network of {side} that runs here", "none")
        best[side] = min(found, key=lambda figure: figure["seconds_median"])
    first = figures[0]
    name = f"{first['work']}, {first['patches']} of {first['patch_zyx']}, {first['precision']}"
    own, theirs = best.values()
    ratio = theirs["seconds_median"] / own["seconds_median"]
    memory = theirs["peak_memory_mib"]
    return [
        goal(f"{name}: times as fast as MONAI's best", ">=", 1, ratio),
        goal(f"{name}: its peak memory in MiB, at most", "<=", memory, own["peak_memory_mib"]),
    ]


def _gpu_name() -> str:
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
