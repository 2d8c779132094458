"""Trains one network under a tf.distribute strategy, from records to best and last weights.

`ahnet_tf.training.run_folder` lists the files that a run writes.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import attrs
import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.data.dataset import training_dataset
from ahnet_tf.data.records import scan_records
from ahnet_tf.presets import check_settings
from ahnet_tf.report.overlay import overlay_case
from ahnet_tf.training.checkpoints import report_last_checkpoint
from ahnet_tf.training.distribution import (
    Workers,
    sum_over_workers,
    training_strategy,
    translate_worker_errors,
    workers_of,
)
from ahnet_tf.training.logs import History, Summaries
from ahnet_tf.training.loop import stop_requests, train_steps
from ahnet_tf.training.losses import uninformed_loss
from ahnet_tf.training.run_folder import (
    HISTORY,
    RESULT,
    TrainingResult,
    claim_folder,
    inputs_of,
    is_complete,
    keep_best,
    own_folder,
    read_result,
    write_result,
)
from ahnet_tf.training.train_state import TrainState, make_train_state
from ahnet_tf.training.train_step import make_train_step
from ahnet_tf.training.validation import class_labels, make_evaluation
from ahnet_tf.weights.checkpoint import save_network
from preprocessing.errors import SettingsError, Stopped
from preprocessing.files import write_json
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import Volume


@dataclass(frozen=True)
class _Run:
    """The arguments of `train_network` in one of its processes.

    `own` is the folder that the process writes into, `output` for the chief; `requested` as in
    `stop_requests`.
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
        """Prints a line, unless there is no progress to show."""
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
    initial: keras.Model | str | Path | None = None,
    progress: bool = True,
) -> TrainingResult:
    """Trains one network, or resumes an interrupted run in `output`.

    With several workers (TF_CONFIG) each calls this with the same arguments, and the chief writes.

    Args:
      training_config: `deterministic` holds for the whole process from then on.
      train_files: record files of the training split.
      eval_files: record files of the evaluation split, whose patches tile their volumes exactly; not
        read with `evaluate_every` 0.
      output: the run's folder. A complete run there is not repeated.
      initial: a network, or the checkpoint folder of one, to start from: all weights of the same
        architecture, the encoder of another. "imagenet": the encoder of Keras' ResNet-50. None: fresh
        weights. Read only by a run that has no checkpoint yet.

    Raises:
      InputError: no records, records that don't fit (see `scan_records`), or a full disk.
      SettingsError: settings that don't fit the task, the devices or the run in `output`, which may
        also have had other records or start weights, or be running.
      ModelError: `initial` or a checkpoint doesn't fit, the loss is not finite, or another worker was
        lost.
      Stopped: SIGTERM or SIGINT; the run can be resumed from the step it had reached.
    """
    output, config, workers = Path(output), training_config, workers_of()
    check_settings(model_config, config, task)
    progress = progress and workers.chief
    inputs = inputs_of(config, train_files, eval_files, initial)
    if workers.count == 1 and (output / RESULT).is_file():
        claim_folder(output, output, model_config, config, task, inputs)
        return read_result(output)
    records = scan_records(train_files, task, progress=progress).records
    cases: Collection[str] = ()
    if config.evaluate_every:
        cases = scan_records(eval_files, task, tiled=True, progress=progress).volume_voxels
    strategy = training_strategy(config.replicas)
    if config.batch_size % strategy.num_replicas_in_sync:
        expected = f"a multiple of the {strategy.num_replicas_in_sync} replicas"
        raise SettingsError("batch_size", expected, config.batch_size)
    several = strategy.num_replicas_in_sync > 1
    if config.jit_compile and several and not tf.config.list_logical_devices("GPU"):
        remedy = "XLA compiles for one replica of a CPU."
        raise SettingsError("jit_compile", "false with several replicas on CPUs", "true", remedy)
    with (
        translate_worker_errors(output, workers),
        own_folder(output, workers.chief) as own,
        stop_requests() as requested,
    ):
        claim_folder(output, own, model_config, config, task, inputs)
        if is_complete(strategy, output):
            return read_result(output)
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
        # Wait until the chief has written the result.
        sum_over_workers(strategy, [1])
        return read_result(output)


def _train(
    run: _Run,
    records: int,
    case_ids: Collection[str],
    initial: keras.Model | str | Path | None,
) -> None:
    """Runs the remaining steps and writes the results."""
    config = run.training
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    train_state = make_train_state(
        run.strategy, run.model, config, run.output, run.own, initial, run.say
    )
    model, progress = train_state.model, train_state.progress
    bar = tqdm(
        desc=run.model.architecture,
        total=config.steps,
        initial=int(progress.step),
        unit="step",
        disable=not run.progress,
    )
    with report_last_checkpoint(run.output, train_state.manager), bar:
        history = History(
            run.own / HISTORY, class_labels(run.task), int(progress.logged), run.output / HISTORY
        )
        summaries = Summaries(run.own / "tensorboard", history.kept)

        def log(row: dict[str, float]) -> None:
            history.add(row)
            summaries.add(row)

        batches = _batches(run, records, int(progress.step))
        train_step = make_train_step(
            run.strategy, model, train_state.optimizer, run.model, config, train_state.average
        )
        depth, *plane = run.task.patch_shape_zyx
        patch_voxels = min(config.slab_slices or depth, depth) * math.prod(plane)
        evaluate = None
        if config.evaluate_every:
            evaluate = _evaluation(run, train_state, summaries, case_ids)
        try:
            train_steps(
                config,
                train_state,
                batches,
                train_step=train_step,
                evaluate=evaluate,
                log=log,
                stop_request=_stop_request(run),
                patch_voxels=patch_voxels,
                uninformed_loss=uninformed_loss(
                    kind=config.loss,
                    gamma=config.gamma,
                    class_weights=config.class_weights,
                    classes=run.model.classes,
                    exclusive=run.model.activation == "softmax",
                    heat_map=run.task.target == "heat_map",
                ),
                bar=bar,
            )
        except Stopped as stopped:
            name, step = signal.Signals(stopped.signal).name, int(progress.step)
            where = "before the first step; the same command starts again"
            if step:
                where = (
                    f"after step {step} of {config.steps}, which is saved; "
                    "the same command resumes from there"
                )
            message = f"{run.output}: stopped by {name} {where}"
            raise Stopped(stopped.signal, message) from None
        with train_state.ema_weights():
            save_network(run.own / "last", model, run.model)
            if not config.evaluate_every:
                save_network(run.own, model, run.model)
        if run.workers.chief:
            write_json(run.output / "last" / "task.json", run.task.to_dict())
            write_result(run.output, run.model, config, run.task, train_state)


def _batches(run: _Run, records: int, start_step: int) -> tf.distribute.DistributedDataset:
    return run.strategy.distribute_datasets_from_function(
        lambda context: training_dataset(
            run.train_files,
            run.task,
            batch_size=run.training.batch_size,
            seed=run.training.seed,
            augment=run.training,
            slab_slices=run.training.slab_slices,
            start_step=start_step,
            records=records,
            context=context,
        )
    )


def _evaluation(
    run: _Run, train_state: TrainState, summaries: Summaries, case_ids: Collection[str]
) -> Callable[[], dict[str, float]]:
    """Returns the function that evaluates the network, draws a tile and keeps the best network."""

    def stop_if_requested() -> None:
        # Several workers finish their evaluation: each waits for the others at its end.
        if run.workers.count == 1 and run.requested():
            raise Stopped(run.requested(), "while evaluating")

    evaluate = make_evaluation(
        run.strategy,
        train_state.model,
        run.model,
        run.task,
        run.eval_files,
        batch_size=run.training.batch_size,
        case_ids=case_ids,
        before_batch=stop_if_requested,
        progress=run.progress,
    )

    # Records are normalised, and a tile may have no air that its breast is told from.
    as_stored = attrs.evolve(run.task, normalization="none")

    def evaluated() -> dict[str, float]:
        step, picture = int(train_state.progress.step), run.own / "overlay.png"
        with train_state.ema_weights():
            found, tile = evaluate()
            image = Volume(tile["image"][..., 0].T, np.diag([*tile["spacing_mm"], 1.0]))
            labels = tile["prediction"].T, tile["label"].T
            title = f"{run.model.architecture}, step {step}"
            overlay_case(picture, image, *labels, as_stored, title)
            summaries.add_picture(picture, "evaluation", step)
            return keep_best(found, train_state.progress, train_state.model, run.model, run.own)

    return evaluated


def _stop_request(run: _Run) -> Callable[[], int]:
    """Returns the function that tells all workers alike whether one of them should stop."""
    if run.workers.count == 1:
        return run.requested

    def agreed() -> int:
        asked = sum_over_workers(run.strategy, [int(run.requested() > 0)]).any()
        return run.requested() or signal.SIGTERM if asked else 0

    return agreed
