"""Queue and batching of predictions."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field

import grpc
import numpy as np

from serving.embedded.loaded_model import CheckedRequest, LoadedModel, Outputs, run_request
from serving.protocol import RefusedError, busy

# Largest input of a merged batch, in bytes.
MAX_BATCH_BYTES = 32 * 2**20


@dataclass(frozen=True)
class BatchSettings:
    """Queue and batching settings."""

    running: int = 1  # concurrent predictions; each uses all cores
    waiting: int = 16  # predictions that may wait; more are refused with UNAVAILABLE
    max_windows: int = 4  # largest number of windows in a merged batch; 1 disables merging


@dataclass(eq=False)
class _Entry:
    """A prediction in the queue."""

    model: LoadedModel
    request: CheckedRequest
    is_wanted: Callable[[], bool]
    future: Future = field(default_factory=Future)

    @property
    def key(self) -> tuple | None:
        """Equal for predictions that can be merged; None for one that must run alone."""
        if not self.request.batch_size:
            return None
        inputs = sorted(self.request.inputs.items())
        shapes = tuple((name, array.dtype.str, array.shape[1:]) for name, array in inputs)
        # The entry keeps the model alive, so no other model can have the same id.
        return (id(self.model), self.request.signature_name, tuple(self.request.outputs), shapes)

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.request.inputs.values())


class Batcher:
    """Runs predictions in a fixed number of threads, merging those that fit together.

    `observe` is called with the number of requests in each batch that has run.
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
        """Number of predictions that wait."""
        with self._changed:
            return len(self._entries)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Reserves a place before memory is allocated, or raises RefusedError (UNAVAILABLE)."""
        if not self._places.acquire(blocking=False):
            places = self._settings.running + self._settings.waiting
            raise busy(f"{places} predictions are running or waiting already")
        try:
            yield
        finally:
            self._places.release()

    def run(
        self,
        model: LoadedModel,
        request: CheckedRequest,
        timeout_s: float,
        is_wanted: Callable[[], bool],
    ) -> Outputs:
        """Queues a prediction and returns its outputs; the caller holds a place.

        The prediction leaves the queue when it is run or its deadline passes, so that no more of them
        wait than there are places.

        `is_wanted` returns whether the client is still connected. Raises RefusedError with
        DEADLINE_EXCEEDED once the deadline has passed, CANCELLED if the client has disconnected, or
        as `run_request` does.
        """
        entry = _Entry(model, request, is_wanted)
        with self._changed:
            if self._closed:
                raise RefusedError(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
            self._entries.append(entry)
            self._changed.notify()
        try:
            return entry.future.result(timeout_s)
        except FutureTimeoutError:
            with self._changed, contextlib.suppress(ValueError):
                self._entries.remove(entry)
            reason = "the deadline passed before the answer was there"
            raise RefusedError(grpc.StatusCode.DEADLINE_EXCEEDED, reason) from None

    def close(self) -> None:
        """Ends the threads and refuses the predictions that still wait."""
        with self._changed:
            self._closed = True
            waiting, self._entries = self._entries, []
            self._changed.notify_all()
        for entry in waiting:
            _refuse(entry, grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        """Runs batches, each from the prediction that waits longest, until the batcher is closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._entries or self._closed)
                if self._closed:
                    return
                batch = self._take_oldest()
            self._run(batch)
            # The thread must not keep the last requests until the next ones come.
            del batch

    def _run(self, batch: Sequence[_Entry]) -> None:
        wanted = []
        for entry in batch:
            if entry.is_wanted():
                wanted.append(entry)
            else:
                _refuse(entry, grpc.StatusCode.CANCELLED, "the client has disconnected")
        if wanted:
            self._answer(wanted)

    def _take_oldest(self) -> list[_Entry]:
        """Takes the oldest prediction and those that fit with it; call with the lock held."""
        batch: list[_Entry] = []
        windows = size = 0
        for entry in self._entries:
            if batch and (entry.key is None or entry.key != batch[0].key):
                continue
            windows, size = windows + entry.request.batch_size, size + entry.bytes
            is_full = windows > self._settings.max_windows or size > MAX_BATCH_BYTES
            if batch and is_full:
                break
            batch.append(entry)
        for entry in batch:
            self._entries.remove(entry)
        return batch

    def _answer(self, batch: list[_Entry]) -> None:
        try:
            answers = _run_merged(batch)
        except Exception as error:
            if isinstance(error, RefusedError) and len(batch) > 1:
                # One request's values must not fail the others.
                for entry in batch:
                    self._answer([entry])
                return
            for entry in batch:
                entry.future.set_exception(error)
            return
        self._observe(len(batch))
        for entry, outputs in zip(batch, answers, strict=True):
            entry.future.set_result(outputs)


def _run_merged(batch: Sequence[_Entry]) -> list[Outputs]:
    """Runs predictions with equal keys as one, and returns the outputs of each."""
    model, request = batch[0].model, batch[0].request
    if len(batch) == 1:
        return [run_request(model, request)]
    inputs = {
        name: np.concatenate([entry.request.inputs[name] for entry in batch])
        for name in request.inputs
    }
    sizes = [entry.request.batch_size for entry in batch]
    merged = CheckedRequest(request.signature_name, inputs, request.outputs, sum(sizes))
    starts = np.cumsum(sizes)[:-1]
    parts = {name: np.split(array, starts) for name, array in run_request(model, merged).items()}
    return [{name: arrays[index] for name, arrays in parts.items()} for index in range(len(batch))]


def _refuse(entry: _Entry, code: grpc.StatusCode, reason: str) -> None:
    entry.future.set_exception(RefusedError(code, reason))
