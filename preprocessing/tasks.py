"""What a task is: its classes, intensity window, spacing and patches; presets and the user's own."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from preprocessing.errors import SettingsError

RESAMPLING = ("keep", "in_plane", "full")
IMAGE_DTYPES = ("int16", "uint16")
TARGETS = ("labels", "heat_map")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive_triple(values: Any, is_number: Callable[[Any], bool]) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) == 3
        and all(is_number(value) and value > 0 for value in values)
    )


@dataclass(frozen=True)
class Task:
    """What is learned from which volumes; everything that conversion and networks must agree on.

    Attributes:
      name: the preset's name, or the user's own.
      class_names: one name a label value, background (value 0) first.
      intensity_window: raw values mapped to -1 and +1 inside the network, clipped outside.
      image_dtype: dtype of stored patches, "int16" (CT, HU) or "uint16" (DBT as scanned).
      outside_value: raw value of voxels beyond the volume's edge.
      resampling: "keep" the grid, resample "in_plane" only, or "full"y to `spacing_mm`.
      spacing_mm: target spacing (x, y, z) in mm; z is the slice axis; unused with "keep".
      patch_shape_zyx: patch size in voxels (z, y, x), for training and for the evaluation tiling.
      patches_per_case: training patches drawn from each case.
      foreground_fraction: share of training patches centred on foreground, class-balanced.
      target: what a network learns: the "labels" of voxels, or a "heat_map" of lesions (two classes),
        see `preprocessing.volumes.lesions`.
      label_classes: for each value of a data set's label maps the label's name and the class it counts
        as, e.g. ("tumour", "liver"); None: labels are the classes.
    """

    name: str
    class_names: tuple[str, ...]
    intensity_window: tuple[float, float]
    image_dtype: str = "int16"
    outside_value: int = -1024
    resampling: str = "keep"
    spacing_mm: tuple[float, float, float] | None = None
    patch_shape_zyx: tuple[int, int, int] = (32, 128, 128)
    patches_per_case: int = 16
    foreground_fraction: float = 0.75
    target: str = "labels"
    label_classes: tuple[tuple[str, str], ...] | None = None

    def __post_init__(self):
        names, window = self.class_names, self.intensity_window
        self._check("name: a text", isinstance(self.name, str) and self.name != "")
        self._check(
            "class_names: a list of names, two or more, all different",
            isinstance(names, tuple)
            and all(isinstance(name, str) for name in names)
            and 2 <= len(names) == len(set(names)),
        )
        numbers = isinstance(window, tuple) and len(window) == 2 and all(map(_finite, window))
        self._check(
            "intensity_window: two finite numbers, low < high", numbers and window[0] < window[1]
        )
        self._check(
            f"image_dtype among {', '.join(IMAGE_DTYPES)}", self.image_dtype in IMAGE_DTYPES
        )
        limits = np.iinfo(self.image_dtype)
        self._check(
            f"outside_value: a whole number that {self.image_dtype} can hold",
            _whole(self.outside_value) and limits.min <= self.outside_value <= limits.max,
        )
        self._check(f"resampling among {', '.join(RESAMPLING)}", self.resampling in RESAMPLING)
        if self.resampling != "keep" or self.spacing_mm is not None:
            self._check(
                "spacing_mm: three positive millimetres (x, y, z)",
                _positive_triple(self.spacing_mm, _finite),
            )
        self._check(
            "patch_shape_zyx: three positive voxel counts",
            _positive_triple(self.patch_shape_zyx, _whole),
        )
        self._check(
            "patches_per_case: a whole number of at least 1",
            _whole(self.patches_per_case) and self.patches_per_case >= 1,
        )
        self._check(
            "foreground_fraction: a share from 0 to 1",
            _finite(self.foreground_fraction) and 0 <= self.foreground_fraction <= 1,
        )
        self._check(f"target among {', '.join(TARGETS)}", self.target in TARGETS)
        self._check(
            "class_names: two, background and lesion, where the target is a heat map",
            self.target == "labels" or len(names) == 2,
        )
        labels = self.label_classes
        self._check(
            "label_classes: pairs of a label's name and a class, labels all different and the "
            "background first",
            labels is None
            or (
                isinstance(labels, tuple)
                and all(isinstance(pair, tuple) and len(pair) == 2 for pair in labels)
                and all(isinstance(name, str) and own in names for name, own in labels)
                and len({name for name, _ in labels}) == len(labels) > 0
                and labels[0][1] == names[0]
            ),
        )

    @property
    def label_names(self) -> tuple[str, ...]:
        """Name of each value of a data set's label maps."""
        if self.label_classes is None:
            return self.class_names
        return tuple(name for name, _ in self.label_classes)

    @property
    def class_values(self) -> tuple[int, ...]:
        """Class value of each value of a data set's label maps."""
        if self.label_classes is None:
            return tuple(range(len(self.class_names)))
        return tuple(self.class_names.index(own) for _, own in self.label_classes)

    def _check(self, expected: str, holds: bool) -> None:
        """Raises a SettingsError; `expected` starts with the attribute's name."""
        if not holds:
            attribute = re.match(r"\w+", expected)[0]
            raise SettingsError(f"task {self.name!r}", expected, repr(getattr(self, attribute)))

    def to_dict(self) -> dict[str, Any]:
        """Returns the task as plain JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


PRESETS = {
    task.name: task
    for task in (
        Task(
            name="ct_liver",
            class_names=("background", "liver", "tumour"),
            intensity_window=(-200.0, 250.0),
        ),
        # Coarse in the plane, so that a laptop trains it in minutes.
        Task(
            name="ct_liver_small",
            class_names=("background", "liver", "tumour"),
            intensity_window=(-200.0, 250.0),
            resampling="full",
            spacing_mm=(2.5, 2.5, 5.0),
            patch_shape_zyx=(16, 128, 128),
            patches_per_case=8,
        ),
        Task(
            name="dbt_lesion",
            class_names=("background", "lesion"),
            intensity_window=(0.0, 1023.0),
            image_dtype="uint16",
            outside_value=0,
            patch_shape_zyx=(32, 256, 256),
            target="heat_map",
        ),
        # A lesion of 8 mm is still ten pixels wide, and a patch holds most of a breast's plane.
        Task(
            name="dbt_lesion_small",
            class_names=("background", "lesion"),
            intensity_window=(0.0, 1023.0),
            image_dtype="uint16",
            outside_value=0,
            resampling="in_plane",
            spacing_mm=(0.8, 0.8, 1.0),
            patch_shape_zyx=(16, 96, 96),
            patches_per_case=8,
            target="heat_map",
        ),
    )
}


def load_task(name_or_path: str) -> Task:
    """Returns a preset by name, or the user's own task from a JSON file.

    A file holds the attributes of `Task`; `"base": "ct_liver"` takes the rest from a preset.

    Raises:
      SettingsError: neither a preset nor a readable file, or a setting that doesn't fit.
    """
    if name_or_path in PRESETS:
        return PRESETS[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        near = difflib.get_close_matches(name_or_path, PRESETS, n=1)
        remedy = f"Did you mean {near[0]!r}?" if near else ""
        raise SettingsError(
            "task", f"a preset ({', '.join(PRESETS)}) or a JSON file", repr(name_or_path), remedy
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(path, "a JSON object of task settings", error) from None
    return task_from_dict(content, where=path)


def task_from_dict(content: dict[str, Any], where: object = "task") -> Task:
    """Returns a task from plain JSON types (see `load_task`)."""
    if not isinstance(content, dict):
        raise SettingsError(where, "a JSON object of task settings", type(content).__name__)
    settings = dict(content)
    base = settings.pop("base", None)
    if base is not None:
        if base not in PRESETS:
            raise SettingsError(where, f"base among {', '.join(PRESETS)}", repr(base))
        settings = PRESETS[base].to_dict() | {"name": f"{base}_own"} | settings
    names = {field.name: field for field in dataclasses.fields(Task)}
    for name in settings:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            remedy = f"Did you mean {near[0]!r}?" if near else ""
            raise SettingsError(where, f"settings among {', '.join(names)}", repr(name), remedy)
    for name, field in names.items():
        if field.default is dataclasses.MISSING and name not in settings:
            raise SettingsError(where, f"the setting {name!r}", "none", "Add it, or a base.")
    return Task(**{name: _tuples(value) for name, value in settings.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
