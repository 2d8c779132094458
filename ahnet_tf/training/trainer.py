"""Trains one network under a tf.distribute strategy: records in, best and last weights out.

What a run writes into its folder: `ahnet_tf.training.run_folder`.
"""

from __future__ import annotations

import json
import math
import signal
import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf
from tqdm import tqdm

from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.data.dataset import training_dataset
from ahnet_tf.data.record_validation import scan_records
from ahnet_tf.networks.checkpoint import save_network
from ahnet_tf.presets import check_settings
from ahnet_tf.report.overlay import overlay_png
from ahnet_tf.training.checkpoints import last_checkpoint_told
from ahnet_tf.training.curves import curves_png
from ahnet_tf.training.distribution import training_strategy
from ahnet_tf.training.history import History, read_history
from ahnet_tf.training.loop import LoopParts, train_steps
from ahnet_tf.training.run_folder import (
    EVALUATION,
    HISTORY,
    RESULT,
    TrainingResult,
    claim_folder,
    complete_for_all,
    keep_best,
    own_folder,
    read_result,
    write_result,
)
from ahnet_tf.training.schedules import WarmUpThenDecay
from ahnet_tf.training.stopping import stop_requests
from ahnet_tf.training.tensorboard import Summaries
from ahnet_tf.training.train_state import Learner, make_learner
from ahnet_tf.training.train_step import ShownTile, make_evaluation, make_train_step
from ahnet_tf.training.validation import class_labels
from ahnet_tf.training.workers import Workers, losing_no_worker, sum_over_workers, workers_of
from preprocessing.errors import SettingsError, Stopped
from preprocessing.files import write_json
from preprocessing.tasks import Task


@dataclass(frozen=True)
class _Run:
    """One training as one of its processes sees it.

    `own` is where it writes, `output` for the chief; `requested` as of `stop_requests`.
    """

    model: ModelConfig
    training: TrainingConfig
    task: Task
    train_files: Sequence[str]
    eval_files: Sequence[str]
    output: Path
    own: Path
    strategy: tf.distribute.Strategy
    workers: Workers
    progress: bool
    requested: Callable[[], int]

    def say(self, line: str) -> None:
        if self.progress:
            print(line, flush=True)


def train_network(
    model_config: ModelConfig,
    training_config: TrainingConfig,
    task: Task,
    train_files: Sequence[str],
    eval_files: Sequence[str],
    output: str | Path,
    *,
    initial: tf.keras.Model | str | Path | None = None,
    progress: bool = True,
) -> TrainingResult:
    """Trains one network; goes on where a killed run in `output` stopped.

    Of several workers (TF_CONFIG) each calls this with the same arguments, and the chief writes.

    Args:
      model_config: the network.
      training_config: the recipe. `deterministic` holds for the whole process from then on.
      task: what the records hold.
      train_files: record files of the training split.
      eval_files: record files of the evaluation split, whose patches tile their volumes exactly; not
        looked at with `evaluate_every` 0.
      output: the run's folder. A complete run there is not repeated.
      initial: a network, or the checkpoint folder of one, to start from. Of the same architecture
        all weights are taken; of another the encoder is transferred. None starts fresh.
      progress: show progress bars and say what happens.

    Raises:
      InputError: no records, records that don't fit (see `scan_records`), or a full disk.
      SettingsError: settings that don't fit the task, the devices or the run in `output`.
      ModelError: `initial` or a checkpoint doesn't fit, the loss is no longer finite, or another
        worker was lost.
      Stopped: SIGTERM or SIGINT; the run can go on from the step it had reached.
    """
    output, config, workers = Path(output), training_config, workers_of()
    check_settings(model_config, config, task)
    progress = progress and workers.chief
    if workers.count == 1 and (output / RESULT).is_file():
        claim_folder(output, output, model_config, config, task)
        return read_result(output / RESULT)
    records = scan_records(train_files, task, progress=progress).records
    cases = {}
    if config.evaluate_every:
        cases = scan_records(eval_files, task, tiled=True, progress=progress).volume_voxels
    strategy = training_strategy(config.replicas)
    if config.batch_size % strategy.num_replicas_in_sync:
        expected = f"a multiple of the {strategy.num_replicas_in_sync} replicas"
        raise SettingsError("batch_size", expected, config.batch_size)
    with (
        losing_no_worker(output, workers),
        own_folder(output, workers.chief) as own,
        stop_requests() as requested,
    ):
        claim_folder(output, own, model_config, config, task)
        if complete_for_all(strategy, output):
            return read_result(output / RESULT)
        run = _Run(
            model_config,
            config,
            task,
            train_files,
            eval_files,
            output,
            own,
            strategy,
            workers,
            progress,
            requested,
        )
        _train(run, records, cases, initial)
        # Every worker goes on with what the chief has written.
        sum_over_workers(strategy, 1)
        return read_result(output / RESULT)


def _train(
    run: _Run,
    records: int,
    case_ids: Collection[str],
    initial: tf.keras.Model | str | Path | None,
) -> None:
    """Makes the steps that are left and writes what a complete run leaves."""
    config = run.training
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    tf.keras.utils.set_random_seed(config.seed)
    learner = make_learner(run.strategy, run.model, config, run.output, run.own, initial, run.say)
    state = learner.state
    bar = tqdm(
        desc=run.model.architecture,
        total=config.steps,
        initial=int(state.step),
        unit="step",
        disable=not run.progress,
    )
    with last_checkpoint_told(run.output, learner.manager), bar:
        before = run.output / HISTORY
        history = History(run.own / HISTORY, class_labels(run.task), int(state.logged), before)
        summaries = Summaries(run.own / "tensorboard", history.kept)

        def log(row: dict[str, float]) -> None:
            history.add(row)
            summaries.add(row)

        evaluate = None
        if config.evaluate_every:
            evaluate = _evaluation(run, learner, summaries, case_ids)
        parts = LoopParts(
            train_step=make_train_step(
                run.strategy, learner.model, learner.optimizer, run.model, config, learner.average
            ),
            evaluate=evaluate,
            log=log,
            learning_rate=WarmUpThenDecay(config),
            loss_scale=learner.loss_scale if config.precision == "mixed_float16" else None,
            save=learner.save,
            stop_request=_stop_request(run),
        )
        try:
            train_steps(
                config,
                parts,
                batches=_batches(run, records, int(state.step)),
                patch_voxels=math.prod(run.task.patch_shape_zyx),
                state=state,
                bar=bar,
            )
        except Stopped as stopped:
            name, step = signal.Signals(stopped.signal).name, int(state.step)
            how_far = "before the first step; the same command begins again"
            if step:
                how_far = f"after step {step} of {config.steps}, which is saved; the same command goes on from there"
            message = f"{run.output}: stopped by {name} {how_far}"
            raise Stopped(stopped.signal, message) from None
        with learner.kept_weights():
            save_network(run.own / "last", learner.model, run.model)
            if not config.evaluate_every:
                save_network(run.own, learner.model, run.model)
        if run.workers.chief:
            _finish(run, learner)


def _batches(run: _Run, records: int, start_step: int) -> tf.distribute.DistributedDataset:
    config = run.training
    return run.strategy.distribute_datasets_from_function(
        lambda context: training_dataset(
            run.train_files,
            run.task,
            batch_size=config.batch_size,
            seed=config.seed,
            augment=config,
            start_step=start_step,
            records=records,
            context=context,
        )
    )


def _evaluation(
    run: _Run,
    learner: Learner,
    summaries: Summaries,
    case_ids: Collection[str],
) -> Callable[[], dict[str, float]]:
    """Returns the function that evaluates, draws, keeps the network if it is the best, and scores it."""

    def stop_if_asked() -> None:
        # Several workers finish their evaluation, since none can leave the others alone in it.
        if run.workers.count == 1 and run.requested():
            raise Stopped(run.requested(), "while evaluating")

    evaluate = make_evaluation(
        run.strategy,
        learner.model,
        run.model,
        run.task,
        run.eval_files,
        batch_size=run.training.batch_size,
        case_ids=case_ids,
        between=stop_if_asked,
        progress=run.progress,
    )

    def evaluated() -> dict[str, float]:
        step, picture = int(learner.state.step), run.own / "overlay.png"
        with learner.kept_weights():
            found, tile = evaluate()
            _draw(picture, tile, run.task, f"{run.model.architecture}, step {step}")
            summaries.picture(picture, "evaluation", step)
            return keep_best(found, learner.state, learner.model, run.model, run.own)

    return evaluated


def _stop_request(run: _Run) -> Callable[[], int]:
    """Returns the function that says to all workers alike whether one of them is asked to stop."""
    if run.workers.count == 1:
        return run.requested

    def agreed() -> int:
        asked = sum_over_workers(run.strategy, bool(run.requested()))
        return run.requested() or signal.SIGTERM if asked else 0

    return agreed


def _finish(run: _Run, learner: Learner) -> None:
    """Writes what a complete run leaves besides its networks; the chief's work."""
    step = int(learner.state.step)
    best = {"step": step, "dice": {}, "undefined": {}}
    if run.training.evaluate_every:
        best = json.loads((run.output / EVALUATION).read_text(encoding="utf-8"))
    write_json(run.output / "last" / "task.json", run.task.to_dict())
    rows = read_history(run.output / HISTORY)
    title = f"{run.model.architecture}, {run.training.steps} steps"
    curves_png(run.output / "curves.png", rows, title)
    result = TrainingResult(
        output=str(run.output),
        architecture=run.model.architecture,
        parameters=sum(math.prod(weight.shape) for weight in learner.model.trainable_weights),
        steps=step,
        best_step=best["step"],
        dice=best["dice"],
        undefined=best["undefined"],
        loss=rows[-1]["loss"],
        seconds=round(float(learner.state.seconds), 1),
        patches_per_second=statistics.median(row["patches_per_second"] for row in rows),
        voxels_per_second=statistics.median(row["voxels_per_second"] for row in rows),
        waiting_share=statistics.mean(row["waiting_share"] for row in rows),
    )
    write_result(run.output / RESULT, result)


def _draw(path: Path, tile: ShownTile, task: Task, title: str) -> None:
    overlay_png(
        path,
        tile.image_zyx,
        tile.prediction_zyx,
        tile.label_zyx,
        spacing_mm=tile.spacing_mm,
        intensity_window=task.intensity_window,
        class_names=task.class_names,
        title=title,
    )
