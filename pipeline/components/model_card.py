"""Model card in Markdown: intended use, data, training, scores and limits of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

TEMPLATE = "model_card.md.jinja"
# Slices with fewer evaluation cases have little meaning.
FEW_CASES = 5
# First words of the scores of detected lesions.
LESION_SCORES = ("lesion_recall", "false_positives", "sensitivity")
TRAINING_SETTINGS = (
    "steps",
    "batch_size",
    "learning_rate",
    "warmup_steps",
    "decay",
    "loss",
    "gamma",
    "class_weights",
    "precision",
    "seed",
)


def model_card(facts: Mapping[str, Any]) -> str:
    """Returns the card from the content of a report's facts.json."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    scores, config = facts["scores"], facts["config"]
    slices = {name: each for name, each in scores.items() if not name.startswith("case_id=")}
    return environment.get_template(TEMPLATE).render(
        facts,
        stages=[(stage, config[stage]) for stage in ("2d", "3d") if stage in config],
        slices=sorted(slices.items(), key=lambda item: item[0] != "overall"),
        limits=limits(facts),
        TRAINING_SETTINGS=TRAINING_SETTINGS,
        LESION_SCORES=LESION_SCORES,
    )


def limits(facts: Mapping[str, Any]) -> list[str]:
    """Returns the limits of the scores, and scores that speak against the model, a sentence each."""
    scores = facts["scores"]
    cases = int(scores["overall"]["cases"])
    sentences = [f"All scores come from {cases} evaluation cases of the data described above."]
    for name in facts["task"]["class_names"][1:]:
        without = int(scores["overall"][f"cases_without_{name}"])
        if without:
            sentences.append(
                f"{without} of them have no {name}: their Dice is 1 if none is found either, else 0."
            )
        worst, case = min(
            (of_case[f"dice_{name}"], slice_name.removeprefix("case_id="))
            for slice_name, of_case in scores.items()
            if slice_name.startswith("case_id=")
        )
        sentences.append(f"The worst Dice of {name} is {worst:.3f} (case {case}).")
    for slice_name, of_slice in scores.items():
        if not slice_name.startswith(("case_id=", "overall")) and of_slice["cases"] < FEW_CASES:
            sentences.append(
                f"{slice_name} has {of_slice['cases']:.0f} cases, too few to judge the model there."
            )
    seen = facts["data"].get("train", {}).get("spacing_classes", {})
    for name in ("thin", "medium", "thick"):
        if name not in seen:
            sentences.append(f"No training case has {name} slices.")
    return sentences
