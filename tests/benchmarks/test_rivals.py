"""Networks in turn: those that end are left out; this project's back end against the best rival."""

from __future__ import annotations

import sys
from contextlib import ExitStack

import pytest

from benchmarks import in_turn, network, peers, prediction, rivals
from benchmarks.in_turn import Candidate
from preprocessing.errors import SettingsError

WORKER = """
import time
from benchmarks.peers import serve, timed

def prepare(size):
    if size < 0:
        raise ValueError(size)

calls = []

def once(limit=2):
    calls.append(0)
    if {dies} and len(calls) > 1:
        raise MemoryError
    return timed(lambda: time.sleep(0.01))

serve({{"prepare": prepare, "once": once}})
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Returns a maker of candidates of this project that sleep, and end in their second call or not."""
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{peers.ROOT}")

    def make(name: str, size: int = 1, dies: bool = False) -> Candidate:
        module = f"worker_{len(list(tmp_path.iterdir()))}"
        (tmp_path / f"{module}.py").write_text(WORKER.format(dies=dies))
        return Candidate(f"ours, {name}", module, ({"do": "prepare", "size": size},))

    return make


def test_who_can_not_be_prepared_or_ends_is_left_out(worker, capsys):
    candidates = [worker("fit"), worker("unprepared", size=-1), worker("short-lived", dies=True)]
    with ExitStack() as stack:
        times = in_turn.in_turn(in_turn.open_workers(stack, candidates), 3, 1)
    (figure,) = in_turn.figures_of(times)
    (seconds, memory) = times[candidates[0]]
    assert (figure["network"], len(seconds)) == ("ours, fit", 3)
    assert min(seconds) == figure["seconds_least"] >= 0.01
    assert figure["peak_memory_mib"] == memory > 5
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1] for line in told] == [" ours, unprepared", " ours, short-lived"]


def test_a_worker_that_has_ended_is_told_by_its_type(worker):
    with worker("gone").start() as process:
        process.process.kill()
        process.process.wait()
        with pytest.raises(peers.WorkerError, match="exited during the request"):
            process.ask(do="once")


def test_a_python_of_another_version_gets_none_of_these_paths(monkeypatch, tmp_path):
    (tmp_path / "other_python").symlink_to(sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "only_here.py").write_text(WORKER.format(dies=False))
    with (
        peers.Worker(tmp_path / "other_python", "only_here") as other,
        pytest.raises(peers.WorkerError),
    ):
        other.ask(do="once")


def figure(network: str, seconds: float, memory: float, **more) -> dict:
    return {
        "network": network,
        "allocator": "default",
        "seconds_median": seconds,
        "seconds_least": seconds,
        "peak_memory_mib": memory,
    } | more


def test_this_projects_openvino_is_compared_where_it_ran():
    slow, fast, other = figure("ours", 4, 90), figure("ours, OpenVINO", 2, 80), figure("M", 3, 70)
    assert rivals.against_rivals([slow, fast, other, figure("N", 6, 60)]) == (1.5, 80, 60)
    assert rivals.against_rivals([slow, other]) == (0.75, 90, 70)
    for alone in ([slow, fast], [other]):
        with pytest.raises(SettingsError, match="that runs here"):
            rivals.against_rivals(alone)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx512f", ("float32",)),
        ("fpu amx_bf16 avx512f", ("float32", "bfloat16")),
        ("avx512_bf16", ("float32", "bfloat16")),
    ],
)
def test_bfloat16_only_where_the_processor_has_it(flags, expected, tmp_path, capsys):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"model name\t: avx512_bf16\nflags\t\t: {flags}\n")
    assert rivals.precisions(cpuinfo=cpuinfo) == expected
    assert rivals.precisions("float32", cpuinfo) == ("float32",)
    if "bfloat16" in expected:
        assert rivals.precisions("bfloat16", cpuinfo) == ("bfloat16",)
    else:
        with pytest.raises(SettingsError, match="precision: expected float32 on this processor"):
            rivals.precisions("bfloat16", cpuinfo)
    assert ("left out: bfloat16" in capsys.readouterr().out) == (len(expected) == 1)


def test_a_forward_pass_counts_by_its_worst_group():
    labels = {"work": "forward-128", "precision": "float32"}
    figures = [
        figure(name, seconds, memory, **labels, in_turn_with=group)
        for group, name, seconds, memory in (
            ("default", "ours", 1.0, 500),
            ("default", "ours, OpenVINO", 0.5, 100),
            ("default", "MONAI channels-first", 3.0, 300),
            ("default", "MONAI channels-last", 2.0, 400),
            ("tuned", "ours", 1.0, 500),
            ("tuned", "ours, OpenVINO", 0.5, 110),
            ("tuned", "MONAI channels-first", 1.5, 300),
            ("tuned", "MONAI channels-first, torch.compile", 0.4, 90),
            ("runtimes", "ours", 1.0, 500),
            ("runtimes", "ours, OpenVINO", 0.5, 120),
        )
    ]
    found = {goal["name"].split(": ")[1]: goal for goal in network.goals_of(figures)}
    assert found["times as fast as MONAI, default allocator"]["measured"] == 2
    assert found["times as fast as MONAI, tuned allocator"]["measured"] == 1.5
    fastest = found["times as fast as the fastest rival"]
    assert (fastest["measured"], fastest["holds"]) == (0.8, False)
    memory = found["peak memory in MiB, at most the least rival's"]
    assert (memory["goal"], memory["measured"], memory["holds"]) == ("<= 90", 110, False)


def test_memory_of_a_training_step_against_the_rival_with_the_least_and_with_recompute():
    labels = {"work": "training-128", "precision": "float32"}
    figures = [
        figure(name, seconds, 0, **labels, in_turn_with=group, step_memory_mib=memory)
        for group, name, seconds, memory in (
            ("default", "ours", 1.0, 1000),
            ("default", "ours, recompute", 1.2, 550),
            ("default", "MONAI channels-first", 2.0, 1200),
            ("default", "MONAI channels-last", 3.0, 900),
            ("tuned", "ours", 1.0, 1),
            ("tuned", "ours, recompute", 1.0, 1),
            ("tuned", "MONAI channels-first", 2.0, 1),
        )
    ]
    found = {goal["name"].split(": ")[1]: goal for goal in network.goals_of(figures)}
    memory = found["memory of a step beyond the process in MiB, at most MONAI's"]
    assert (memory["goal"], memory["measured"], memory["holds"]) == ("<= 900", 1000, False)
    share = found["memory of a step with recompute, share of that without"]
    assert (share["goal"], share["measured"]) == ("<= 0.6", 0.55)
    assert found["time of a step with recompute, of that without"]["measured"] == 1.2


def test_a_volume_is_held_against_every_rival():
    labels = {"precision": "float32", "memory_above_the_networks_mib": 10}
    figures = [
        figure("ours", 10, 500, **labels),
        figure("ours, OpenVINO", 6, 200, **labels),
        figure("MONAI channels-last", 30, 400, **labels | {"memory_above_the_networks_mib": 40}),
        figure("MONAI channels-last, torch.compile", 12, 450, **labels),
        figure("MONAI in OpenVINO", 9, 300, **labels),
    ]
    goals = prediction.goals_of(figures)
    assert [(goal["goal"], goal["measured"]) for goal in goals] == [
        (">= 2", 3),
        ("<= 0.5", 0.25),
        (">= 1.5", 1.5),
        ("<= 300", 200),
    ]
    assert all(goal["holds"] for goal in goals)
