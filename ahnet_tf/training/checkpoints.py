"""Training checkpoints: atomic save, fallback, clean-up."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import tensorflow as tf

from preprocessing.errors import InputError, ModelError
from preprocessing.files import DISK_FULL

# In a run's folder.
CHECKPOINTS = "checkpoints"

# The newest checkpoint, and the one before it in case the newest is damaged.
KEPT = 2


def finished_checkpoints(folder: str | Path) -> list[str]:
    """Returns the complete checkpoints in a folder, oldest first."""
    state = tf.train.get_checkpoint_state(str(folder))
    return list(state.all_model_checkpoint_paths) if state else []


def remove_unfinished(manager: tf.train.CheckpointManager) -> None:
    """Removes files of incomplete checkpoints."""
    known = {Path(path).name for path in finished_checkpoints(manager.directory)}
    for path in Path(manager.directory).glob("ckpt-*"):
        if path.name.endswith("_temp"):
            shutil.rmtree(path)
        elif path.name.split(".")[0] not in known:
            path.unlink()


def restore(checkpoint: tf.train.Checkpoint, folder: Path, say: Callable[[str], None]) -> None:
    """Restores the newest readable checkpoint in a folder that has one; `say` tells of damaged ones.

    Raises ModelError if the checkpoint is of another network or training, or none can be read.
    """
    remedy = "Choose another output folder to train from the start."
    damage = "none"
    for path in reversed(finished_checkpoints(folder)):
        try:
            status = checkpoint.restore(path)
            # Or TensorFlow lists, at exit, each value that found no place.
            status.expect_partial()
            status.assert_existing_objects_matched()
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
def report_last_checkpoint(output: Path, manager: tf.train.CheckpointManager) -> Iterator[None]:
    """Adds the last good checkpoint to errors that end a training.

    Those are an InputError for a full disk, and ModelErrors (a loss not finite, or memory ran out).
    """
    try:
        yield
    except ModelError as error:
        remedy = f"{_last_checkpoint(manager)}{error.remedy}"
        raise ModelError(error.where, error.expected, error.found, remedy) from None
    except tf.errors.OpError as error:
        message = str(error.message).split("\n")[0]
        if any(os.strerror(number) in message for number in DISK_FULL):
            raise _disk_full(output, manager) from None
        if not isinstance(error, tf.errors.ResourceExhaustedError):
            raise
        remedy = f"{_last_checkpoint(manager)}Try a smaller batch_size, or smaller patches."
        raise ModelError(output, "memory for the network and its batch", message, remedy) from None
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise _disk_full(output, manager) from None


def _disk_full(output: Path, manager: tf.train.CheckpointManager) -> InputError:
    remove_unfinished(manager)
    remedy = f"{_last_checkpoint(manager)}Free disk space and run the same command to resume."
    return InputError(output, "room for the training's files", "a full disk", remedy)


def _last_checkpoint(manager: tf.train.CheckpointManager) -> str:
    newest = manager.latest_checkpoint
    return f"The last good checkpoint is {newest}. " if newest else ""
