"""The plan of the paper's comparison: tasks, phantoms, networks, recipes and the budget of voxels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ahnet_tf.config import ModelConfig, TrainingConfig
from preprocessing.phantom.ct import PhantomSettings
from preprocessing.phantom.dbt import DBTSettings
from preprocessing.settings import to_dict
from preprocessing.tasks import Task

# All patches have the same size in the plane; where they have fewer slices, batches are larger.
PATCH_YX = (64, 64)
SLICES_3D, SLICES_2D = 12, 6

# Tumours are textured and extend over several slices; cysts extend over several slices without texture;
# flat lookalikes have the texture in one slice only.
CT_PHANTOM = PhantomSettings(
    shape_xyz=(64, 64, 20),
    spacing_mm=(2.5, 2.5, 5.0),
    fewest_tumours=2,
    most_tumours=4,
    tumour_radius_mm=(9.0, 16.0),
    noise_hu=12.0,
    blur_mm=1.0,
    texture_hu=30.0,
    cysts=1,
    flat_lookalikes=3,
)
# A flat mass is a single slice of a mass.
DBT_PHANTOM = DBTSettings(
    shape_xyz=(64, 96, 20),
    spacing_mm=(1.0, 1.0, 1.0),
    fewest_masses=1,
    most_masses=2,
    clutter=2,
    flat_masses=8,
)
# Pixel size of BCS-DBT, whose scorer measures distances in pixels: boxes are scaled to it before matching.
DBT_PIXEL_MM = 0.085
PHANTOMS = {"ct": CT_PHANTOM, "dbt": DBT_PHANTOM}

TASKS = {
    "ct": Task(
        name="phantom_ct",
        class_names=("background", "liver", "tumour"),
        intensity_window=(-120.0, 200.0),
        patch_shape_zyx=(SLICES_3D, *PATCH_YX),
    ),
    "dbt": Task(
        name="phantom_dbt",
        class_names=("background", "lesion"),
        intensity_window=(0.0, 1023.0),
        image_dtype="uint16",
        outside_value=0,
        patch_shape_zyx=(SLICES_3D, *PATCH_YX),
        target="heat_map",
    ),
}


@dataclass(frozen=True)
class Variant:
    """One row of the comparison.

    Attributes:
      title: for people.
      network: settings of `ModelConfig` other than those of the task.
      learning_rate: Adam's.
      flat: learns from slabs, slice by slice; else from patches of volumes.
      transferred: starts from the encoder of the seed's 2D network and spends the rest of the budget.
      reduced: spends only the voxels that a transferred network spends in 3D.
      cross_entropy: is trained with gamma 0 instead of the focal loss.
    """

    title: str
    network: dict[str, Any]
    learning_rate: float
    flat: bool = False
    transferred: bool = False
    reduced: bool = False
    cross_entropy: bool = False


_MCGCN = {"architecture": "mcgcn", "width": 0.25, "blocks": (1, 1, 1, 1)}
_AHNET = {"architecture": "ahnet", "width": 0.25, "blocks": (1, 1, 1, 1), "growth": 8}
REFERENCE = "ahnet_transferred"
VARIANTS = {
    "unet2d": Variant("2D U-Net", {"architecture": "unet2d", "width": 0.125}, 2e-3, flat=True),
    "unet3d": Variant("3D U-Net", {"architecture": "unet3d", "width": 0.125}, 2e-3),
    "mcgcn": Variant("MC-GCN", _MCGCN, 2e-3, flat=True),
    "ahnet_scratch": Variant("AH-Net (scratch)", _AHNET, 4e-3),
    "ahnet_scratch_reduced": Variant("AH-Net (scratch, 3D share only)", _AHNET, 4e-3, reduced=True),
    REFERENCE: Variant("AH-Net (transferred)", _AHNET, 4e-3, transferred=True),
    "ahnet_transferred_no_pvp": Variant(
        "AH-Net (transferred, no PVP)", _AHNET | {"pvp_levels": 0}, 4e-3, transferred=True
    ),
    "ahnet_transferred_cross_entropy": Variant(
        "AH-Net (transferred, cross-entropy)", _AHNET, 4e-3, transferred=True, cross_entropy=True
    ),
}
# The 2D stage of the transferred networks, trained once per seed.
PRETRAINING = "pretraining"


@dataclass(frozen=True)
class Plan:
    """The size of the comparison.

    Attributes:
      tasks: of `TASKS`.
      variants: of `VARIANTS`.
      seeds: of start weights, order of patches and augmentation; the cases are the same for all.
      volumes: cases that are annotated as a whole.
      further: cases of which only slabs are annotated.
      unseen: cases that all networks are scored on.
      volume_patches: training patches drawn from each volume.
      slabs: training slabs drawn from each volume and each further case.
      steps: optimizer steps of the whole budget.
      steps_2d: of these, the steps of the 2D stage before a transfer.
      batch_3d: patches per step; slabs per step are twice as many.
    """

    tasks: tuple[str, ...] = ("ct", "dbt")
    variants: tuple[str, ...] = tuple(VARIANTS)
    seeds: tuple[int, ...] = (0, 1, 2)
    volumes: int = 4
    further: int = 40
    unseen: int = 20
    volume_patches: int = 24
    slabs: int = 6
    steps: int = 400
    steps_2d: int = 150
    batch_3d: int = 2


QUICK = Plan(seeds=(0,), volumes=2, further=8, unseen=2, steps=30, steps_2d=10)


def steps_of(name: str, plan: Plan) -> int:
    """Returns the optimizer steps of a variant, without those of its 2D stage."""
    if name == PRETRAINING:
        return plan.steps_2d
    variant = VARIANTS[name]
    shortened = variant.transferred or variant.reduced
    return plan.steps - plan.steps_2d if shortened else plan.steps


def voxels_a_step(plan: Plan) -> int:
    """Returns the voxels of a batch, the same for all networks."""
    return plan.batch_3d * SLICES_3D * math.prod(PATCH_YX)


def model_config(name: str, task: Task) -> ModelConfig:
    """Returns the network of a variant, or of the 2D stage, for a task."""
    network = _MCGCN if name == PRETRAINING else VARIANTS[name].network
    return ModelConfig(
        classes=len(task.class_names),
        intensity_window=task.intensity_window,
        activation="sigmoid" if task.target == "heat_map" else "softmax",
        **network,
    )


def training_config(name: str, task: Task, plan: Plan, seed: int) -> TrainingConfig:
    """Returns the recipe of a variant; recipes differ in steps, learning rate, batch and loss only."""
    variant = VARIANTS["mcgcn" if name == PRETRAINING else name]
    heat_map = task.target == "heat_map"
    steps = steps_of(name, plan)
    return TrainingConfig(
        steps=steps,
        batch_size=plan.batch_3d * (SLICES_3D // SLICES_2D if variant.flat else 1),
        learning_rate=variant.learning_rate,
        warmup_steps=min(20, steps // 4),
        loss="cross_entropy" if variant.cross_entropy else "focal",
        class_weights=(1.0, 5.0) if heat_map else (0.75, 1.0, 10.0),
        # Mirroring would confuse liver and spleen; breasts have no such asymmetry.
        flip_probability=0.5 if heat_map else 0.0,
        warp_probability=0.0,
        intensity_gamma=0.0,
        seed=seed,
        # No evaluation during training: the last network is scored, on cases that no training reads.
        evaluate_every=0,
        checkpoint_every=steps,
        log_every=max(1, steps // 20),
    )


def everything(plan: Plan) -> dict[str, Any]:
    """Returns everything except the code that decides the results, as plain JSON types."""
    return to_dict(plan) | {
        "phantoms": {task: to_dict(PHANTOMS[task]) for task in plan.tasks},
        "definitions": {task: TASKS[task].to_dict() for task in plan.tasks},
        "networks": {name: _recipe(VARIANTS[name]) for name in plan.variants},
    }


def _recipe(variant: Variant) -> dict[str, Any]:
    return {name: value for name, value in to_dict(variant).items() if name != "title"}
