"""The training loop: steps, history rows, checkpoints and evaluations; ends early on a signal."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from ahnet_tf.config import TrainingConfig
from ahnet_tf.training.detection_score import FROC
from ahnet_tf.training.optimizer import WarmUpThenDecay
from ahnet_tf.training.train_state import TrainState
from preprocessing.errors import ModelError, Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A training diverges if the mean loss of five among its first 50 steps is above three times that of
# the first step, and of a network that knows nothing.
EARLY_STEPS, EARLY_MEAN, EARLY_GROWTH = 50, 5, 3.0


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], int]]:
    """Yields a function that returns the signal that asked the process to stop, 0 without one.

    After SIGTERM or SIGINT the previous handlers are back, so a second signal ends the process.
    Outside the main thread, which alone receives signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    for number in SIGNALS:
        signal.signal(number, receive)
    try:
        yield lambda: received[0] if received else 0
    finally:
        restore()


def train_steps(
    config: TrainingConfig,
    train_state: TrainState,
    batches: tf.distribute.DistributedDataset,
    *,
    train_step: Callable[[Any], tuple[tf.Tensor, tf.Tensor]],
    evaluate: Callable[[], dict[str, float]] | None,
    log: Callable[[dict[str, float]], None],
    stop_request: Callable[[], int],
    patch_voxels: int,
    uninformed_loss: float,
    bar: tqdm,
) -> None:
    """Runs the remaining steps; resuming reproduces an uninterrupted run.

    A row of the history covers the steps since the row before, also those of an earlier process. It
    is written every `log_every` steps, with each evaluation and at the end.

    Args:
      batches: endless, from the step after `train_state.progress.step` on.
      train_step: see `make_train_step`.
      evaluate: keeps the network if it is the best so far; returns columns of the history. May raise
        `Stopped`, and is called again when the run resumes. None: no evaluations.
      log: takes a row of the history.
      stop_request: the signal that asks to stop, 0 without one; the same in all workers.
      patch_voxels: voxels of one patch.
      uninformed_loss: see `ahnet_tf.training.losses.uninformed_loss`.

    Raises ModelError if the loss is not finite or grows in the first steps, and Stopped if a signal
    asked to stop, after saving a checkpoint of the last step.
    """
    progress = train_state.progress
    iterator = None
    shown: dict[str, str] = {}
    early: list[tf.Tensor] = []
    step = saved = int(progress.step)
    sums = tf.identity(progress.sums)
    before, waiting = progress.interval_seconds.numpy().tolist()
    began = time.perf_counter() - before

    def save() -> None:
        nonlocal saved
        if step == saved:
            return
        _check_finite(sums.numpy().tolist(), step, train_state)
        progress.sums.assign(sums)
        progress.interval_seconds.assign([time.perf_counter() - began, waiting])
        train_state.manager.save(step)
        saved = step

    while True:
        last = step == config.steps
        evaluating = evaluate is not None and (last or step % config.evaluate_every == 0)
        logging = last or evaluating or step % config.log_every == 0
        if logging and step > int(progress.logged):
            seconds = time.perf_counter() - began
            row = _row(config, train_state, step, sums.numpy().tolist(), seconds, waiting)
            row["voxels_per_second"] = row["patches_per_second"] * patch_voxels
            if evaluate is not None and evaluating:
                try:
                    row |= evaluate()
                except Stopped:
                    save()
                    raise
            shown |= _shown(row)
            bar.set_postfix(shown, refresh=False)
            progress.seconds.assign_add(time.perf_counter() - began)
            log(row | {"seconds": float(progress.seconds)})
            progress.logged.assign(step)
            sums, waiting, began = tf.zeros(3), 0.0, time.perf_counter()
        if last or step % config.checkpoint_every == 0:
            save()
        if last:
            break
        if number := stop_request():
            save()
            raise Stopped(number, f"after step {step} of {config.steps}")
        asked = time.perf_counter()
        iterator = iterator or iter(batches)
        batch = next(iterator)
        waiting += time.perf_counter() - asked
        loss, norm = train_step(batch)
        finite = tf.math.is_finite(norm)
        sums += tf.stack([loss, tf.where(finite, norm, 0.0), tf.cast(~finite, tf.float32)])
        step += 1
        progress.step.assign(step)
        bar.update()
        if step <= EARLY_STEPS:
            early.append(loss)
            if step == len(early) and step % EARLY_MEAN == 0:
                _check_growth([float(each) for each in early], uninformed_loss, config)


def _row(
    config: TrainingConfig,
    train_state: TrainState,
    step: int,
    sums: list[float],
    seconds: float,
    waiting: float,
) -> dict[str, float]:
    """Returns the history row of the steps since the last one."""
    _check_finite(sums, step, train_state)
    loss, norm, skipped = sums
    count = step - int(train_state.progress.logged)
    row = {
        "step": step,
        "learning_rate": float(WarmUpThenDecay(config)(step - 1)),
        "loss": loss / count,
        "gradient_norm": norm / (count - skipped) if count > skipped else math.nan,
        "patches_per_second": config.batch_size * count / seconds,
        "waiting_share": waiting / seconds,
    }
    loss_scale = train_state.loss_scale()
    if loss_scale is not None:
        row |= {"loss_scale": loss_scale, "skipped_steps": skipped}
    return row


def _shown(row: dict[str, float]) -> dict[str, str]:
    """Returns what the progress bar shows of a row."""
    return {
        "loss": f"{row['loss']:.4f}",
        "patch/s": f"{row['patches_per_second']:.1f}",
        "waiting": f"{row['waiting_share']:.0%}",
    } | {name: f"{value:.3f}" for name, value in row.items() if name.startswith(("dice_", FROC))}


def _check_finite(sums: list[float], step: int, train_state: TrainState) -> None:
    """Raises ModelError if a loss or gradient was not finite and a smaller loss scale can't help."""
    loss, _, skipped = sums
    count = step - int(train_state.progress.logged)
    loss_scale = train_state.loss_scale()
    hopeless = skipped if loss_scale is None else skipped == count and loss_scale <= 1
    if not count or (math.isfinite(loss) and not hopeless):
        return
    raise ModelError(
        f"step {step}",
        "a finite loss and gradient",
        f"loss {loss / count:g}, {skipped:g} of the last {count} steps without a finite gradient",
        "Try a lower learning_rate or clip_norm, a longer warm-up, or precision float32.",
    )


def _check_growth(losses: list[float], uninformed_loss: float, config: TrainingConfig) -> None:
    """Raises ModelError if the losses of the first steps show a training that diverges."""
    recent = sum(losses[-EARLY_MEAN:]) / EARLY_MEAN
    # A loss that is not finite has its own error.
    if not recent > EARLY_GROWTH * max(losses[0], uninformed_loss) or math.isinf(recent):
        return
    raise ModelError(
        f"step {len(losses)}",
        "a loss that falls",
        f"a mean of {recent:.3g} over {EARLY_MEAN} steps, after {losses[0]:.3g} at the first",
        f"The learning_rate ({config.learning_rate:g}) is too high: try a tenth of it.",
    )
