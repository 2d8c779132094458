"""The runs of the paper's comparison: records of phantoms, trainings, scores."""

from __future__ import annotations

import dataclasses
import gc
import shutil
import time
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from ahnet_tf.data.records import find_records
from ahnet_tf.evaluation.froc import count, curve, froc_scores, match_volume, score_names
from ahnet_tf.evaluation.lits import LIVER, TUMOUR, dice
from benchmarks.comparison_plan import (
    DBT_PIXEL_MM,
    PHANTOMS,
    PRETRAINING,
    SLICES_2D,
    SLICES_3D,
    TASKS,
    VARIANTS,
    Plan,
    model_config,
    steps_of,
    training_config,
    voxels_a_step,
)
from preprocessing.convert import convert
from preprocessing.files import write_json
from preprocessing.phantom import ct as phantom_ct
from preprocessing.phantom import dbt as phantom_dbt
from preprocessing.phantom.dataset import write_cases
from preprocessing.volumes.geometry import spacing_mm

DATA_SEED = 11
# First case number of each group; the groups are disjoint.
FIRST = {"volumes": 0, "further": 1000, "unseen": 5000}
LOW_RATES = (0.25, 0.5, 1.0, 2.0)


def run_names(plan: Plan) -> list[tuple[str, str, int]]:
    """Returns all runs (task, variant or pretraining, seed) in their order of execution."""
    transferred = any(VARIANTS[name].transferred for name in plan.variants)
    names = ([PRETRAINING] if transferred else []) + list(plan.variants)
    return [(task, name, seed) for seed in plan.seeds for task in plan.tasks for name in names]


def result_path(output: Path, task: str, name: str, seed: int) -> Path:
    """Returns the result file of a run."""
    return output / "results" / f"{task}-{name}-seed{seed}.json"


def make_records(plan: Plan, task_name: str, folder: Path) -> None:
    """Makes a task's cases and converts them into `folder/3d` and `folder/2d`, unless they exist."""
    if (folder / "2d" / "task.json").is_file():
        return
    shutil.rmtree(folder, ignore_errors=True)
    counts = {"volumes": plan.volumes, "further": plan.further}
    ids = {}
    for group, cases in counts.items():
        path = folder / "cases" / group
        settings = PHANTOMS[task_name]
        entries = write_cases(path, cases, DATA_SEED, first=FIRST[group], settings=settings)
        ids[group] = [entry["case_id"] for entry in entries]
    task = TASKS[task_name]
    slab_shape = (SLICES_2D, *task.patch_shape_zyx[1:])
    tasks = {
        "3d": attrs.evolve(task, patches_per_case=plan.volume_patches),
        "2d": attrs.evolve(task, patches_per_case=plan.slabs, patch_shape_zyx=slab_shape),
    }
    for name, groups in (("3d", ("volumes",)), ("2d", ("volumes", "further"))):
        splits = folder / f"splits_{name}.json"
        train = [case_id for group in groups for case_id in ids[group]]
        write_json(splits, {"train": train, "eval": []})
        convert(
            [str(folder / "cases" / group) for group in groups],
            str(folder / name),
            tasks[name],
            splits_file=str(splits),
            progress=False,
        )


def make_run(output: Path, plan: Plan, task_name: str, name: str, seed: int) -> dict[str, Any]:
    """Trains and scores one network; an interrupted run starts over.

    Returns:
      Its result, which lies at `result_path` from then on.
    """
    import tensorflow as tf

    from ahnet_tf.training.trainer import train_network

    began, cpu_began = time.perf_counter(), time.process_time()
    flat = name == PRETRAINING or VARIANTS[name].flat
    records = output / "records" / task_name / ("2d" if flat else "3d")
    task = attrs.evolve(
        TASKS[task_name],
        patches_per_case=plan.slabs if flat else plan.volume_patches,
        patch_shape_zyx=(SLICES_2D if flat else SLICES_3D, *TASKS[task_name].patch_shape_zyx[1:]),
    )
    folder = output / "runs" / f"{task_name}-{name}-seed{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    initial = None
    if name != PRETRAINING and VARIANTS[name].transferred:
        initial = output / "runs" / f"{task_name}-{PRETRAINING}-seed{seed}" / "last"
    trained = train_network(
        model_config(name, task),
        training_config(name, task, plan, seed),
        task,
        find_records(records / "train"),
        (),
        folder,
        initial=initial,
        progress=False,
    )
    shutil.rmtree(folder / "checkpoints")
    scores = {} if name == PRETRAINING else score_network(folder / "last", plan, task_name)
    result = {
        "task": task_name,
        "variant": name,
        "seed": seed,
        "parameters": trained.parameters,
        "steps": trained.steps,
        "voxels": steps_of(name, plan) * voxels_a_step(plan),
        "loss": trained.loss,
        "scores": scores,
        "wall_seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu_began, 1),
    }
    write_json(result_path(output, task_name, name, seed), result)
    tf.keras.backend.clear_session()
    gc.collect()
    return result


def score_network(folder: Path, plan: Plan, task_name: str) -> dict[str, float]:
    """Returns the mean scores of a network over the unseen cases, predicted as whole volumes."""
    from ahnet_tf.inference.predictor import open_predictor

    predictor = open_predictor(folder)
    # The 2D networks get whole patches too, so that every slice has its neighbours.
    window = TASKS[task_name].patch_shape_zyx
    settings = attrs.evolve(predictor.settings, window_shape_zyx=window)
    predictor = dataclasses.replace(predictor, settings=settings)
    numbers = range(FIRST["unseen"], FIRST["unseen"] + plan.unseen)
    return {"ct": _ct_scores, "dbt": _dbt_scores}[task_name](predictor, numbers)


def _ct_scores(predictor, numbers) -> dict[str, float]:
    from ahnet_tf.inference.segment import segment_volume

    liver, tumour = [], []
    for number in numbers:
        image, label = phantom_ct.make_case(DATA_SEED, number, PHANTOMS["ct"])
        predicted = segment_volume(image, predictor).labels
        liver.append(dice(predicted >= LIVER, label.voxels >= LIVER))
        tumour.append(dice(predicted == TUMOUR, label.voxels == TUMOUR))
    return {"liver_dice": float(np.mean(liver)), "tumour_dice": float(np.mean(tumour))}


def _dbt_scores(predictor, numbers) -> dict[str, float]:
    from ahnet_tf.inference.segment import segment_volume

    volumes = []
    for number in numbers:
        case = phantom_dbt.make_case(DATA_SEED, number, PHANTOMS["dbt"])
        found = segment_volume(case.image, predictor).lesions
        factor = [step / DBT_PIXEL_MM for step in spacing_mm(case.image.affine)[:2]]
        volumes.append(
            match_volume(
                [_scaled(one, factor) for one in found],
                [_scaled(one, factor) for one in case.boxes],
            )
        )
    counts = count(volumes)
    challenge = dict(zip(score_names(), froc_scores(counts)[0].tolist(), strict=True))
    low = np.interp(LOW_RATES, *curve(counts)).tolist()
    return {
        "low_rate_sensitivity": float(np.mean(low)),
        "challenge_sensitivity": challenge["sensitivity_mean_volumes_with_boxes"],
        **{f"sensitivity_at_{rate:g}": value for rate, value in zip(LOW_RATES, low, strict=True)},
    }


def _scaled(box, factor):
    """Returns a box or detection with x and y scaled by a factor."""
    return dataclasses.replace(
        box,
        x=round(box.x * factor[0]),
        y=round(box.y * factor[1]),
        width=round(box.width * factor[0]),
        height=round(box.height * factor[1]),
    )
