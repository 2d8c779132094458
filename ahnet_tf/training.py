"""Trains one network under a tf.distribute strategy: records in, best and last weights out.

What a run writes into its folder: `ahnet_tf.run_folder`.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from ahnet_tf.case_dice import class_labels
from ahnet_tf.config import ModelConfig, TrainingConfig
from ahnet_tf.curves import curves_png
from ahnet_tf.data import training_dataset
from ahnet_tf.devices import mirrored_strategy, precision
from ahnet_tf.history import History, read_history
from ahnet_tf.nets import build_network
from ahnet_tf.nets.checkpoint import load_network, save_network
from ahnet_tf.nets.transfer import transfer_encoder
from ahnet_tf.presets import check_settings
from ahnet_tf.record_checks import scan_records
from ahnet_tf.report import overlay_png
from ahnet_tf.run_folder import (
    State,
    TrainingResult,
    claim_folder,
    keep_best,
    read_result,
    restore,
    write_result,
)
from ahnet_tf.steps import ShownTile, make_evaluation, make_optimizer, make_train_step
from ahnet_tf.summaries import Summaries
from ahnet_tf.training_loop import train_steps
from preprocessing.errors import SettingsError
from preprocessing.files import replacing, write_json
from preprocessing.tasks import Task


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

    Args:
      model_config: the network.
      training_config: the recipe.
      task: what the records hold.
      train_files: record files of the training split.
      eval_files: record files of the evaluation split, whose patches tile their volumes exactly; not
        looked at with `evaluate_every` 0.
      output: the run's folder. A complete run there is not repeated.
      initial: a network, or the checkpoint folder of one, to start from. Of the same architecture
        all weights are taken; of another the encoder is transferred. None starts fresh.
      progress: show progress bars and say what happens.

    Raises:
      InputError: no records, or records that don't fit (see `scan_records`).
      SettingsError: settings that don't fit the task, the devices or the run in `output`.
      ModelError: `initial` or a checkpoint doesn't fit, or the loss is no longer finite.
    """
    output, config = Path(output), training_config
    check_settings(model_config, config, task)
    if (output / "result.json").is_file():
        claim_folder(output, model_config, config, task)
        return read_result(output / "result.json")
    records = scan_records(train_files, task, progress=progress).records
    if config.evaluate_every:
        scan_records(eval_files, task, tiled=True, progress=progress)
    strategy = mirrored_strategy(config.replicas)
    if config.batch_size % strategy.num_replicas_in_sync:
        expected = f"a multiple of the {strategy.num_replicas_in_sync} replicas"
        raise SettingsError("batch_size", expected, config.batch_size)
    claim_folder(output, model_config, config, task)

    tf.keras.utils.set_random_seed(config.seed)
    with strategy.scope(), precision(config.precision):
        model = build_network(model_config, seed=config.seed)
    optimizer = make_optimizer(strategy, model, config)
    state = State()
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, state=state)
    manager = tf.train.CheckpointManager(checkpoint, str(output / "checkpoints"), max_to_keep=2)
    if manager.latest_checkpoint:
        restore(manager)
        _say(progress, f"{output}: going on after step {int(state.step)}")
    elif initial is not None:
        report = start_from(initial, model)
        with replacing(output / "transfer.txt") as temporary:
            temporary.write_text(f"{report}\n", encoding="utf-8")

    batches = training_dataset(
        train_files,
        task,
        batch_size=config.batch_size,
        seed=config.seed,
        augment=config,
        start_step=int(state.step),
        records=records,
    )
    evaluate = None
    if config.evaluate_every:
        evaluate = make_evaluation(
            strategy,
            model,
            model_config,
            task,
            eval_files,
            batch_size=config.batch_size,
            progress=progress,
        )
    history = History(output / "history.csv", class_labels(task), int(state.step))
    summaries = Summaries(output / "tensorboard", history.kept)

    def evaluated() -> dict[str, float]:
        found, tile = evaluate()
        _draw(
            output / "overlay.png",
            tile,
            task,
            f"{model_config.architecture}, step {int(state.step)}",
        )
        summaries.picture(output / "overlay.png", "evaluation", int(state.step))
        return keep_best(found, state, model, model_config, output)

    def log(row: dict[str, float]) -> None:
        history.add(row)
        summaries.add(row)

    train_steps(
        config,
        batches=strategy.experimental_distribute_dataset(batches),
        train_step=make_train_step(strategy, model, optimizer, model_config, config),
        evaluate=evaluated if evaluate else None,
        log=log,
        learning_rate=optimizer.learning_rate,
        patch_voxels=math.prod(task.patch_shape_zyx),
        state=state,
        manager=manager,
        bar=tqdm(
            desc=model_config.architecture,
            total=config.steps,
            initial=int(state.step),
            unit="step",
            disable=not progress,
        ),
    )
    save_network(output / "last", model, model_config)
    write_json(output / "last" / "task.json", task.to_dict())
    rows = read_history(output / "history.csv")
    curves_png(output / "curves.png", rows, f"{model_config.architecture}, {config.steps} steps")
    if evaluate:
        best = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    else:
        save_network(output, model, model_config)
        best = {"step": int(state.step), "dice": {}, "undefined": {}}
    result = TrainingResult(
        output=str(output),
        architecture=model_config.architecture,
        parameters=sum(math.prod(weight.shape) for weight in model.trainable_weights),
        steps=int(state.step),
        best_step=best["step"],
        dice=best["dice"],
        undefined=best["undefined"],
        loss=rows[-1]["loss"],
        seconds=round(float(state.seconds), 1),
        patches_per_second=statistics.median(row["patches_per_second"] for row in rows),
        voxels_per_second=statistics.median(row["voxels_per_second"] for row in rows),
        waiting_share=statistics.mean(row["waiting_share"] for row in rows),
    )
    write_result(output / "result.json", result)
    return read_result(output / "result.json")


def start_from(initial: tf.keras.Model | str | Path, model: tf.keras.Model) -> Any:
    """Gives `model` the weights of another network, all or its encoder's; returns the report.

    Raises:
      ModelError: the weights don't fit.
    """
    source = initial if isinstance(initial, tf.keras.Model) else load_network(initial)[0]
    if [w.shape for w in source.weights] != [w.shape for w in model.weights]:
        return transfer_encoder(source, model)
    for weight, value in zip(model.weights, source.get_weights(), strict=True):
        weight.assign(value)
    return f"all {len(model.weights)} weights taken from {source.name}"


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


def _say(progress: bool, line: object) -> None:
    if progress:
        print(line, flush=True)
