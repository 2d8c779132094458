"""Trains one network under a tf.distribute strategy: records in, best and last weights out.

A run writes into one folder:

    model.json, weights   the network of the best evaluation so far (a checkpoint folder)
    last/                 the network of the last step, once the run is complete
    checkpoints/          all that a killed run needs to go on: weights, optimizer, step
    training.json         settings
    task.json             what the records hold
    history.csv           loss, learning rate, Dice, throughput
    evaluation.json       Dice per case of the best evaluation
    transfer.txt          which start weights came from another network, if any
    result.json           the summary; it says that the run is complete
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from ahnet_tf.case_dice import CaseDice, class_labels, mean_over_classes
from ahnet_tf.config import ModelConfig, TrainingConfig, to_dict
from ahnet_tf.data import training_dataset
from ahnet_tf.devices import mirrored_strategy, precision
from ahnet_tf.history import History, read_history
from ahnet_tf.nets import build_network
from ahnet_tf.nets.checkpoint import load_network, save_network
from ahnet_tf.nets.transfer import transfer_encoder
from ahnet_tf.presets import check_settings
from ahnet_tf.record_checks import scan_records
from ahnet_tf.steps import make_evaluation, make_optimizer, make_train_step
from preprocessing.errors import ModelError, SettingsError
from preprocessing.files import replacing, write_json
from preprocessing.tasks import Task

# Settings that may differ when a killed run goes on: they don't change what is learned.
FREE_SETTINGS = ("replicas", "log_every", "checkpoint_every", "jit_compile")


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended.

    Attributes:
      output: the run's folder, which holds the network of the best evaluation.
      architecture: of the network.
      parameters: its trainable weights.
      steps: optimizer steps made.
      best_step: step of the best evaluation (highest mean Dice over the foreground classes).
      dice: mean Dice per case at that step, by class name; NaN where no case has the class.
      undefined: cases without a Dice, by class name.
      loss: mean loss over the last logged steps.
      seconds: time spent training and evaluating, without what was repeated after a kill.
    """

    output: str
    architecture: str
    parameters: int
    steps: int
    best_step: int
    dice: dict[str, float]
    undefined: dict[str, int]
    loss: float
    seconds: float


class _State(tf.Module):
    """What a checkpoint keeps besides weights and optimizer."""

    def __init__(self):
        super().__init__()
        self.step = tf.Variable(0, dtype=tf.int64)
        self.best_step = tf.Variable(0, dtype=tf.int64)
        self.best_dice = tf.Variable(-1.0, dtype=tf.float64)
        self.seconds = tf.Variable(0.0, dtype=tf.float64)


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
      eval_files: record files of the evaluation split, whose patches tile their volumes exactly.
      output: the run's folder (see above). A complete run there is not repeated.
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
        _claim_folder(output, model_config, config, task)
        return _read_result(output / "result.json")
    records = scan_records(train_files, task, progress=progress).records
    scan_records(eval_files, task, tiled=True, progress=progress)
    strategy = mirrored_strategy(config.replicas)
    if config.batch_size % strategy.num_replicas_in_sync:
        expected = f"a multiple of the {strategy.num_replicas_in_sync} replicas"
        raise SettingsError("batch_size", expected, config.batch_size)
    _claim_folder(output, model_config, config, task)

    tf.keras.utils.set_random_seed(config.seed)
    with strategy.scope(), precision(config.precision):
        model = build_network(model_config, seed=config.seed)
    optimizer = make_optimizer(strategy, model, config)
    state = _State()
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, state=state)
    manager = tf.train.CheckpointManager(checkpoint, str(output / "checkpoints"), max_to_keep=2)
    if manager.latest_checkpoint:
        _restore(manager)
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
    evaluate = make_evaluation(
        strategy,
        model,
        model_config,
        task,
        eval_files,
        batch_size=config.batch_size,
        progress=progress,
    )
    _train(
        config,
        batches=strategy.experimental_distribute_dataset(batches),
        train_step=make_train_step(strategy, model, optimizer, model_config, config),
        keep_best=lambda: _keep_best(evaluate(), state, model, model_config, output),
        learning_rate=optimizer.learning_rate,
        state=state,
        manager=manager,
        history=History(output / "history.csv", class_labels(task), int(state.step)),
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
    best = json.loads((output / "evaluation.json").read_text(encoding="utf-8"))
    content = TrainingResult(
        output=str(output),
        architecture=model_config.architecture,
        parameters=sum(math.prod(weight.shape) for weight in model.trainable_weights),
        steps=int(state.step),
        best_step=best["step"],
        dice=best["dice"],
        undefined=best["undefined"],
        loss=read_history(output / "history.csv")[-1]["loss"],
        seconds=round(float(state.seconds), 1),
    )
    write_json(output / "result.json", asdict(content))
    return _read_result(output / "result.json")


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


def _train(
    config: TrainingConfig,
    *,
    batches: tf.distribute.DistributedDataset,
    train_step: Callable[[Any], tuple[tf.Tensor, tf.Tensor]],
    keep_best: Callable[[], dict[str, float]],
    learning_rate: Callable[[tf.Tensor], tf.Tensor],
    state: _State,
    manager: tf.train.CheckpointManager,
    history: History,
    bar: tqdm,
) -> None:
    """Makes the steps that are left."""
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
        evaluating = step % config.evaluate_every == 0 or step == config.steps
        saving = step % config.checkpoint_every == 0 or step == config.steps
        if not (evaluating or saving or step % config.log_every == 0):
            continue
        loss, norm = (sums / (step - logged)).numpy().tolist()
        _check_finite(loss, norm, step, manager)
        seconds = time.perf_counter() - began
        row = {
            "step": step,
            "learning_rate": float(learning_rate(tf.constant(step - 1))),
            "loss": loss,
            "gradient_norm": norm,
            "patches_per_second": config.batch_size * (step - logged) / seconds,
            "waiting_share": waiting / seconds,
        }
        state.step.assign(step)
        if evaluating:
            row |= keep_best()
            shown |= {name: f"{v:.3f}" for name, v in row.items() if name.startswith("dice_")}
        bar.set_postfix({"loss": f"{loss:.4f}"} | shown, refresh=False)
        state.seconds.assign_add(time.perf_counter() - began)
        history.add(row | {"seconds": float(state.seconds)})
        if saving:
            manager.save(step)
        sums, waiting, logged, began = tf.zeros(2), 0.0, step, time.perf_counter()
    bar.close()


def _keep_best(
    found: CaseDice,
    state: _State,
    model: tf.keras.Model,
    model_config: ModelConfig,
    output: Path,
) -> dict[str, float]:
    """Saves the network if it is the best so far; returns the history's Dice columns."""
    summary = found.summary()
    mean = mean_over_classes(summary["dice"])
    if mean > float(state.best_dice):
        save_network(output, model, model_config)
        content = _without_nan(summary) | {"step": int(state.step)}
        write_json(output / "evaluation.json", content)
        state.best_dice.assign(mean)
        state.best_step.assign(state.step)
    return {
        f"{kind}_{name}": value
        for kind in ("dice", "undefined")
        for name, value in summary[kind].items()
    }


def _without_nan(value: Any) -> Any:
    """Returns nested dicts with None for NaN, which JSON doesn't know."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _read_result(path: Path) -> TrainingResult:
    content = json.loads(path.read_text(encoding="utf-8"))
    dice = {name: math.nan if value is None else value for name, value in content["dice"].items()}
    return TrainingResult(**content | {"dice": dice})


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


def _claim_folder(
    output: Path, model_config: ModelConfig, config: TrainingConfig, task: Task
) -> None:
    """Writes the settings into the run's folder, or checks that the run there has the same."""
    settings = {"model": to_dict(model_config), "training": to_dict(config)}
    settings["task"] = task.to_dict()
    path = output / "training.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        for section, wanted in settings.items():
            for name, value in wanted.items():
                found = before.get(section, {}).get(name)
                if name not in FREE_SETTINGS and found != value:
                    raise SettingsError(
                        path,
                        f"a run with the {section} setting {name} = {value}",
                        found,
                        "Choose another output folder, or the settings that run began with.",
                    )
    write_json(path, settings)
    write_json(output / "task.json", task.to_dict())


def _restore(manager: tf.train.CheckpointManager) -> None:
    path = manager.latest_checkpoint
    try:
        manager.checkpoint.restore(path).assert_existing_objects_matched()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        raise ModelError(
            path,
            "a checkpoint of this network",
            str(error).split("\n")[0],
            "Choose another output folder to train from the start.",
        ) from None


def _say(progress: bool, line: object) -> None:
    if progress:
        print(line, flush=True)
