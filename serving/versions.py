"""The numbered versions of a model in a folder: watched, loaded, swapped, drained."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from tensorflow_serving.apis import model_pb2
from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus

from preprocessing.errors import AHNetError, ModelError
from serving.model import ServedModel, load_model
from serving.protocol import RefusedError

_LARGEST_VERSION = 2**63 - 1

State = ModelVersionStatus.State


@dataclass(frozen=True)
class VersionStatus:
    """The state of one version, as TF Serving counts them: LOADING, AVAILABLE, UNLOADING, END.

    Attributes:
      state: a `ModelVersionStatus.State`.
      error: why it could not be loaded; empty if all is well.
    """

    state: int
    error: str = ""


def find_versions(base_path: Path) -> dict[int, Path]:
    """Returns the SavedModel folders in `base_path` that have a whole number as name."""
    return {
        int(child.name): child
        for child in base_path.iterdir()
        if re.fullmatch("[0-9]{1,19}", child.name)
        and int(child.name) <= _LARGEST_VERSION
        and (child / "saved_model.pb").is_file()
    }


class ModelVersions:
    """Serves the newest version in a folder and replaces it, without a gap, when a newer one comes.

    A version that is replaced finishes the requests it has. A version that can't be loaded is
    reported, and tried again when its files change; the present one stays. If the newest version is
    removed, the next older one takes over.

    Args:
      base_path: folder of numbered SavedModel folders.
      name: name of the model, which requests must give.
      poll_s: seconds between two looks at the folder.
      report: called with one line about each version that is loaded or fails.

    Raises:
      ModelError: no version in the folder, or none that can be loaded.
    """

    def __init__(
        self, base_path: str | Path, name: str, *, poll_s: float, report: Callable[[str], object]
    ):
        self.name = name
        self._base_path = Path(base_path)
        self._poll_s = poll_s
        self._report = report
        self._lock = threading.Lock()
        self._current: ServedModel | None = None
        self._uses: dict[int, int] = {}
        self._statuses: dict[int, VersionStatus] = {}
        self._failed: dict[int, tuple] = {}
        self._seen: dict[int, tuple] = {}
        self._last_problem = ""
        self._stopped = threading.Event()
        self._load_first()
        self._watcher = threading.Thread(target=self._watch, name="versions", daemon=True)
        self._watcher.start()

    @property
    def current_version(self) -> int:
        """The version that answers requests now."""
        with self._lock:
            return self._current.version

    @contextlib.contextmanager
    def in_use(self, spec: model_pb2.ModelSpec) -> Iterator[ServedModel]:
        """Yields the model that a request names; it is not unloaded meanwhile.

        Raises:
          RefusedError: (INVALID_ARGUMENT) no name given; (NOT_FOUND) unknown name, version or label.
        """
        self.check_name(spec)
        with self._lock:
            model = self._current
            if spec.HasField("version") and spec.version.value != model.version:
                raise _not_found(
                    f"model {self.name!r} has no version {spec.version.value} loaded; "
                    f"version {model.version} is being served"
                )
            if spec.version_label:
                raise _not_found(f"model {self.name!r} has no version labels")
            self._uses[model.version] = self._uses.get(model.version, 0) + 1
        try:
            yield model
        finally:
            with self._lock:
                self._uses[model.version] -= 1
                self._end_if_drained(model.version)

    def check_name(self, spec: model_pb2.ModelSpec) -> None:
        """Refuses a request that gives no model name, or another one."""
        if not spec.name:
            raise RefusedError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"model_spec.name: expected {self.name!r}, found none",
            )
        if spec.name != self.name:
            raise _not_found(f"model {spec.name[:60]!r} is not served here; {self.name!r} is")

    def statuses(self) -> dict[int, VersionStatus]:
        """Returns the state of every version met so far, newest first."""
        with self._lock:
            return dict(sorted(self._statuses.items(), reverse=True))

    def stop(self) -> None:
        """Ends the watching; the current version stays loaded."""
        self._stopped.set()
        self._watcher.join()

    def _load_first(self) -> None:
        if not self._base_path.is_dir():
            found = "a file" if self._base_path.exists() else "nothing there"
            raise ModelError(self._base_path, "a folder of numbered SavedModel folders", found)
        found = find_versions(self._base_path)
        if not found:
            raise self._no_versions()
        for version, folder in sorted(found.items(), reverse=True):
            error = self._load(version, folder)
            if error is None:
                return
        raise error

    def _watch(self) -> None:
        while not self._stopped.wait(self._poll_s):
            try:
                self._refresh()
            except OSError as error:
                # The folder may come back; what is loaded needs no files.
                problem = f"{self.name}: can't read {self._base_path}: {error.strerror}"
                if problem != self._last_problem:
                    self._report(problem)
                self._last_problem = problem

    def _refresh(self) -> None:
        """Loads the newest version that loads, if that is not the current one."""
        found = find_versions(self._base_path)
        stamps = {version: _stamp(folder) for version, folder in found.items()}
        settled = {version for version, stamp in stamps.items() if self._seen.get(version) == stamp}
        self._seen = stamps
        for version in sorted(found, reverse=True):
            if version == self.current_version:
                return
            # A folder that still grows is being copied; one that failed is not tried unchanged.
            worth_trying = version in settled and self._failed.get(version) != stamps[version]
            if worth_trying and self._load(version, found[version]) is None:
                return

    def _load(self, version: int, folder: Path) -> AHNetError | None:
        """Loads a version and makes it the current one; returns the error if it can't be loaded."""
        self._set_status(version, VersionStatus(State.LOADING))
        stamp = _stamp(folder)
        try:
            model = load_model(folder, version)
        except AHNetError as error:
            self._failed[version] = stamp
            self._set_status(version, VersionStatus(State.END, str(error)))
            self._report(f"{self.name}: version {version} was not loaded: {error}")
            return error
        with self._lock:
            previous, self._current = self._current, model
            self._statuses[version] = VersionStatus(State.AVAILABLE)
            if previous is not None:
                self._statuses[previous.version] = VersionStatus(State.UNLOADING)
                self._end_if_drained(previous.version)
        if previous is not None:
            self._report(f"{self.name}: version {version} replaces version {previous.version}")
        return None

    def _set_status(self, version: int, status: VersionStatus) -> None:
        with self._lock:
            self._statuses[version] = status

    def _end_if_drained(self, version: int) -> None:
        """Marks a replaced version as gone when its last request is done; the lock is held."""
        if version != self._current.version and not self._uses.get(version):
            self._uses.pop(version, None)
            self._statuses[version] = VersionStatus(State.END)

    def _no_versions(self) -> ModelError:
        names = sorted(child.name for child in self._base_path.iterdir())
        remedy = "Export one with python -m serving.export."
        if "saved_model.pb" in names:
            remedy = "Give the folder above it; the name of this one must be a whole number."
        return ModelError(
            self._base_path,
            "numbered folders (1, 2, ...) with a saved_model.pb in each",
            ", ".join(names[:5]) or "an empty folder",
            remedy,
        )


def _stamp(folder: Path) -> tuple:
    """Returns names, sizes and times of a folder's files: it changes while files are copied."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    facts = [(path, path.stat()) for path in files]
    return tuple((str(path), fact.st_size, fact.st_mtime_ns) for path, fact in facts)


def _not_found(reason: str) -> RefusedError:
    return RefusedError(grpc.StatusCode.NOT_FOUND, reason)
