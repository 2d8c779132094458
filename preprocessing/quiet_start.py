"""Silences what frameworks print as they start."""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

# A variable for TensorFlow, which processes inherit.
_QUIET = ("TF_CPP_MIN_LOG_LEVEL", "3")


def quiet_frameworks(debug: bool = False) -> None:
    """Silences the frameworks' start-up logs and warnings; call before importing TensorFlow."""
    if debug:
        return
    os.environ.setdefault(*_QUIET)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Beam raises the errors that it logs.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="tensorflow_addons")
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category)
    _silence_import()


def quiet_worker() -> None:
    """Silences the import of TensorFlow in a process that a quiet one has started."""
    name, value = _QUIET
    if os.environ.get(name) == value:
        _silence_import()


@contextlib.contextmanager
def quiet_saving() -> Iterator[None]:
    """Silences the log line of each saved model, which notebooks show, with a temporary path."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _silence_import() -> None:
    # There is no stderr in a process that was started without one.
    installed = any(isinstance(finder, _SilentImport) for finder in sys.meta_path)
    if sys.stderr is not None and "tensorflow" not in sys.modules and not installed:
        sys.meta_path.insert(0, _SilentImport("tensorflow"))


class _SilentImport(importlib.abc.MetaPathFinder):
    """Sends file descriptor 2 to nowhere while a package is imported.

    TensorFlow 2.21 writes a notice to it for each of CUDA's libraries, whatever its log level.
    """

    def __init__(self, name: str):
        self._name = name

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_silently(module: ModuleType) -> None:
            with _silent_stderr():
                execute(module)

        spec.loader.exec_module = execute_silently  # type: ignore[method-assign]
        return spec


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    sys.stderr.flush()
    with contextlib.ExitStack() as stack:
        kept = os.dup(2)
        stack.callback(os.close, kept)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, nowhere)
        os.dup2(nowhere, 2)
        stack.callback(os.dup2, kept, 2)
        yield
