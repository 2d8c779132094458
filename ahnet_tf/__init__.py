"""AH-Net in TensorFlow: segmentation and lesion detection in anisotropic medical volumes.

    import ahnet_tf

    segmenter = ahnet_tf.load("models/ahnet")
    result = segmenter.segment("ct.nii.gz")
    result.save("segmentation.nii.gz")

What is listed in `__all__` is imported on first use, and TensorFlow with it where it is needed.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ahnet_tf.api import build, dataset, loss, save, transfer
    from ahnet_tf.evaluate import score_cases
    from ahnet_tf.presets import run_config
    from ahnet_tf.segmenter import load
    from ahnet_tf.train import train_stages
    from preprocessing.convert import convert as convert_cases
    from preprocessing.tasks import Task, load_task

__all__ = (
    "Task",
    "build",
    "convert_cases",
    "dataset",
    "load",
    "load_task",
    "loss",
    "run_config",
    "save",
    "score_cases",
    "train_stages",
    "transfer",
)

_PLACES = {
    "Task": "preprocessing.tasks:Task",
    "convert_cases": "preprocessing.convert:convert",
    "load": "ahnet_tf.segmenter:load",
    "load_task": "preprocessing.tasks:load_task",
    "run_config": "ahnet_tf.presets:run_config",
    "score_cases": "ahnet_tf.evaluate:score_cases",
    "train_stages": "ahnet_tf.train:train_stages",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES.get(name, f"ahnet_tf.api:{name}").partition(":")
    with warnings.catch_warnings():
        # TensorFlow Addons warns at every import that its development has ended.
        warnings.filterwarnings("ignore", module="tensorflow_addons")
        return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
