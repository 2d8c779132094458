"""Networks that are timed in turn, each in a process of its own.

One that can't be built or run here is left out with a line: torch.compile needs a C++ compiler, for
example.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers import TUNED_ALLOCATOR, Worker, WorkerError, peers_python
from benchmarks.report import print_table

ALLOCATORS = {"default": {}, "tuned": TUNED_ALLOCATOR}
OURS = "ours"


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network to time: its worker, the requests that prepare it, and glibc's allocator."""

    name: str
    module: str
    requests: tuple[dict[str, Any], ...]
    allocator: str = "default"
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether it is this project's."""
        return self.name.startswith(OURS)

    def start(self) -> Worker:
        """Returns its worker, which has prepared nothing."""
        if not self.is_ours:
            return Worker(
                peers_python(), self.module, ALLOCATORS[self.allocator] | self.environment
            )
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "3"}
        return Worker(sys.executable, self.module, quiet | self.environment)


def open_workers(stack: ExitStack, candidates: Sequence[Candidate]) -> dict[Candidate, Worker]:
    """Returns the prepared workers of the candidates; one that ends is left out with a line."""
    workers = {}
    for candidate in candidates:
        worker = stack.enter_context(candidate.start())
        try:
            for request in candidate.requests:
                worker.ask(**request)
        except WorkerError as error:
            leave_out(candidate.name, error)
            continue
        workers[candidate] = worker
    return workers


def in_turn(
    workers: Mapping[Candidate, Worker], repeats: int, warm_up: int
) -> dict[Candidate, tuple[list[float], float]]:
    """Returns the seconds of each call, the workers alternating, and the memory of the last in MiB."""
    waiting = dict(workers)
    seconds: dict[Candidate, list[float]] = {candidate: [] for candidate in workers}
    memory = {}
    for turn in range(warm_up + repeats):
        for candidate, worker in list(waiting.items()):
            try:
                taken, memory[candidate] = worker.ask(do="once")
            except WorkerError as error:
                leave_out(candidate.name, error)
                del waiting[candidate]
                continue
            if turn >= warm_up:
                seconds[candidate].append(taken)
    return {candidate: (seconds[candidate], memory[candidate]) for candidate in waiting}


def leave_out(name: str, reason: object) -> None:
    """Says that a candidate isn't measured."""
    print(f"left out: {name}: {reason}", flush=True)


def figures_of(times: Mapping[Candidate, tuple[list[float], float]]) -> list[dict[str, Any]]:
    """Returns a row of each candidate that was measured."""
    return [
        {
            "network": candidate.name,
            "allocator": candidate.allocator,
            "seconds_median": statistics.median(taken),
            "seconds_least": min(taken),
            "peak_memory_mib": memory,
        }
        for candidate, (taken, memory) in times.items()
    ]


def print_figures(figures: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    """Prints figures with the values of `keys` in front, and a step's memory where it was measured."""
    measured = any("step_memory_mib" in figure for figure in figures)
    step = [("step MiB", "step_memory_mib")] if measured else []
    print_table(
        (
            *keys,
            "network",
            "allocator",
            "median s",
            "least s",
            "peak MiB",
            *(name for name, _ in step),
        ),
        [
            (
                *(figure[key] for key in keys),
                figure["network"],
                figure["allocator"],
                f"{figure['seconds_median']:.4g}",
                f"{figure['seconds_least']:.4g}",
                f"{figure['peak_memory_mib']:.0f}",
                *(f"{figure[key]:.0f}" for _, key in step),
            )
            for figure in figures
        ],
    )
    sys.stdout.flush()
