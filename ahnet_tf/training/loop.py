"""The steps of a training: batches in, rows of the history out; saved and evaluated on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from ahnet_tf.config import TrainingConfig
from ahnet_tf.training.run_folder import State
from preprocessing.errors import ModelError, Stopped


@dataclass(frozen=True)
class LoopParts:
    """What the loop calls.

    Attributes:
      train_step: see `ahnet_tf.training.train_step.make_train_step`.
      evaluate: keeps the network if it is the best so far; returns columns of the history. May raise
        `Stopped`, and is then called again when the run goes on. None: no step is evaluated.
      log: takes a row of the history.
      learning_rate: rate of the update that follows so many steps.
      loss_scale: of float16; None without one.
      save: writes a checkpoint of everything, `state` included.
      stop_request: the signal that asks to stop, 0 without one; the same for all workers.
    """

    train_step: Callable[[Any], tuple[tf.Tensor, tf.Tensor]]
    evaluate: Callable[[], dict[str, float]] | None
    log: Callable[[dict[str, float]], None]
    learning_rate: Callable[[tf.Tensor], tf.Tensor]
    loss_scale: Callable[[], float] | None
    save: Callable[[], None]
    stop_request: Callable[[], int]


def train_steps(
    config: TrainingConfig,
    parts: LoopParts,
    *,
    batches: tf.distribute.DistributedDataset,
    patch_voxels: int,
    state: State,
    bar: tqdm,
) -> None:
    """Makes the steps that are left. Wherever it is stopped or killed, it goes on as if it had not been.

    A row of the history is written every `log_every` steps, with each evaluation and at the end; it tells of the
    steps since the row before, also of those that an earlier process made.

    Args:
      config: steps, and how often to log, evaluate and save.
      parts: what to call.
      batches: endless, from the step after `state.step` on.
      patch_voxels: voxels of one patch.
      state: what checkpoints keep; up to date whenever one is saved.
      bar: progress bar.

    Raises:
      ModelError: the loss is no longer finite.
      Stopped: after SIGTERM or SIGINT; a checkpoint of the last step is saved.
    """
    iterator, shown = None, {}
    step, saved, sums = int(state.step), int(state.step), tf.identity(state.sums)
    before, waiting = state.interval_seconds.numpy().tolist()
    began = time.perf_counter() - before

    def save() -> None:
        nonlocal saved
        if step == saved:
            return
        _check_finite(sums.numpy().tolist(), step - int(state.logged), step, parts.loss_scale)
        state.sums.assign(sums)
        state.interval_seconds.assign([time.perf_counter() - began, waiting])
        parts.save()
        saved = step

    while True:
        last = step == config.steps
        evaluating = parts.evaluate is not None and (last or step % config.evaluate_every == 0)
        logging = last or evaluating or step % config.log_every == 0
        if logging and step > int(state.logged):
            row = _row(
                config,
                parts,
                step,
                sums.numpy().tolist(),
                state,
                (time.perf_counter() - began, waiting),
            )
            row["voxels_per_second"] = row["patches_per_second"] * patch_voxels
            if evaluating:
                try:
                    row |= parts.evaluate()
                except Stopped:
                    save()
                    raise
            shown |= _shown(row)
            bar.set_postfix(shown, refresh=False)
            state.seconds.assign_add(time.perf_counter() - began)
            parts.log(row | {"seconds": float(state.seconds)})
            state.logged.assign(step)
            sums, waiting, began = tf.zeros(3), 0.0, time.perf_counter()
        if last or step % config.checkpoint_every == 0:
            save()
        if last:
            break
        if number := parts.stop_request():
            save()
            raise Stopped(number, f"after step {step} of {config.steps}")
        asked = time.perf_counter()
        iterator = iterator or iter(batches)
        batch = next(iterator)
        waiting += time.perf_counter() - asked
        loss, norm = parts.train_step(batch)
        finite = tf.math.is_finite(norm)
        sums += tf.stack([loss, tf.where(finite, norm, 0.0), tf.cast(~finite, tf.float32)])
        step += 1
        state.step.assign(step)
        bar.update()


def _row(
    config: TrainingConfig,
    parts: LoopParts,
    step: int,
    sums: list[float],
    state: State,
    seconds: tuple[float, float],
) -> dict[str, float]:
    """Returns the row of the steps since the last one, `seconds` being theirs and those spent waiting."""
    count = step - int(state.logged)
    loss, norm, skipped = sums
    _check_finite(sums, count, step, parts.loss_scale)
    row = {
        "step": step,
        "learning_rate": float(parts.learning_rate(tf.constant(step - 1))),
        "loss": loss / count,
        "gradient_norm": norm / (count - skipped) if count > skipped else math.nan,
        "patches_per_second": config.batch_size * count / seconds[0],
        "waiting_share": seconds[1] / seconds[0],
    }
    if parts.loss_scale is not None:
        row |= {"loss_scale": parts.loss_scale(), "skipped_steps": skipped}
    return row


def _shown(row: dict[str, float]) -> dict[str, str]:
    """Returns what the progress bar shows of a row."""
    return {
        "loss": f"{row['loss']:.4f}",
        "patch/s": f"{row['patches_per_second']:.1f}",
        "waiting": f"{row['waiting_share']:.0%}",
    } | {name: f"{value:.3f}" for name, value in row.items() if name.startswith("dice_")}


def _check_finite(
    sums: list[float],
    count: int,
    step: int,
    loss_scale: Callable[[], float] | None,
) -> None:
    """Raises ModelError unless `count` steps had a finite loss and gradient, or a smaller scale can help."""
    loss, _, skipped = sums
    hopeless = skipped if loss_scale is None else skipped == count and loss_scale() <= 1
    if not count or (math.isfinite(loss) and not hopeless):
        return
    raise ModelError(
        f"step {step}",
        "a finite loss and gradient",
        f"loss {loss / count:g}, {skipped:g} of the last {count} steps without a finite gradient",
        "Try a lower learning_rate or clip_norm, a longer warm-up, or precision float32.",
    )
