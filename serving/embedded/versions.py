"""The numbered versions of a model in a folder: watched, loaded, swapped, drained."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
from tensorflow_serving.apis import model_pb2
from tensorflow_serving.apis.get_model_status_pb2 import ModelVersionStatus

from preprocessing.errors import AHNetError, ModelError
from serving.embedded.folders import file_stamp, find_versions
from serving.embedded.loaded_model import ServedModel, load_model
from serving.embedded.policy import ModelConfig, check_labels
from serving.protocol import RefusedError

# Between two looks at a folder, to see whether it still grows.
_SETTLING_S = 0.1

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


class ModelVersions:
    """Serves the versions that a policy chooses, and replaces them, without a gap, as others come.

    A version that is replaced finishes the requests it has. A version that can't be loaded is
    reported, and tried again when its files change; the present ones stay, and so does the last one
    when nothing is left to replace it. If the newest version is removed, the next older one takes over.

    Args:
      config: the model's name, folder, policy and labels.
      poll_s: seconds between two looks at the folder.
      report: called with one line about each version that is loaded or fails.

    Raises:
      ModelError: no version in the folder, or none that can be loaded.
    """

    def __init__(self, config: ModelConfig, *, poll_s: float, report: Callable[[str], object]):
        self.name = config.name
        self._config = config
        self._poll_s = poll_s
        self._report = report
        self._lock = threading.Lock()
        self._refreshing = threading.Lock()
        self._loaded: dict[int, ServedModel] = {}
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
    def base_path(self) -> Path:
        """The folder of the versions."""
        return self._config.base_path

    @property
    def current_version(self) -> int:
        """The version that answers requests which name none: the newest."""
        with self._lock:
            return max(self._loaded)

    @contextlib.contextmanager
    def in_use(self, spec: model_pb2.ModelSpec) -> Iterator[ServedModel]:
        """Yields the model that a request names; it is not unloaded meanwhile.

        Raises:
          RefusedError: (NOT_FOUND) unknown version or label.
        """
        with self._lock:
            model = self._loaded[self._version_of(spec)]
            self._uses[model.version] = self._uses.get(model.version, 0) + 1
        try:
            yield model
        finally:
            with self._lock:
                self._uses[model.version] -= 1
                self._end_if_drained(model.version)

    def statuses(self) -> dict[int, VersionStatus]:
        """Returns the state of every version met so far, newest first."""
        with self._lock:
            return dict(sorted(self._statuses.items(), reverse=True))

    def status_version(self, spec: model_pb2.ModelSpec) -> int | None:
        """Returns the version whose state a request asks for; None: all.

        Raises:
          RefusedError: (NOT_FOUND) a version never met, or an unknown label.
        """
        with self._lock:
            if spec.version_label:
                return self._version_of(spec)
            if not spec.HasField("version"):
                return None
            if spec.version.value not in self._statuses:
                raise not_found(f"model {self.name!r} has no version {spec.version.value!r}")
            return spec.version.value

    def configure(self, config: ModelConfig) -> None:
        """Serves by another policy and with other labels from now on, from the same folder.

        Raises:
          RefusedError: (FAILED_PRECONDITION) none of the versions, or a labelled one, can be loaded;
            what was served before stays.
        """
        before = self._config
        with self._refreshing:
            self._config = config
            try:
                # Twice, so that a folder which still grows is told from one that is whole.
                self._refresh(unload=False)
                time.sleep(_SETTLING_S)
                self._refresh(unload=False)
                wanted = config.policy.candidates(find_versions(config.base_path))
                with self._lock:
                    loaded = set(self._loaded)
                if not loaded & set(wanted):
                    raise RefusedError(
                        grpc.StatusCode.FAILED_PRECONDITION,
                        f"model {self.name!r}: none of the wanted versions can be loaded",
                    )
                check_labels(config, loaded & set(wanted))
            except (RefusedError, OSError) as error:
                self._config = before
                if isinstance(error, RefusedError):
                    raise
                raise RefusedError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"model {self.name!r}: base_path can't be read: {error.strerror}",
                ) from None
            self._refresh()

    def stop(self) -> None:
        """Ends the watching; what is loaded stays so."""
        self._stopped.set()
        self._watcher.join()

    def unload(self) -> None:
        """Ends the watching and drops all versions as their requests end."""
        self.stop()
        with self._lock:
            versions = list(self._loaded)
        for version in versions:
            self._unload(version)

    def _version_of(self, spec: model_pb2.ModelSpec) -> int:
        """Returns the loaded version that a request names; the lock is held."""
        version, loaded = max(self._loaded, default=0), sorted(self._loaded)
        if spec.HasField("version"):
            version = spec.version.value
        if spec.version_label:
            if spec.version_label not in self._config.labels:
                known = ", ".join(sorted(self._config.labels)) or "none"
                raise not_found(
                    f"model {self.name!r} has no version label {spec.version_label[:60]!r}; "
                    f"labels: {known}"
                )
            version = self._config.labels[spec.version_label]
        if version not in self._loaded:
            verb = "is" if len(loaded) == 1 else "are"
            shown = f"version{'s' * (len(loaded) != 1)} {', '.join(map(str, loaded)) or 'none'}"
            raise not_found(
                f"model {self.name!r} has no version {version} loaded; {shown} {verb} being served"
            )
        return version

    def _load_first(self) -> None:
        base_path = self._config.base_path
        if not base_path.is_dir():
            found = "a file" if base_path.exists() else "nothing there"
            raise ModelError(base_path, "a folder of numbered SavedModel folders", found)
        found = find_versions(base_path)
        candidates = self._config.policy.candidates(found)
        if not candidates:
            raise self._no_versions()
        error = None
        for version in candidates:
            error = self._load(version, found[version]) or error
            if len(self._loaded) == self._config.policy.most():
                break
        if not self._loaded:
            raise error
        try:
            check_labels(self._config, self._loaded)
        except RefusedError as refused:
            raise ModelError(base_path, "a loaded version for each label", refused.reason) from None

    def _watch(self) -> None:
        while not self._stopped.wait(self._poll_s):
            try:
                with self._refreshing:
                    self._refresh()
            except OSError as error:
                # The folder may come back; what is loaded needs no files.
                problem = f"{self.name}: can't read {self._config.base_path}: {error.strerror}"
                if problem != self._last_problem:
                    self._report(problem)
                self._last_problem = problem

    def _refresh(self, *, unload: bool = True) -> None:
        """Loads what the policy wants and, once that is there, lets the rest go."""
        found = find_versions(self._config.base_path)
        stamps = {version: file_stamp(folder) for version, folder in found.items()}
        settled = {version for version, stamp in stamps.items() if self._seen.get(version) == stamp}
        self._seen = stamps
        policy = self._config.policy
        chosen = set()
        for version in policy.candidates(found):
            if len(chosen) == policy.most():
                break
            # A folder that still grows is being copied; one that failed is not tried unchanged.
            worth_trying = version in settled and self._failed.get(version) != stamps[version]
            if version in self._loaded or (
                worth_trying and self._load(version, found[version]) is None
            ):
                chosen.add(version)
        if unload and chosen:
            for version in set(self._loaded) - chosen:
                self._unload(version)
                newest = max(chosen)
                self._report(f"{self.name}: version {newest} replaces version {version}")

    def _load(self, version: int, folder: Path) -> AHNetError | None:
        """Loads a version; returns the error if it can't be loaded."""
        self._set_status(version, VersionStatus(State.LOADING))
        stamp = file_stamp(folder)
        try:
            model = load_model(folder, version)
        except AHNetError as error:
            self._failed[version] = stamp
            self._set_status(version, VersionStatus(State.END, str(error)))
            self._report(f"{self.name}: version {version} was not loaded: {error}")
            return error
        with self._lock:
            self._loaded[version] = model
            self._statuses[version] = VersionStatus(State.AVAILABLE)
        return None

    def _unload(self, version: int) -> None:
        """Takes a version out; the requests that it has go on."""
        with self._lock:
            self._loaded.pop(version, None)
            self._statuses[version] = VersionStatus(State.UNLOADING)
            self._end_if_drained(version)

    def _set_status(self, version: int, status: VersionStatus) -> None:
        with self._lock:
            self._statuses[version] = status

    def _end_if_drained(self, version: int) -> None:
        """Marks a replaced version as gone when its last request is done; the lock is held."""
        if version not in self._loaded and not self._uses.get(version):
            self._uses.pop(version, None)
            self._statuses[version] = VersionStatus(State.END)

    def _no_versions(self) -> ModelError:
        names = sorted(child.name for child in self._config.base_path.iterdir())
        remedy = "Export one with python -m serving.export."
        if "saved_model.pb" in names:
            remedy = "Give the folder above it; the name of this one must be a whole number."
        return ModelError(
            self._config.base_path,
            "numbered folders (1, 2, ...) with a saved_model.pb in each",
            ", ".join(names[:5]) or "an empty folder",
            remedy,
        )


def not_found(reason: str) -> RefusedError:
    """Returns the error for a model, version or label that is not served."""
    return RefusedError(grpc.StatusCode.NOT_FOUND, reason)
