"""The steps of a training: batches in, rows of the history out; saved and evaluated on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from ahnet_tf.config import TrainingConfig
from ahnet_tf.run_folder import State
from preprocessing.errors import ModelError


def train_steps(
    config: TrainingConfig,
    *,
    batches: tf.distribute.DistributedDataset,
    train_step: Callable[[Any], tuple[tf.Tensor, tf.Tensor]],
    evaluate: Callable[[], dict[str, float]] | None,
    log: Callable[[dict[str, float]], None],
    learning_rate: Callable[[tf.Tensor], tf.Tensor],
    patch_voxels: int,
    state: State,
    manager: tf.train.CheckpointManager,
    bar: tqdm,
) -> None:
    """Makes the steps that are left.

    Args:
      config: steps, and how often to log, evaluate and save.
      batches: endless, from the step after `state.step` on.
      train_step: see `ahnet_tf.steps.make_train_step`.
      evaluate: keeps the network if it is the best so far; returns columns of the history. None: no
        step is evaluated.
      log: takes a row of the history.
      learning_rate: rate of the update that follows so many steps.
      patch_voxels: voxels of one patch.
      state: holds the step; kept up to date.
      manager: saves checkpoints.
      bar: progress bar.

    Raises:
      ModelError: the loss is no longer finite.
    """
    iterator = None
    sums, waiting, logged, began = tf.zeros(2), 0.0, int(state.step), time.perf_counter()
    shown: dict[str, str] = {}
    for step in range(int(state.step) + 1, config.steps + 1):
        asked = time.perf_counter()
        iterator = iterator or iter(batches)
        batch = next(iterator)
        waiting += time.perf_counter() - asked
        sums += tf.stack(train_step(batch))
        bar.update()
        evaluating = evaluate is not None and (
            step % config.evaluate_every == 0 or step == config.steps
        )
        saving = step % config.checkpoint_every == 0 or step == config.steps
        if not (evaluating or saving or step % config.log_every == 0):
            continue
        loss, norm = (sums / (step - logged)).numpy().tolist()
        _check_finite(loss, norm, step, manager)
        seconds = time.perf_counter() - began
        patches_per_second = config.batch_size * (step - logged) / seconds
        row = {
            "step": step,
            "learning_rate": float(learning_rate(tf.constant(step - 1))),
            "loss": loss,
            "gradient_norm": norm,
            "patches_per_second": patches_per_second,
            "voxels_per_second": patches_per_second * patch_voxels,
            "waiting_share": waiting / seconds,
        }
        shown |= {
            "loss": f"{loss:.4f}",
            "patch/s": f"{patches_per_second:.1f}",
            "waiting": f"{waiting / seconds:.0%}",
        }
        state.step.assign(step)
        if evaluating:
            row |= evaluate()
            shown |= {name: f"{v:.3f}" for name, v in row.items() if name.startswith("dice_")}
        bar.set_postfix(shown, refresh=False)
        state.seconds.assign_add(time.perf_counter() - began)
        log(row | {"seconds": float(state.seconds)})
        if saving:
            manager.save(step)
        sums, waiting, logged, began = tf.zeros(2), 0.0, step, time.perf_counter()
    bar.close()


def _check_finite(loss: float, norm: float, step: int, manager: tf.train.CheckpointManager) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    kept = manager.latest_checkpoint
    raise ModelError(
        f"step {step}",
        "a finite loss and gradient",
        f"loss {loss:g}, gradient norm {norm:g}",
        (f"The last good checkpoint is {kept}. " if kept else "")
        + "Try a lower learning_rate or clip_norm, a longer warm-up, or precision float32.",
    )
