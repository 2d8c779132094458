"""Which earlier model a new one is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from ml_metadata import MetadataStore
from tfx.dsl.components.common.resolver import ResolverStrategy
from tfx.types import Artifact


class EarlierBlessedModel(ResolverStrategy):
    """Resolves the latest blessed model that is not the current one itself.

    TFX's own LatestBlessedModelStrategy gives, once a model is blessed, that very model: the next
    run with nothing changed would then evaluate it anew, against itself. This one leaves it out,
    so that such a run finds the Evaluator's inputs unchanged, and executes nothing.
    """

    def resolve_artifacts(
        self, store: MetadataStore, input_dict: dict[str, list[Artifact]]
    ) -> dict[str, list[Artifact]]:
        """Returns `model` and `model_blessing` with one artifact each, or none."""
        current = {model.id for model in input_dict["current"]}
        blessings = blessings_by_model(input_dict["model_blessing"])
        models = [
            model
            for model in input_dict["model"]
            if model.id in blessings and model.id not in current
        ]
        latest = max(models, key=lambda model: model.id, default=None)
        return {
            "current": input_dict["current"],
            "model": [latest] if latest else [],
            "model_blessing": [blessings[latest.id]] if latest else [],
        }


def blessings_by_model(blessings: Sequence[Artifact]) -> dict[int, Artifact]:
    """Returns the artifacts that bless a model, by the model's id; refusals are left out."""
    return {
        blessing.get_int_custom_property("current_model_id"): blessing
        for blessing in blessings
        if blessing.get_int_custom_property("blessed") == 1
    }
