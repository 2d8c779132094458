"""Every setting of a two-stage training: presets, a JSON file, single settings, in that order.

TensorFlow is not imported here, so that settings are checked in a moment.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ahnet_tf.config import ModelConfig, TrainingConfig, from_dict, to_dict
from preprocessing.errors import SettingsError
from preprocessing.tasks import Task

STAGES = ("2d", "3d")
SECTIONS = {"model": ModelConfig, "training": TrainingConfig}


@dataclass(frozen=True)
class StageConfig:
    """One network and its recipe."""

    model: ModelConfig
    training: TrainingConfig


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run.

    Attributes:
      preset: the preset that was begun with.
      stages: by stage, "2d" (MC-GCN) and "3d" (AH-Net); both are kept even if one is trained.
    """

    preset: str
    stages: dict[str, StageConfig]

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain JSON types, as `run_config` takes them back."""
        return {"preset": self.preset} | {
            stage: {section: to_dict(getattr(config, section)) for section in SECTIONS}
            for stage, config in self.stages.items()
        }


# The published recipe (arXiv 1711.08580, section 3): Adam, 5e-4 for the 2D network, 1e-3 for the 3D
# one after the transfer, focal loss with gamma 2 and class weights for liver and tumour.
_CT_LIVER = {
    "2d": {
        "architecture": "mcgcn",
        "learning_rate": 5e-4,
        "class_weights": [0.2, 1.0, 3.0],
        "steps": 40000,
        "warmup_steps": 500,
    },
    "3d": {
        "architecture": "ahnet",
        "learning_rate": 1e-3,
        "class_weights": [0.2, 1.0, 3.0],
        "steps": 40000,
        "warmup_steps": 500,
    },
}

# A quarter of the width and one bottleneck a stage: minutes on two cores, for patches of
# 16 x 128 x 128 at 2.5 x 2.5 x 5 mm (task ct_liver_small). A patch holds the whole plane, so that
# left and right tell organs apart: no mirroring. Half the weight on the background made livers too
# wide, the full weight too narrow.
_SMALL = {
    "width": 0.25,
    "blocks": [1, 1, 1, 1],
    "growth": 8,
    "batch_size": 2,
    "class_weights": [0.75, 1.0, 4.0],
    "flip_probability": 0.0,
    "warp_probability": 0.0,
    "intensity_gamma": 0.0,
    "padding_probability": 0.15,
    "warmup_steps": 10,
    "log_every": 5,
    "checkpoint_every": 100,
}
_CT_LIVER_SMALL = {
    "2d": _SMALL
    | {"architecture": "mcgcn", "learning_rate": 2e-3, "steps": 150, "evaluate_every": 150},
    "3d": _SMALL
    | {"architecture": "ahnet", "learning_rate": 4e-3, "steps": 900, "evaluate_every": 450},
}

# As published for lesions in breast tomosynthesis: sigmoid focal loss on the heat map, gamma 2. Lesions
# are so few voxels that without a weight the empty heat map is long the best one; whatever the weight,
# the loss is least where the answer is the heat map. Voxels of a tenth of a millimetre: the elastic warp
# has their scale.
_DBT = {
    "activation": "sigmoid",
    "loss": "focal",
    "class_weights": [1.0, 5.0],
    "elastic_mm": 0.5,
    "elastic_grid_mm": 6.0,
}
_DBT_LESION = {stage: _CT_LIVER[stage] | _DBT for stage in STAGES}

# Minutes on two cores, for patches of 16 x 96 x 96 at 0.8 x 0.8 x 1 mm (task dbt_lesion_small).
_DBT_SMALL = {name: value for name, value in _SMALL.items() if name != "flip_probability"} | _DBT
_DBT_LESION_SMALL = {
    "2d": _DBT_SMALL
    | {"architecture": "mcgcn", "learning_rate": 2e-3, "steps": 150, "evaluate_every": 150},
    "3d": _DBT_SMALL
    | {"architecture": "ahnet", "learning_rate": 4e-3, "steps": 800, "evaluate_every": 400},
}

PRESETS = {
    "ct_liver": _CT_LIVER,
    "ct_liver_small": _CT_LIVER_SMALL,
    "dbt_lesion": _DBT_LESION,
    "dbt_lesion_small": _DBT_LESION_SMALL,
}


def preset_for(task: Task) -> str:
    """Returns the preset that a task is trained with unless another is asked for."""
    if task.name in PRESETS:
        return task.name
    return "dbt_lesion" if task.target == "heat_map" else "ct_liver"


def run_config(
    task: Task,
    *,
    preset: str | None = None,
    config_file: str | Path | None = None,
    settings: Sequence[str] = (),
) -> RunConfig:
    """Returns the settings of a run; later sources win over earlier ones.

    Args:
      task: decides the number of classes and the intensity window.
      preset: name of a preset; by default the file's, else the task's own.
      config_file: JSON as `RunConfig.to_dict` gives it, or any part of it.
      settings: "NAME=VALUE" for both stages, or "2d.NAME=VALUE", "3d.NAME=VALUE".

    Raises:
      SettingsError: an unknown name (the nearest is suggested), an unreadable file, or a value
        that is not possible.
    """
    content = {} if config_file is None else _read(Path(config_file))
    preset = preset or content.get("preset") or preset_for(task)
    if preset not in PRESETS:
        raise SettingsError(
            "preset", f"one of {', '.join(PRESETS)}", repr(preset), near(preset, PRESETS)
        )
    of_task = {"classes": len(task.class_names), "intensity_window": list(task.intensity_window)}
    stages = {}
    for stage in STAGES:
        flat = of_task | PRESETS[preset][stage]
        for section, names in _sections(content.get(stage, {}), f"{config_file}: {stage}").items():
            flat |= _checked(names, f"{config_file}: {stage}.{section}", section)
        for item in settings:
            flat |= _assignment(item, stage)
        stages[stage] = _stage(flat, f"settings of stage {stage}")
        check_settings(stages[stage].model, stages[stage].training, task)
    return RunConfig(preset, stages)


def check_settings(model_config: ModelConfig, config: TrainingConfig, task: Task) -> None:
    """Checks that a network and its recipe fit the task.

    Raises:
      SettingsError: another number of classes or intensity window, or a softmax for a heat map or its
        loss.
    """
    count = len(task.class_names)
    classes = f"{count} ({', '.join(task.class_names)})"
    if model_config.classes != count:
        raise SettingsError("classes", classes, model_config.classes)
    if config.class_weights is not None and len(config.class_weights) != count:
        raise SettingsError("class_weights", f"one for each of {classes}", config.class_weights)
    if task.target == "heat_map" and model_config.activation != "sigmoid":
        expected = f"sigmoid, for task {task.name} has a heat map as its target"
        raise SettingsError("activation", expected, model_config.activation)
    if config.loss == "heat_map_l2" and model_config.activation != "sigmoid":
        expected = "focal, cross_entropy or dice_focal with a softmax (activation)"
        raise SettingsError("loss", expected, config.loss)
    if tuple(model_config.intensity_window) != tuple(task.intensity_window):
        raise SettingsError(
            "intensity_window",
            f"the task's {task.intensity_window}",
            model_config.intensity_window,
        )


def near(name: str, names: Any) -> str:
    """Returns "Did you mean ...?" for a misspelt name, or nothing."""
    found = difflib.get_close_matches(str(name), list(names), n=1)
    return f"Did you mean {found[0]!r}?" if found else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(path, "a JSON object of settings", error) from None
    if not isinstance(content, dict):
        raise SettingsError(path, "a JSON object of settings", type(content).__name__)
    for name in content:
        if name not in ("preset", *STAGES):
            names = ("preset", *STAGES)
            raise SettingsError(
                path, f"entries among {', '.join(names)}", repr(name), near(name, names)
            )
    return content


def _sections(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise SettingsError(where, "a JSON object with model and training", type(content).__name__)
    for name in content:
        if name not in SECTIONS:
            raise SettingsError(where, "entries model, training", repr(name), near(name, SECTIONS))
    return content


def _checked(settings: Any, where: str, section: str) -> dict[str, Any]:
    if not isinstance(settings, dict):
        raise SettingsError(where, "a JSON object of settings", type(settings).__name__)
    for name in settings:
        _known(name, _names(section), where)
    return settings


def _assignment(item: str, stage: str) -> dict[str, Any]:
    name, equals, text = item.partition("=")
    prefix, dot, rest = name.rpartition(".")
    if not equals or (dot and prefix not in STAGES):
        expected = "NAME=VALUE, 2d.NAME=VALUE or 3d.NAME=VALUE"
        raise SettingsError("--set", expected, repr(item))
    _known(rest, [name for section in SECTIONS for name in _names(section)], "--set")
    if dot and prefix != stage:
        return {}
    try:
        return {rest: json.loads(text)}
    except json.JSONDecodeError:
        return {rest: text}


def _stage(flat: dict[str, Any], where: str) -> StageConfig:
    try:
        parts = {
            section: from_dict(kind, {k: v for k, v in flat.items() if k in _names(section)}, where)
            for section, kind in SECTIONS.items()
        }
    except TypeError as error:
        raise SettingsError(where, "values of the right kind", error) from None
    return StageConfig(**parts)


def _names(section: str) -> list[str]:
    return [field.name for field in dataclasses.fields(SECTIONS[section])]


def _known(name: str, names: Sequence[str], where: str) -> None:
    if name not in names:
        raise SettingsError(
            where, f"settings among {', '.join(names)}", repr(name), near(name, names)
        )
