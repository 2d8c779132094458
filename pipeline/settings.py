"""What one pipeline is made of: records, networks, trainings, thresholds; plain data, as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ahnet_tf.config import ModelConfig, TrainingConfig, to_dict
from preprocessing.errors import SettingsError
from preprocessing.tasks import Task


@dataclass(frozen=True)
class PipelineSettings:
    """Everything that decides what a pipeline computes.

    Attributes:
      input: folder of converted records (train/, eval/, task.json).
      output: folder of the run; everything the pipeline writes lies in it.
      task: what the records hold; read from the input's task.json.
      model_2d: the network of the first stage.
      model_3d: the network of the second stage, which starts from the first one's encoder.
      training_2d: training of the first stage.
      training_3d: training of the second stage.
      thresholds: for each class that decides, the mean Dice per case that a model must reach.
      largest_loss: by how much that Dice may fall short of the last blessed model's.
      name: the pipeline's name in its metadata, and for the tfx command line.
    """

    input: str
    output: str
    task: Task
    model_2d: ModelConfig
    model_3d: ModelConfig
    training_2d: TrainingConfig
    training_3d: TrainingConfig
    thresholds: dict[str, float] = field(default_factory=dict)
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
        return to_dict(self)
