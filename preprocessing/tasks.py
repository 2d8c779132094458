"""Tasks: classes, intensity window, spacing and patches; presets and the user's own from JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from preprocessing import settings
from preprocessing.errors import InputError, SettingsError

_POSITIVE_MM = "three positive millimetres (x, y, z)"
_LABEL_CLASSES = (
    "pairs of a label's name and a class, labels all different and the background first"
)


def _are_positive(values: Any, is_kind: Callable[[Any], bool]) -> bool:
    return len(values) == 3 and all(is_kind(value) and value > 0 for value in values)


@attrs.frozen
class Task:
    """What is learned from which volumes: the settings that conversion and networks share.

    Attributes:
      name: the preset's name, or the user's own.
      class_names: a name for each label value, background (value 0) first.
      intensity_window: values, normalised or raw, mapped to -1 and +1 inside the network, clipped outside.
      image_dtype: dtype of stored patches, "int16" (CT, HU) or "uint16" (DBT).
      outside_value: value of voxels beyond the volume's edge.
      resampling: "keep" (the grid of the volume), "in_plane" or "full" (to `spacing_mm`).
      spacing_mm: target spacing (x, y, z) in mm; z is the slice axis; unused with "keep".
      patch_shape_zyx: patch size in voxels (z, y, x), for training and for the evaluation tiling.
      patches_per_case: training patches drawn from each case.
      foreground_fraction: share of training patches centred on foreground, balanced over classes.
      normalization: "none" (intensities as they are, such as HU), or "breast" (DBT of any scaling, put
        on the intensity window by the percentiles of the breast, `preprocessing.volumes.intensities`).
      target: the "labels" of voxels, or a "heat_map" (`preprocessing.volumes.lesions`; two classes).
      label_classes: for each value of a data set's label maps the label's name and the class it counts
        as, for example ("tumour", "liver"); None: labels are the classes.
    """

    name: str = attrs.field(validator=settings.Requirement("text", lambda name: name != ""))
    class_names: tuple[str, ...] = attrs.field(
        validator=settings.Requirement(
            "a list of names, two or more, all different",
            lambda names: 2 <= len(names) == len(set(names)),
        )
    )
    intensity_window: tuple[float, float] = attrs.field(validator=settings.WINDOW)
    image_dtype: str = attrs.field(default="int16", validator=settings.one_of("int16", "uint16"))
    outside_value: int = attrs.field(
        default=-1024, validator=settings.Requirement("a whole number", settings.is_whole)
    )
    resampling: str = attrs.field(
        default="keep", validator=settings.one_of("keep", "in_plane", "full")
    )
    spacing_mm: tuple[float, float, float] | None = attrs.field(
        default=None,
        validator=settings.Requirement(
            _POSITIVE_MM,
            lambda spacing: spacing is None or _are_positive(spacing, settings.is_number),
        ),
    )
    patch_shape_zyx: tuple[int, int, int] = attrs.field(
        default=(32, 128, 128),
        validator=settings.Requirement(
            "three positive voxel counts", lambda shape: _are_positive(shape, settings.is_whole)
        ),
    )
    patches_per_case: int = attrs.field(default=64, validator=settings.whole(1))
    foreground_fraction: float = attrs.field(default=0.75, validator=settings.fraction("a share"))
    normalization: str = attrs.field(default="none", validator=settings.one_of("none", "breast"))
    target: str = attrs.field(default="labels", validator=settings.one_of("labels", "heat_map"))
    label_classes: tuple[tuple[str, str], ...] | None = attrs.field(
        default=None,
        validator=settings.Requirement(
            _LABEL_CLASSES,
            lambda pairs: pairs is None or 0 < len(pairs) == len({label for label, _ in pairs}),
        ),
    )

    def __attrs_post_init__(self) -> None:
        limits = np.iinfo(self.image_dtype)
        if not limits.min <= self.outside_value <= limits.max:
            expected = f"a whole number that {self.image_dtype} can hold"
            raise SettingsError("outside_value", expected, self.outside_value)
        if self.normalization == "breast" and self.image_dtype != "uint16":
            expected = "uint16, which normalised intensities have"
            raise SettingsError("image_dtype", expected, self.image_dtype)
        ends = self.intensity_window
        if self.normalization == "breast" and not (limits.min <= ends[0] and ends[1] <= limits.max):
            expected = f"numbers from {limits.min} to {limits.max} where intensities are normalised"
            raise SettingsError("intensity_window", expected, ends)
        if self.resampling != "keep" and self.spacing_mm is None:
            raise SettingsError("spacing_mm", _POSITIVE_MM, "none")
        if self.target == "heat_map" and len(self.class_names) != 2:
            expected = "two, background and lesion, where the target is a heat map"
            raise SettingsError("class_names", expected, self.class_names)
        classes = [name for _, name in self.label_classes or ()]
        if classes and (classes[0] != self.class_names[0] or set(classes) - set(self.class_names)):
            raise SettingsError("label_classes", _LABEL_CLASSES, self.label_classes)

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

    def to_dict(self) -> dict[str, Any]:
        """Returns the task as plain JSON types."""
        return settings.to_dict(self)


_CT_LIVER = Task(
    name="ct_liver",
    class_names=("background", "liver", "tumour"),
    intensity_window=(-200.0, 250.0),
)
_DBT_LESION = Task(
    name="dbt_lesion",
    class_names=("background", "lesion"),
    # Steps fine enough that rounding to them does not matter.
    intensity_window=(0.0, 16383.0),
    image_dtype="uint16",
    outside_value=0,
    normalization="breast",
    patch_shape_zyx=(32, 256, 256),
    target="heat_map",
)
# Coarse in the plane, for training in minutes on a laptop.
_CT_LIVER_SMALL = attrs.evolve(
    _CT_LIVER,
    name="ct_liver_small",
    resampling="full",
    spacing_mm=(2.5, 2.5, 5.0),
    patch_shape_zyx=(16, 128, 128),
    patches_per_case=8,
)
# A lesion of 8 mm is still ten pixels wide. A narrow arc smears it over twenty slices and more: a patch holds
# them, for 51 mm of the plane.
_DBT_LESION_SMALL = attrs.evolve(
    _DBT_LESION,
    name="dbt_lesion_small",
    resampling="in_plane",
    spacing_mm=(0.8, 0.8, 1.0),
    patch_shape_zyx=(32, 64, 64),
    patches_per_case=8,
    # Half of the patches anywhere: air and all normal tissue are to be rejected.
    foreground_fraction=0.5,
)
PRESETS = {task.name: task for task in (_CT_LIVER, _CT_LIVER_SMALL, _DBT_LESION, _DBT_LESION_SMALL)}


def load_task(name_or_path: Task | str) -> Task:
    """Returns a preset by name, or a user's task from a JSON file; a task is returned as it is.

    A file holds the attributes of `Task`; `"base": "ct_liver"` takes the rest from a preset. Raises
    SettingsError if it is neither a preset nor a readable file, or for a setting that doesn't fit.
    """
    if isinstance(name_or_path, Task):
        return name_or_path
    if name_or_path in PRESETS:
        return PRESETS[name_or_path]
    if not Path(name_or_path).is_file():
        expected = f"a preset ({', '.join(PRESETS)}) or a JSON file"
        remedy = settings.did_you_mean(name_or_path, PRESETS)
        raise SettingsError("task", expected, repr(name_or_path), remedy)
    return task_from_dict(settings.read_object(name_or_path), where=name_or_path)


def records_task(folder: str | Path) -> Task:
    """Returns the task of a folder of records; raises InputError without one, else as `load_task`."""
    path = Path(folder) / "task.json"
    if not path.is_file():
        found = "no such file" if Path(folder).is_dir() else "no such folder"
        remedy = "Write records with python -m preprocessing.convert, or give --task."
        raise InputError(folder, "a folder of records with task.json", found, remedy)
    return load_task(str(path))


def task_from_dict(content: dict[str, Any], where: object = "task") -> Task:
    """Returns a task from plain JSON types; raises as `load_task`."""
    if not isinstance(content, dict) or content.get("base") is None:
        return settings.from_dict(Task, content, where)
    base = content["base"]
    if base not in list(PRESETS):
        raise SettingsError(where, f"base among {', '.join(PRESETS)}", repr(base))
    content = PRESETS[base].to_dict() | {"name": f"{base}_own"} | content
    del content["base"]
    return settings.from_dict(Task, content, where)
