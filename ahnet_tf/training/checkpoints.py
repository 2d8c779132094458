"""Checkpoints of a training on its way: saved whole, found again, and the last good one kept."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow as tf

from preprocessing.errors import InputError, ModelError
from preprocessing.files import DISK_FULL

# Checkpoints that stay: the newest, and the one before it should that be damaged.
KEPT = 2


def finished_checkpoints(folder: str | Path) -> list[str]:
    """Returns the checkpoints in a folder that were finished, the oldest first."""
    state = tf.train.get_checkpoint_state(str(folder))
    return list(state.all_model_checkpoint_paths) if state else []


def remove_unfinished(manager: tf.train.CheckpointManager) -> None:
    """Removes files of checkpoints that were never finished."""
    known = {Path(path).name for path in finished_checkpoints(manager.directory)}
    for path in Path(manager.directory).glob("ckpt-*"):
        if path.name.endswith("_temp"):
            shutil.rmtree(path)
        elif path.name.split(".")[0] not in known:
            path.unlink()


def restore(checkpoint: tf.train.Checkpoint, folder: Path, say: Callable[[str], None]) -> None:
    """Restores the newest checkpoint in a folder that can be read.

    Args:
      checkpoint: what is restored.
      folder: with at least one checkpoint.
      say: is told of a damaged checkpoint.

    Raises:
      ModelError: it is of another network or training, or none can be read.
    """
    remedy = "Choose another output folder to train from the start."
    for path in reversed(finished_checkpoints(folder)):
        try:
            checkpoint.restore(path).assert_existing_objects_matched()
        except (AssertionError, ValueError) as error:
            found = str(error).split("\n")[0]
            raise ModelError(path, "a checkpoint of this network", found, remedy) from None
        except (tf.errors.OpError, LookupError) as error:
            # TensorFlow's reader raises IndexError where a file ends early.
            damage = str(error).split("\n")[0]
            say(f"{path} can't be read ({damage}); trying the one before it")
        else:
            return
    raise ModelError(folder, "a readable checkpoint", damage, remedy)


@contextlib.contextmanager
def last_checkpoint_told(output: Path, manager: tf.train.CheckpointManager) -> Iterator[None]:
    """Turns what can end a training into an error that names the checkpoint it can go on from.

    Raises:
      InputError: the disk is full.
      ModelError: the loss is no longer finite, or memory ran out.
    """
    try:
        yield
    except ModelError as error:
        raise ModelError(
            error.where, error.expected, error.found, f"{_kept(manager)}{error.remedy}"
        ) from None
    except tf.errors.OpError as error:
        message = str(error.message).split("\n")[0]
        if any(os.strerror(number) in message for number in DISK_FULL):
            raise _disk_full(output, manager) from None
        if not isinstance(error, tf.errors.ResourceExhaustedError):
            raise
        raise ModelError(
            output,
            "memory for the network and its batch",
            message,
            f"{_kept(manager)}Try a smaller batch_size, or smaller patches.",
        ) from None
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise _disk_full(output, manager) from None


def _disk_full(output: Path, manager: tf.train.CheckpointManager) -> InputError:
    remove_unfinished(manager)
    return InputError(
        output,
        "room for the training's files",
        "a full disk",
        f"{_kept(manager)}Make room and start the same command again: it goes on from there.",
    )


def _kept(manager: tf.train.CheckpointManager) -> str:
    newest = manager.latest_checkpoint
    return f"The last good checkpoint is {newest}. " if newest else ""
