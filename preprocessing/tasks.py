"""What a task is: its classes, intensity window, spacing and patches; presets and the user's own."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preprocessing.errors import SettingsError

RESAMPLING = ("keep", "in_plane", "full")
IMAGE_DTYPES = ("int16", "uint16")


def _positive(values: Any, count: int) -> bool:
    return (
        isinstance(values, tuple | list)
        and len(values) == count
        and all(isinstance(value, int | float) and value > 0 for value in values)
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

    def __post_init__(self):
        where = f"task {self.name!r}"
        if len(self.class_names) < 2 or len(set(self.class_names)) < len(self.class_names):
            raise SettingsError(where, "class_names: two or more, all different", self.class_names)
        if not self.intensity_window[0] < self.intensity_window[1]:
            raise SettingsError(where, "intensity_window with low < high", self.intensity_window)
        if self.image_dtype not in IMAGE_DTYPES:
            raise SettingsError(
                where, f"image_dtype among {', '.join(IMAGE_DTYPES)}", repr(self.image_dtype)
            )
        if self.resampling not in RESAMPLING:
            raise SettingsError(
                where, f"resampling among {', '.join(RESAMPLING)}", repr(self.resampling)
            )
        if self.resampling != "keep" and not _positive(self.spacing_mm, 3):
            raise SettingsError(
                where, "spacing_mm: three positive millimetres (x, y, z)", self.spacing_mm
            )
        if not _positive(self.patch_shape_zyx, 3):
            raise SettingsError(
                where, "patch_shape_zyx: three positive voxel counts", self.patch_shape_zyx
            )
        if self.patches_per_case < 1:
            raise SettingsError(where, "patches_per_case of at least 1", self.patches_per_case)
        if not 0 <= self.foreground_fraction <= 1:
            raise SettingsError(where, "foreground_fraction from 0 to 1", self.foreground_fraction)

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
    tuples = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    return Task(**tuples)
