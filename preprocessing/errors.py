"""Errors that a user can fix: what was expected, what was found, where, and what to do."""

from __future__ import annotations

import contextlib
import platform
import sys
from collections.abc import Collection, Iterator

# Irregularities that are refused unless `--allow` names them, and what happens then.
ALLOWANCES = {
    "gantry_tilt": "slices that are not stacked along their normal keep their sheared affine",
    "gaps": "slices at uneven steps are treated as evenly spaced at the mean step",
    "duplicate_slices": "of several slices at one position the one with the lowest instance number "
    "is kept",
    "mixed_series": "of several series, acquisitions, shapes or orientations the one with the most "
    "slices is read",
    "unfit_image": "an image that does not look like what the task expects is used all the same",
    "unit": "the unit in a NIfTI header (xyzt_units) is ignored, and its numbers are taken as mm",
    "label_geometry": "a label map of the image's shape whose affine differs is taken voxel by voxel",
}


class AHNetError(Exception):
    """An error that a user can fix.

    Args:
      where: the file, case, setting or address that is wrong.
      expected: what is valid there.
      found: what was there.
      remedy: what to do; empty if `expected` is enough.
    """

    def __init__(self, where: object, expected: str, found: object, remedy: str = ""):
        super().__init__(where, expected, found, remedy)
        self.where, self.found = str(where), str(found)
        self.expected, self.remedy = expected, remedy

    def __str__(self) -> str:
        remedy = f". {self.remedy}" if self.remedy else ""
        line = f"{self.where}: expected {self.expected}, found {self.found}{remedy}"
        return " ".join(line.split())


class InputError(AHNetError):
    """A volume, label map, record or folder is missing, damaged or inconsistent."""


def refuse_unless_allowed(
    irregularity: str, allow: Collection[str], where: object, expected: str, found: object
) -> None:
    """Raises InputError unless an irregularity, one of `ALLOWANCES`, is among those to accept."""
    if irregularity not in allow:
        remedy = f"With --allow {irregularity}, {ALLOWANCES[irregularity]}."
        raise InputError(where, expected, found, remedy)


class SettingsError(AHNetError):
    """A command-line option, a setting or a combination of them is invalid."""


class ModelError(AHNetError):
    """A network, checkpoint, weight file or SavedModel can't be used for what was requested."""


class ServingError(AHNetError):
    """A model server can't be reached or rejects a request."""


class PipelineError(AHNetError):
    """A pipeline can't be launched, or one of its components failed."""


class Stopped(Exception):  # noqa: N818
    """A signal (its number) stopped the work, whose state is saved; the message says how to resume."""

    def __init__(self, signal: int, message: str):
        super().__init__(signal, message)
        self.signal = signal

    def __str__(self) -> str:
        return self.args[1]


# Packages, by the name they are imported by, that are installed with an extra only (see setup.py).
EXTRAS = {
    **dict.fromkeys(("tensorflow_serving", "grpc_health", "prometheus_client"), "serving"),
    **dict.fromkeys(("tf2onnx", "onnx"), "onnx"),
    "openvino": "openvino",
    **dict.fromkeys(("tfx", "kfp", "kubernetes", "click", "ml_metadata"), "pipeline"),
    **dict.fromkeys(("tensorflow_metadata", "tensorflow_data_validation"), "pipeline"),
    **dict.fromkeys(("tensorflow_model_analysis", "keras_tuner", "jinja2"), "pipeline"),
}
# The C library that the wheels of TFX 1.21 need, which is the one for Python 3.11 and newer.
TFX_GLIBC = (2, 39)


@contextlib.contextmanager
def named_extra(kind: type[AHNetError]) -> Iterator[None]:
    """Turns the failed import of one of `EXTRAS` into an error that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        extra = EXTRAS[package]
        raise kind(extra, f"the package {package}", "none", _how_to_add(extra)) from error


def _how_to_add(extra: str) -> str:
    name, version = platform.libc_ver()
    is_old = name == "glibc" and tuple(map(int, version.split("."))) < TFX_GLIBC
    if extra == "pipeline" and sys.version_info >= (3, 11) and is_old:
        needed = ".".join(map(str, TFX_GLIBC))
        return (
            f"TFX 1.21 needs glibc {needed}, and this system has {version}: in a checkout, "
            "'make env STACK=2.15' makes an environment with TFX 1.15."
        )
    return f"In a checkout, pip install '.[{extra}]' adds it."
