"""Predictions wait in a bounded queue, are merged into batches where they fit, and run in turn."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field

import grpc
import numpy as np

from serving.embedded.loaded_model import Call, ServedModel, run_call
from serving.protocol import RefusedError

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class BatchSettings:
    """How predictions wait and run.

    Attributes:
      running: predictions at the same time; each uses all cores.
      waiting: predictions that wait; more are refused with RESOURCE_EXHAUSTED.
      most_windows: windows that requests are merged to; 1 merges none.
      most_bytes: bytes of windows that requests are merged to, which bounds the memory.
      wait_s: how long a prediction waits for others to join it. With 0 it takes along whatever waits
        already and never waits by itself.
    """

    running: int = 1
    waiting: int = 16
    most_windows: int = 4
    most_bytes: int = 32 * 2**20
    wait_s: float = 0.0


@dataclass(eq=False)
class _Entry:
    """A prediction that waits."""

    model: ServedModel
    call: Call
    is_wanted: Callable[[], bool]
    future: Future = field(default_factory=Future)

    @property
    def key(self) -> tuple | None:
        """What predictions that can be merged have in common; None: it runs alone."""
        if self.call.windows is None:
            return None
        inputs = sorted(self.call.inputs.items())
        shapes = tuple((name, array.dtype.str, array.shape[1:]) for name, array in inputs)
        # The model is in use as long as the entry lives, so its id is its own.
        return (id(self.model), self.call.signature_name, tuple(self.call.outputs), shapes)

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.call.inputs.values())


class Batcher:
    """Runs predictions in few threads.

    Args:
      settings: how many run, wait and are merged.
      observe: called with the number of requests in each batch that has run.
    """

    def __init__(
        self, settings: BatchSettings, observe: Callable[[int], object] = lambda requests: None
    ):
        self._settings = settings
        self._observe = observe
        self._places = threading.BoundedSemaphore(settings.running + settings.waiting)
        self._changed = threading.Condition()
        self._entries: list[_Entry] = []
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"prediction-{number}", daemon=True)
            for number in range(settings.running)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Predictions that wait."""
        with self._changed:
            return len(self._entries)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Holds one of the places, before any memory is taken for the request.

        Raises:
          RefusedError: (RESOURCE_EXHAUSTED) all places are taken.
        """
        if not self._places.acquire(blocking=False):
            places = self._settings.running + self._settings.waiting
            raise RefusedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{places} predictions are running or waiting already; try again later",
            )
        try:
            yield
        finally:
            self._places.release()

    def run(
        self,
        model: ServedModel,
        call: Call,
        *,
        timeout_s: float | None,
        is_wanted: Callable[[], bool],
    ) -> Outputs:
        """Waits for a turn as long as the client does, and returns the outputs.

        Raises:
          RefusedError: (DEADLINE_EXCEEDED) the client's time is over; (CANCELLED) the client is gone;
            or what the model says about the values, see `run_call`.
        """
        entry = _Entry(model, call, is_wanted)
        with self._changed:
            self._entries.append(entry)
            self._changed.notify_all()
        try:
            return entry.future.result(timeout_s)
        except FutureTimeoutError:
            entry.future.cancel()
            raise RefusedError(
                grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the answer was there"
            ) from None

    def close(self) -> None:
        """Ends the threads; what still waits is refused."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        for entry in self._entries:
            _refuse(entry, RefusedError(grpc.StatusCode.UNAVAILABLE, "the server is stopping"))

    def _work(self) -> None:
        while batch := self._next_batch():
            self._run_batch(batch)

    def _next_batch(self) -> list[_Entry]:
        """Waits for a prediction, and for others to join it; returns none when all is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._entries or self._closed)
            if self._closed:
                return []
            first = self._entries[0]
            self._changed.wait_for(
                lambda: self._closed or first not in self._entries or self._is_full(first),
                timeout=self._settings.wait_s,
            )
            # Another thread may have taken it meanwhile.
            start = first if first in self._entries else next(iter(self._entries), None)
            batch = [] if start is None else self._fitting(start)
            for entry in batch:
                self._entries.remove(entry)
        return batch or self._next_batch()

    def _is_full(self, first: _Entry) -> bool:
        if first.key is None:
            return True
        fitting = self._fitting(first)
        waiting = sum(entry.key == first.key for entry in self._entries)
        windows = sum(entry.call.windows for entry in fitting)
        return windows >= self._settings.most_windows or waiting > len(fitting)

    def _fitting(self, first: _Entry) -> list[_Entry]:
        """Returns the entries that go together with one, itself the first."""
        batch, key = [first], first.key
        if key is None:
            return batch
        windows, size = first.call.windows, first.bytes
        for entry in self._entries:
            if entry is first or entry.key != key:
                continue
            windows, size = windows + entry.call.windows, size + entry.bytes
            if windows > self._settings.most_windows or size > self._settings.most_bytes:
                break
            batch.append(entry)
        return batch

    def _run_batch(self, batch: list[_Entry]) -> None:
        # From here on an entry can't be cancelled any more: it is answered.
        wanted = [entry for entry in batch if entry.future.set_running_or_notify_cancel()]
        here = [entry for entry in wanted if entry.is_wanted()]
        for entry in wanted:
            if entry not in here:
                _refuse(entry, RefusedError(grpc.StatusCode.CANCELLED, "the client is gone"))
        if not here:
            return
        try:
            answers = _run_merged(here)
        except RefusedError as error:
            if len(here) == 1:
                _refuse(here[0], error)
            else:
                # One request's values must not spoil the others' answers.
                for entry in here:
                    self._run_alone(entry)
            return
        except Exception as error:
            for entry in here:
                entry.future.set_exception(error)
            return
        self._observe(len(here))
        for entry, outputs in zip(here, answers, strict=True):
            entry.future.set_result(outputs)

    def _run_alone(self, entry: _Entry) -> None:
        try:
            outputs = run_call(entry.model, entry.call)
        except Exception as error:
            entry.future.set_exception(error)
        else:
            self._observe(1)
            entry.future.set_result(outputs)


def _run_merged(batch: list[_Entry]) -> list[Outputs]:
    """Runs predictions with the same key as one, and returns the outputs of each."""
    first = batch[0]
    if len(batch) == 1:
        return [run_call(first.model, first.call)]
    inputs = {
        name: np.concatenate([entry.call.inputs[name] for entry in batch])
        for name in first.call.inputs
    }
    sizes = [entry.call.windows for entry in batch]
    merged = Call(first.call.signature_name, inputs, first.call.outputs, sum(sizes))
    outputs = run_call(first.model, merged)
    ends = np.cumsum(sizes)
    return [
        {name: array[end - size : end] for name, array in outputs.items()}
        for size, end in zip(sizes, ends, strict=True)
    ]


def _refuse(entry: _Entry, error: RefusedError) -> None:
    if not entry.future.cancelled():
        entry.future.set_exception(error)
