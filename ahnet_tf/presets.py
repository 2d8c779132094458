"""Every setting of a two-stage training: presets, a JSON file, single settings, in that order.

TensorFlow is not imported here: settings are checked before it is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from ahnet_tf.config import ModelConfig, TrainingConfig
from preprocessing.errors import SettingsError
from preprocessing.settings import check_names, did_you_mean, from_dict, read_object, to_dict
from preprocessing.tasks import Task

STAGES = ("2d", "3d")
SECTIONS: dict[str, type] = {"model": ModelConfig, "training": TrainingConfig}
NAMES = {section: list(attrs.fields_dict(kind)) for section, kind in SECTIONS.items()}


@attrs.frozen
class StageConfig:
    """One network and how it is trained."""

    model: ModelConfig
    training: TrainingConfig


@attrs.frozen
class RunConfig:
    """All settings of a run."""

    preset: str  # name of the preset that the other settings change
    # By stage, "2d" (MC-GCN) and "3d" (AH-Net), even if only one of them is trained.
    stages: dict[str, StageConfig]

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain JSON types, as `run_config` takes them back."""
        stages = {stage: to_dict(config) for stage, config in self.stages.items()}
        return {"preset": self.preset} | stages


# From the paper (arXiv 1711.08580, section 3): Adam, learning rates of 5e-4 for the 2D network and
# 1e-3 for the 3D one after the transfer, focal loss with gamma 2. Ours: class weights, number of
# steps, warm-up and decay of the learning rate, augmentation.
_FULL = {"class_weights": [0.2, 1.0, 3.0], "steps": 40000, "warmup_steps": 500}
_CT_LIVER = {
    "2d": _FULL | {"architecture": "mcgcn", "learning_rate": 5e-4},
    "3d": _FULL | {"architecture": "ahnet", "learning_rate": 1e-3},
}

# A quarter of the width and one bottleneck in each stage, for minutes of training on two cores. On CPUs a
# dense layer costs its passes over the map, whatever its channels up to 16: a step with one layer of 16
# takes three quarters of the time of one with three of 8.
_SMALL = {
    "width": 0.25,
    "blocks": [1, 1, 1, 1],
    "dense_layers": 1,
    "growth": 16,
    "batch_size": 2,
    "learning_rate": 4e-3,
    "warp_probability": 0.0,
    "intensity_gamma": 0.0,
    "padding_probability": 0.15,
    "warmup_steps": 10,
    "log_every": 5,
    "checkpoint_every": 100,
}
_SMALL_2D = _SMALL | {"architecture": "mcgcn"}
_SMALL_3D = _SMALL | {"architecture": "ahnet", "ema_momentum": 0.98}
# For patches of 16 x 128 x 128 at 2.5 x 2.5 x 5 mm (task ct_liver_small). Soft Dice beside the focal loss
# and a large weight find tumours in fewer steps. Half of each patch's slices spare the 2D network half of
# its time. A patch holds the whole plane, where left and right distinguish organs, so there is no mirroring.
_CT_LIVER_SMALL_OWN = {
    "class_weights": [0.75, 1.0, 10.0],
    "loss": "dice_focal",
    "flip_probability": 0.0,
}
_CT_LIVER_SMALL = {
    "2d": _SMALL_2D | _CT_LIVER_SMALL_OWN | {"slab_slices": 8, "steps": 100, "evaluate_every": 100},
    "3d": _SMALL_3D
    | _CT_LIVER_SMALL_OWN
    | {"learning_rate": 6e-3, "steps": 870, "evaluate_every": 870},
}

# From the paper, for lesions in breast tomosynthesis: focal loss on the heat map, gamma 2. Ours: the
# class weights, since lesions have so few voxels that an unweighted loss favours an empty heat map for
# many steps (with any weights the loss is least where the prediction equals the heat map), and the
# scale of the elastic warp, which suits voxels of a tenth of a millimetre.
_DBT = {
    "activation": "sigmoid",
    "loss": "focal",
    "class_weights": [1.0, 5.0],
    "elastic_mm": 0.5,
    "elastic_grid_mm": 6.0,
}
_DBT_LESION = {stage: own | _DBT for stage, own in _CT_LIVER.items()}

# A quarter of an hour on two cores, for patches of 32 x 64 x 64 at 0.8 x 0.8 x 1 mm (task dbt_lesion_small).
# Two such patches are too few for the statistics of AH-Net's batch norm. It is evaluated at the end only:
# by the FROC of a few breasts, a network of the middle, with a larger learning rate, is chosen by chance.
_DBT_LESION_SMALL = {
    "2d": _SMALL_2D | _DBT | {"steps": 600, "evaluate_every": 600},
    "3d": _SMALL_3D | _DBT | {"batch_size": 4, "steps": 3000, "evaluate_every": 3000},
}

PRESETS = {
    "ct_liver": _CT_LIVER,
    "ct_liver_small": _CT_LIVER_SMALL,
    "dbt_lesion": _DBT_LESION,
    "dbt_lesion_small": _DBT_LESION_SMALL,
}


def preset_for(task: Task) -> str:
    """Returns the name of the preset that a task is trained with by default."""
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

    Raises SettingsError for an unknown name (the nearest is suggested), an unreadable file, or a
    value that is not possible.
    """
    content = {}
    if config_file is not None:
        content = check_names(read_object(config_file), ("preset", *STAGES), config_file)
    preset = preset or content.get("preset") or preset_for(task)
    if preset not in list(PRESETS):
        expected = f"one of {', '.join(PRESETS)}"
        raise SettingsError("preset", expected, repr(preset), did_you_mean(preset, PRESETS))
    of_task = {"classes": len(task.class_names), "intensity_window": list(task.intensity_window)}
    stages = {}
    for stage in STAGES:
        where = f"{config_file}: {stage}"
        flat = of_task | PRESETS[preset][stage]
        for section, values in check_names(content.get(stage, {}), SECTIONS, where).items():
            flat |= check_names(values, NAMES[section], f"{where}.{section}")
        for item in settings:
            flat |= _assignment(item, stage)
        nested = {
            section: {name: flat[name] for name in names if name in flat}
            for section, names in NAMES.items()
        }
        stages[stage] = from_dict(StageConfig, nested, f"settings of stage {stage}")
        check_settings(stages[stage].model, stages[stage].training, task)
    return RunConfig(preset, stages)


def model_settings(task: Task) -> dict[str, Any]:
    """Returns the settings of a network that follow from its task."""
    return {
        "classes": len(task.class_names),
        "intensity_window": task.intensity_window,
        "activation": "sigmoid" if task.target == "heat_map" else "softmax",
    }


def check_settings(model_config: ModelConfig, config: TrainingConfig, task: Task) -> None:
    """Raises SettingsError unless the settings of a network and of its training fit the task.

    Classes and intensity window are the task's; a heat map or its loss takes no softmax. Two classes
    may share one output of a sigmoid.
    """
    count = len(task.class_names)
    classes = f"{count} ({', '.join(task.class_names)})"
    if model_config.class_count != count:
        raise SettingsError("classes", classes, model_config.classes)
    if config.class_weights is not None and len(config.class_weights) != count:
        remedy = "Give --set class_weights=null for none, or a list of one weight for each class."
        expected = f"one for each of {classes}"
        raise SettingsError("class_weights", expected, config.class_weights, remedy)
    if task.target == "heat_map" and model_config.activation != "sigmoid":
        expected = f"sigmoid, because task {task.name} has a heat map as its target"
        raise SettingsError("activation", expected, model_config.activation)
    if config.loss == "heat_map_l2" and model_config.activation != "sigmoid":
        expected = "focal, cross_entropy or dice_focal with a softmax (activation)"
        raise SettingsError("loss", expected, config.loss)
    if tuple(model_config.intensity_window) != tuple(task.intensity_window):
        raise SettingsError(
            "intensity_window", f"the task's {task.intensity_window}", model_config.intensity_window
        )


def _assignment(item: str, stage: str) -> dict[str, Any]:
    name, equals, text = item.partition("=")
    prefix, dot, rest = name.rpartition(".")
    if not equals or (dot and prefix not in STAGES):
        expected = "NAME=VALUE, 2d.NAME=VALUE or 3d.NAME=VALUE"
        raise SettingsError("--set", expected, repr(item))
    check_names({rest: text}, [*NAMES["model"], *NAMES["training"]], "--set")
    if dot and prefix != stage:
        return {}
    try:
        return {rest: json.loads(text)}
    except json.JSONDecodeError:
        return {rest: text}
