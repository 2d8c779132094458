"""The benchmark of GPUs: its goals, its message without a GPU, and its path on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.in_turn import OURS


def test_without_a_gpu_it_says_so(capsys):
    if any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")
    assert gpu.main([]) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected an NVIDIA GPU, found none" in line
    assert "--device cpu --shape small" in line


def test_the_faster_of_both_are_compared():
    labels = {"work": "forward", "patches": 2, "patch_zyx": "32x128x128", "precision": "float32"}
    figures = [
        labels | {"network": name, "seconds_median": seconds, "peak_memory_mib": memory}
        for name, seconds, memory in (
            (OURS, 4, 10),
            (f"{OURS}, jit_compile", 2, 30),
            ("MONAI", 5, 5),
            ("MONAI, torch.compile", 3, 20),
        )
    ]
    fast, small = gpu.goals_of(figures)
    assert fast["name"] == "forward, 2 of 32x128x128, float32: times as fast as MONAI's best"
    assert (fast["measured"], fast["holds"]) == (1.5, True)
    assert (small["goal"], small["measured"], small["holds"]) == ("<= 20", 30, False)


@pytest.mark.slow
def test_a_training_step_is_measured_on_the_cpu():
    """Without XLA, which compiles for minutes."""
    (shape,), settings = gpu.SHAPES["small"]
    case = "training", shape, "float32"
    plain, _ = gpu.ours(*case, settings, "cpu")
    (figure,) = gpu.measure([plain], case, 1)
    assert figure["network"] == OURS
    assert figure["seconds_median"] > 0
    assert figure["peak_memory_mib"] > 100
