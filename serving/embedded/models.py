"""The models of one server by name, and what changes when it is told to serve others."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
from tensorflow_serving.apis import model_pb2

from preprocessing.errors import AHNetError
from serving.embedded.loaded_model import ServedModel
from serving.embedded.policy import ModelConfig
from serving.embedded.versions import ModelVersions, not_found
from serving.protocol import RefusedError


class Models:
    """Serves several models.

    Args:
      configs: the models to begin with, at least one.
      roots: folders that a later configuration may take models from, besides those of `configs`:
        whoever may reload could otherwise have any folder of this machine loaded.
      poll_s: seconds between two looks at the folders.
      report: called with one line about each version that is loaded or fails.

    Raises:
      ModelError: a model without a version that can be loaded.
    """

    def __init__(
        self,
        configs: Sequence[ModelConfig],
        *,
        roots: Sequence[Path] = (),
        poll_s: float,
        report: Callable[[str], object],
    ):
        self._options = {"poll_s": poll_s, "report": report}
        self._roots = [path.resolve() for path in (*roots, *(each.base_path for each in configs))]
        self._lock = threading.Lock()
        self._reloading = threading.Lock()
        self._by_name: dict[str, ModelVersions] = {}
        try:
            for config in configs:
                self._by_name[config.name] = ModelVersions(config, **self._options)
        except BaseException:
            self.stop()
            raise

    @property
    def names(self) -> list[str]:
        """The names of the models."""
        with self._lock:
            return sorted(self._by_name)

    def find(self, spec: model_pb2.ModelSpec) -> ModelVersions:
        """Returns the model that a request names.

        Raises:
          RefusedError: (INVALID_ARGUMENT) no name given; (NOT_FOUND) another one.
        """
        with self._lock:
            return self._find(spec)

    @contextlib.contextmanager
    def in_use(self, spec: model_pb2.ModelSpec) -> Iterator[ServedModel]:
        """Yields the model and version that a request names; it is not unloaded meanwhile.

        Raises:
          RefusedError: see `find`; (NOT_FOUND) unknown version or label.
        """
        with contextlib.ExitStack() as stack:
            # Found and held in one step: a reload in between would leave nothing to hold.
            with self._lock:
                model = stack.enter_context(self._find(spec).in_use(spec))
            yield model

    def reload(self, configs: Sequence[ModelConfig]) -> None:
        """Serves these models from now on: changed and new ones first, then the others go.

        Raises:
          RefusedError: (PERMISSION_DENIED) a folder that may not be served; (FAILED_PRECONDITION) a
            model that can't be loaded as asked. Models before it in the list are changed by then.
        """
        for config in configs:
            path = config.base_path.resolve()
            if not any(root in (path, *path.parents) for root in self._roots):
                raise RefusedError(
                    grpc.StatusCode.PERMISSION_DENIED,
                    f"model {config.name[:60]!r}: its base_path is none of the folders that this "
                    "server may load models from",
                )
        with self._reloading:
            for config in configs:
                self._serve(config)
            kept = {config.name for config in configs}
            with self._lock:
                gone = [self._by_name.pop(name) for name in set(self._by_name) - kept]
            for versions in gone:
                versions.unload()

    def stop(self) -> None:
        """Ends the watching of folders; what is loaded stays so."""
        for versions in self._by_name.values():
            versions.stop()

    def _find(self, spec: model_pb2.ModelSpec) -> ModelVersions:
        known = ", ".join(map(repr, sorted(self._by_name)))
        if not spec.name:
            raise RefusedError(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"model_spec.name: expected {known}, found none",
            )
        if spec.name not in self._by_name:
            verb = "are" if len(self._by_name) > 1 else "is"
            raise not_found(f"model {spec.name[:60]!r} is not served here; {known} {verb}")
        return self._by_name[spec.name]

    def _serve(self, config: ModelConfig) -> None:
        with self._lock:
            present = self._by_name.get(config.name)
        if present is not None and present.base_path == config.base_path:
            present.configure(config)
            return
        try:
            versions = ModelVersions(config, **self._options)
        except (AHNetError, OSError) as error:
            raise RefusedError(grpc.StatusCode.FAILED_PRECONDITION, str(error)) from None
        with self._lock:
            self._by_name[config.name] = versions
        if present is not None:
            present.unload()
