"""Trainings whose folders lie in an object store: they work on this machine's disk, and copy."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

from tfx.components.trainer.fn_args_utils import FnArgs
from tfx.utils import io_utils

from preprocessing.storage import is_local

RunFn = Callable[[FnArgs], None]


def on_local_disk(run_fn: RunFn) -> RunFn:
    """Returns a TFX training function that sees folders of this machine, wherever the artifacts lie.

    A base model is copied here before the training; what the training made, to its address after it.
    A training in an object store that is killed therefore starts anew. Records are read where they
    lie. Where all folders are local nothing is copied.
    """

    @functools.wraps(run_fn)
    def run(fn_args: FnArgs) -> None:
        addresses = (fn_args.serving_model_dir, fn_args.model_run_dir, fn_args.base_model)
        if all(is_local(address) for address in addresses if address):
            run_fn(fn_args)
            return
        with tempfile.TemporaryDirectory() as folder:
            here = copy.copy(fn_args)
            model, name = fn_args.serving_model_dir.rsplit("/", 1)
            here.serving_model_dir = f"{folder}/output/model/{name}"
            here.model_run_dir = f"{folder}/output/model_run/run"
            if fn_args.base_model:
                base, name = fn_args.base_model.rsplit("/", 1)
                io_utils.copy_dir(base, f"{folder}/base")
                here.base_model = f"{folder}/base/{name}"
            run_fn(here)
            io_utils.copy_dir(str(Path(here.serving_model_dir).parent), model)
            io_utils.copy_dir(here.model_run_dir, fn_args.model_run_dir)

    return run
