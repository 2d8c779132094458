"""The numbered versions of a model in a folder: watching, loading, swapping and draining."""

from __future__ import annotations

import contextlib
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
from tensorflow_serving.apis import model_pb2
from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus

from preprocessing.errors import AHNetError, ModelError
from serving.embedded.loaded_model import LoadedModel, load_model
from serving.protocol import RefusedError, malformed

MAX_VERSION = 2**63 - 1

State = ModelVersionStatus.State


class ModelVersions:
    """Serves the newest version in a folder and replaces it without a gap when a newer one appears.

    A replaced version finishes the requests that it is answering. A version that can't be loaded is
    reported, and tried again once its files change; the current version stays. If the folder of the
    current version is removed, the newest remaining one replaces it; if none remains, it stays.

    The folder is checked every `poll_s` seconds. `report` is called with one line when a version is
    replaced or can't be loaded. Raises ModelError if no version in the folder can be loaded.
    """

    def __init__(
        self,
        name: str,
        base_path: Path,
        *,
        poll_s: float,
        report: Callable[[str], object],
        backend: str = "tensorflow",
    ):
        self.name = name
        self._backend = backend
        self._base_path = base_path
        self._poll_s = poll_s
        self._report = report
        self._lock = threading.RLock()
        self._uses: Counter[int] = Counter()
        self._statuses: dict[int, ModelVersionStatus] = {}
        self._failed: dict[int, tuple] = {}
        self._seen: dict[int, tuple] = {}
        self._current = self._load_first()
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="versions", daemon=True)
        self._watcher.start()

    @property
    def current_version(self) -> int:
        """The number of the version that is served."""
        with self._lock:
            return self._current.version

    @contextlib.contextmanager
    def in_use(self, spec: model_pb2.ModelSpec) -> Iterator[LoadedModel]:
        """Yields the model that a request names, which counts as in use until the context ends.

        Raises RefusedError with INVALID_ARGUMENT if the request names no model or a label, NOT_FOUND if
        it names another model or a version that is not served.
        """
        self._check_names(spec)
        with self._lock:
            model = self._current
            version = spec.version.value if spec.HasField("version") else model.version
            if version != model.version:
                raise _not_found(
                    f"model {self.name!r} has no version {version} loaded; "
                    f"version {model.version} is being served"
                )
            self._uses[version] += 1
        try:
            yield model
        finally:
            with self._lock:
                self._uses[version] -= 1
                self._end_if_drained(version)

    def status(self, spec: model_pb2.ModelSpec) -> list[ModelVersionStatus]:
        """Returns the state of the version that a request names, or of all known ones, newest first.

        Raises RefusedError as `in_use` does, but of the versions only an unknown one is refused.
        """
        self._check_names(spec)
        with self._lock:
            if not spec.HasField("version"):
                return [self._statuses[version] for version in sorted(self._statuses, reverse=True)]
            if spec.version.value not in self._statuses:
                raise _not_found(f"model {self.name!r} has no version {spec.version.value!r}")
            return [self._statuses[spec.version.value]]

    def stop(self) -> None:
        """Stops watching the folder; the current version stays loaded."""
        self._stopped.set()
        self._watcher.join()

    def _check_names(self, spec: model_pb2.ModelSpec) -> None:
        if not spec.name:
            raise malformed(f"model_spec.name: expected {self.name!r}, found none")
        if spec.name != self.name:
            raise _not_found(f"model {spec.name[:60]!r} is not served here; {self.name!r} is")
        if spec.version_label:
            label = spec.version_label[:60]
            # TF Serving's status for a label that it does not have.
            raise malformed(f"model {self.name!r} has no version label {label!r}; labels: none")

    def _load_first(self) -> LoadedModel:
        if not self._base_path.is_dir():
            found = "a file" if self._base_path.exists() else "nothing there"
            raise ModelError(self._base_path, "a folder of numbered SavedModel folders", found)
        error: AHNetError = self._no_versions()
        for version, folder in _find_versions(self._base_path).items():
            try:
                model = self._load(version, folder)
            except AHNetError as failure:
                error = failure
            else:
                self._set_status(version, State.AVAILABLE)
                return model
        raise error

    def _watch(self) -> None:
        last_problem = ""
        while not self._stopped.wait(self._poll_s):
            try:
                self._refresh()
            except OSError as error:
                # The loaded version needs no files, and the folder may come back.
                problem = f"{self.name}: can't read {self._base_path}: {error.strerror}"
                if problem != last_problem:
                    self._report(problem)
                last_problem = problem

    def _refresh(self) -> None:
        """Replaces the current version by the newest one that can be loaded."""
        folders = _find_versions(self._base_path)
        before, self._seen = self._seen, {v: _file_stamp(folder) for v, folder in folders.items()}
        for version, folder in folders.items():
            if version == self._current.version:
                return
            stamp = self._seen[version]
            # A folder that still changes is being copied; a failed one is not tried unchanged.
            if before.get(version) != stamp or self._failed.get(version) == stamp:
                continue
            with contextlib.suppress(AHNetError):
                self._replace(self._load(version, folder))
                return

    def _load(self, version: int, folder: Path) -> LoadedModel:
        self._set_status(version, State.LOADING)
        stamp = _file_stamp(folder)
        try:
            return load_model(folder, version, self._backend)
        except AHNetError as error:
            self._failed[version] = stamp
            self._set_status(version, State.END, str(error))
            self._report(f"{self.name}: version {version} was not loaded: {error}")
            raise

    def _replace(self, model: LoadedModel) -> None:
        with self._lock:
            old, self._current = self._current.version, model
            self._set_status(model.version, State.AVAILABLE)
            self._set_status(old, State.UNLOADING)
            self._end_if_drained(old)
        self._report(f"{self.name}: version {model.version} replaces version {old}")

    def _end_if_drained(self, version: int) -> None:
        """Marks a replaced version as ended after its last request; call with the lock held."""
        if version != self._current.version and not self._uses[version]:
            del self._uses[version]
            self._set_status(version, State.END)

    def _set_status(self, version: int, state: int, error: str = "") -> None:
        code = grpc.StatusCode.INVALID_ARGUMENT.value[0]
        status = {"error_code": code, "error_message": error} if error else {}
        entry = ModelVersionStatus(version=version, state=state, status=status)
        with self._lock:
            self._statuses[version] = entry

    def _no_versions(self) -> ModelError:
        names = sorted(child.name for child in self._base_path.iterdir())
        remedy = "Export one with python -m serving.export."
        if "saved_model.pb" in names:
            remedy = "Give the folder above it; the name of this one must be a whole number."
        expected = "numbered folders (1, 2, ...) with a saved_model.pb in each"
        found = ", ".join(names[:5]) or "an empty folder"
        return ModelError(self._base_path, expected, found, remedy)


def _not_found(reason: str) -> RefusedError:
    return RefusedError(grpc.StatusCode.NOT_FOUND, reason)


def _find_versions(base_path: Path) -> dict[int, Path]:
    """Returns the SavedModel folders in `base_path` with a whole number as name, newest first."""
    folders = {
        int(child.name): child
        for child in base_path.iterdir()
        if re.fullmatch("[0-9]{1,19}", child.name)
        and int(child.name) <= MAX_VERSION
        and (child / "saved_model.pb").is_file()
    }
    return dict(sorted(folders.items(), reverse=True))


def _file_stamp(folder: Path) -> tuple:
    """Returns names, sizes and times of a folder's files, which change while files are copied."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [(path, path.stat()) for path in files]
    return tuple((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats)
