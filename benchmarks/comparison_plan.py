"""The plan of the paper's comparison: tasks, phantoms, networks, their steps and recipes, runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import attrs

from ahnet_tf.config import ModelConfig, TrainingConfig
from preprocessing.phantom.ct import PhantomSettings
from preprocessing.phantom.dbt import DBTSettings
from preprocessing.settings import from_dict, read_object, to_dict
from preprocessing.tasks import Task

# Slices of the 3D networks' patches and of the 2D networks' slabs; both hold the whole plane.
SLICES_3D, SLICES_2D = 16, 8

# Most tumours extend over five slices or more, flat lookalikes over no more than three. The 2D networks
# see three slices: in the middle of either they see the same.
CT_PHANTOM = PhantomSettings(
    shape_xyz=(96, 96, 32),
    spacing_mm=(1.6, 1.6, 3.0),
    fewest_tumours=2,
    most_tumours=4,
    tumour_radius_mm=(9.0, 16.0),
    noise_hu=12.0,
    blur_mm=1.0,
    flat_lookalikes=3,
    flat_slices=3,
)
# Coarse breasts with masses that few volumes suffice to learn; a patch holds almost the whole depth, over
# which a mass is smeared.
DBT_PHANTOM = DBTSettings(
    shape_xyz=(64, 96, 16),
    spacing_mm=(1.0, 1.0, 1.5),
    fewest_masses=1,
    most_masses=2,
    mass_diameter_mm=(8.0, 16.0),
    mass_contrast=(1.05, 1.2),
    lookalikes=6,
)
PHANTOMS: dict[str, PhantomSettings | DBTSettings] = {"ct": CT_PHANTOM, "dbt": DBT_PHANTOM}

TASKS = {
    "ct": Task(
        name="phantom_ct",
        class_names=("background", "liver", "tumour"),
        intensity_window=(-120.0, 200.0),
        patch_shape_zyx=(SLICES_3D, 96, 96),
    ),
    "dbt": Task(
        name="phantom_dbt",
        class_names=("background", "lesion"),
        intensity_window=(0.0, 16383.0),
        image_dtype="uint16",
        normalization="breast",
        outside_value=0,
        patch_shape_zyx=(SLICES_3D, 96, 64),
        target="heat_map",
    ),
}


# The norm of all networks for a task. A step of the 3D networks is one patch, whose statistics batch norm
# takes for those of all; patches of a breast differ. In CT group norm gained nothing (`comparison_page.CHOICE`).
NORMS = {"ct": "batch", "dbt": "group"}


@dataclass(frozen=True)
class Variant:
    """One row of the comparison.

    Attributes:
      title: for people.
      network: settings of `ModelConfig` other than those of the task.
      learning_rate: Adam's.
      steps: optimizer steps by task, so many that the curve of its scores flattens; a row of these
        tasks only.
      loss: one of `TrainingConfig.loss`.
      flat: learns from slabs, slice by slice; else from patches of volumes.
      transferred: starts from the encoder of the 2D network `SOURCE` of the same task and seed.
    """

    title: str
    network: dict[str, Any]
    learning_rate: float
    steps: dict[str, int]
    loss: str = "focal"
    flat: bool = False
    transferred: bool = False


_UNET2D = {"architecture": "unet2d", "width": 0.125}
_UNET3D = {"architecture": "unet3d", "width": 0.125}
_MCGCN = {"architecture": "mcgcn", "width": 0.25, "blocks": (1, 1, 1, 1)}
_AHNET = {"architecture": "ahnet", "width": 0.25, "blocks": (1, 1, 1, 1)}
_AHNET |= {"dense_layers": 1, "growth": 16}
_NO_PVP = _AHNET | {"pvp_levels": 0}
REFERENCE, SOURCE = "ahnet_transferred", "mcgcn"
_AHNET_STEPS = {"ct": 800, "dbt": 600}
VARIANTS = {
    "unet2d": Variant("2D U-Net", _UNET2D, 2e-3, {"ct": 800, "dbt": 800}, flat=True),
    "unet3d": Variant("3D U-Net", _UNET3D, 2e-3, {"ct": 300, "dbt": 300}),
    SOURCE: Variant("MC-GCN", _MCGCN, 4e-3, {"ct": 1000, "dbt": 1000}, flat=True),
    "ahnet_scratch": Variant("AH-Net (scratch)", _AHNET, 4e-3, _AHNET_STEPS),
    REFERENCE: Variant("AH-Net (transferred)", _AHNET, 4e-3, _AHNET_STEPS, transferred=True),
    "ahnet_transferred_no_pvp": Variant(
        "AH-Net (transferred, no PVP)", _NO_PVP, 4e-3, _AHNET_STEPS, transferred=True
    ),
    "ahnet_transferred_cross_entropy": Variant(
        "AH-Net (transferred, cross-entropy)",
        _AHNET,
        4e-3,
        _AHNET_STEPS,
        loss="cross_entropy",
        transferred=True,
    ),
    "ahnet_transferred_l2": Variant(
        "AH-Net (transferred, L2)",
        _AHNET,
        4e-3,
        {"dbt": _AHNET_STEPS["dbt"]},
        loss="heat_map_l2",
        transferred=True,
    ),
}
# What the transferred AH-Net should be better than.
GOAL = ("ahnet_scratch", SOURCE, "unet3d", "unet2d")
# Evaluations along each training.
EVALUATIONS = 8


@dataclass(frozen=True)
class Plan:
    """The size of the comparison.

    Attributes:
      tasks: of `TASKS`.
      variants: of `VARIANTS`.
      seeds: of start weights, order of patches and augmentation; the cases are the same for all.
      volumes: training cases that are annotated as a whole.
      further: training cases of which only slabs are annotated.
      validation: cases that the curves are measured on.
      unseen: cases that all networks are scored on.
      volume_patches: training patches drawn from each volume.
      slabs: training slabs drawn from each volume and each further case.
      batch_3d: patches per step; slabs per step are twice as many.
      most_steps: no network is trained for more steps than this; 0 for no such limit.
    """

    tasks: tuple[str, ...] = ("ct", "dbt")
    variants: tuple[str, ...] = tuple(VARIANTS)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    volumes: int = 12
    further: int = 48
    validation: int = 4
    unseen: int = 20
    volume_patches: int = 24
    slabs: int = 6
    batch_3d: int = 1
    most_steps: int = 0


QUICK = Plan(seeds=(0,), volumes=2, further=8, validation=2, unseen=2, most_steps=32)


class Run(NamedTuple):
    """One training: a variant's for a task with a seed."""

    task: str
    variant: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the run's files."""
        return f"{self.task}-{self.variant}-seed{self.seed}"


def rows(plan: Plan, task_name: str) -> list[str]:
    """Returns the variants of a plan that are trained for a task."""
    return [name for name in plan.variants if task_name in VARIANTS[name].steps]


def runs_of(plan: Plan) -> list[Run]:
    """Returns all runs in the order in which they start if none waits for another."""
    return [
        Run(task, name, seed)
        for seed in plan.seeds
        for task in plan.tasks
        for name in rows(plan, task)
    ]


def source_of(run: Run) -> Run | None:
    """Returns the run whose encoder a transferred network starts from; None for fresh weights."""
    return run._replace(variant=SOURCE) if VARIANTS[run.variant].transferred else None


def steps_of(name: str, task_name: str, plan: Plan) -> int:
    """Returns the optimizer steps of a variant for a task."""
    steps = VARIANTS[name].steps[task_name]
    return min(steps, plan.most_steps) if plan.most_steps else steps


def voxels_a_step(task_name: str, plan: Plan) -> int:
    """Returns the voxels of a batch, the same for all networks."""
    return plan.batch_3d * math.prod(TASKS[task_name].patch_shape_zyx)


def records_task(task_name: str, plan: Plan, flat: bool) -> Task:
    """Returns the task with the patches of the 3D networks, or with the slabs of the 2D ones."""
    return attrs.evolve(
        TASKS[task_name],
        patches_per_case=plan.slabs if flat else plan.volume_patches,
        patch_shape_zyx=(
            SLICES_2D if flat else SLICES_3D,
            *TASKS[task_name].patch_shape_zyx[1:],
        ),
    )


def model_config(name: str, task_name: str) -> ModelConfig:
    """Returns the network of a variant for a task."""
    task = TASKS[task_name]
    return ModelConfig(
        classes=len(task.class_names),
        intensity_window=task.intensity_window,
        activation="sigmoid" if task.target == "heat_map" else "softmax",
        norm=NORMS[task_name],
        **VARIANTS[name].network,
    )


def training_config(name: str, task_name: str, plan: Plan, seed: int) -> TrainingConfig:
    """Returns the recipe of a variant; recipes differ in steps, learning rate, batch and loss only."""
    variant, steps = VARIANTS[name], steps_of(name, task_name, plan)
    heat_map = TASKS[task_name].target == "heat_map"
    return TrainingConfig(
        steps=steps,
        batch_size=plan.batch_3d * (SLICES_3D // SLICES_2D if variant.flat else 1),
        learning_rate=variant.learning_rate,
        warmup_steps=min(20, steps // 4),
        loss=variant.loss,
        class_weights=(1.0, 5.0) if heat_map else (0.75, 1.0, 10.0),
        # Mirroring would confuse liver and spleen; breasts have no such asymmetry.
        flip_probability=0.5 if heat_map else 0.0,
        # Single steps differ much where a batch is one patch.
        ema_momentum=0.98,
        seed=seed,
        # For the curves; the network of the last step is scored, not the best one.
        evaluate_every=max(1, steps // EVALUATIONS),
        checkpoint_every=steps,
        log_every=max(1, steps // 20),
    )


def everything(plan: Plan) -> dict[str, Any]:
    """Returns everything except the code that decides the results, as plain JSON types."""
    return {
        "plan": to_dict(plan),
        "phantoms": {task: to_dict(PHANTOMS[task]) for task in plan.tasks},
        "definitions": {task: TASKS[task].to_dict() for task in plan.tasks},
        "norms": {task: NORMS[task] for task in plan.tasks},
        "networks": {name: _recipe(VARIANTS[name]) for name in plan.variants},
    }


def read_plan(path: Path) -> Plan:
    """Returns the plan of a file that holds `everything`."""
    return from_dict(Plan, read_object(path)["plan"], path)


def _recipe(variant: Variant) -> dict[str, Any]:
    return {name: value for name, value in to_dict(variant).items() if name != "title"}
