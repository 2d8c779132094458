"""What one pipeline is made of: records, trainings, thresholds; plain data, as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ahnet_tf.presets import RunConfig
from preprocessing.errors import SettingsError
from preprocessing.tasks import Task

# Record files of a split's folder.
RECORD_PATTERN = "*.tfrecord*"


@dataclass(frozen=True)
class PipelineSettings:
    """Everything that decides what a pipeline computes.

    Attributes:
      input: folder of converted records (train/, eval/, task.json).
      output: folder of the run; everything the pipeline writes lies in it.
      task: what the records hold.
      config: networks and trainings of both stages.
      thresholds: for each class that decides, the mean Dice per case that a model must reach.
      largest_loss: by how much that Dice may fall short of the last blessed model's.
      name: the pipeline's name in its metadata, and for the tfx command line.
    """

    input: str
    output: str
    task: Task
    config: RunConfig
    thresholds: dict[str, float]
    largest_loss: float = 0.0
    name: str = "ahnet"

    def __post_init__(self):
        names = self.task.class_names[1:]
        if not self.thresholds:
            raise SettingsError("thresholds", f"one or more of {', '.join(names)}", "none")
        for name, least in self.thresholds.items():
            if name not in names:
                raise SettingsError("thresholds", f"classes among {', '.join(names)}", repr(name))
            if not 0 <= least <= 1:
                raise SettingsError(f"threshold of {name}", "a Dice from 0 to 1", least)
        if not 0 <= self.largest_loss <= 1:
            raise SettingsError("largest_loss", "a Dice from 0 to 1", self.largest_loss)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain JSON types."""
        return vars(self) | {"task": self.task.to_dict(), "config": self.config.to_dict()}
