"""The card of a model as Markdown: what it is for, what it learned from, its scores and its limits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Slices of fewer evaluation cases say little by themselves.
FEW_CASES = 5
USES = {
    "labels": "Labelling {classes} in volumes, for research: measuring, sorting, first drafts of "
    "label maps that a person then corrects.",
    "heat_map": "Marking places in volumes that may hold a {classes}, for research: a person looks "
    "at every one of them.",
}
NOT_FOR = (
    "Diagnosis, therapy planning, or any other use in which nobody checks the result: this is "
    "research software, no medical device.",
    "Volumes whose spacing or intensities lie outside the ranges below; other body parts, "
    "scanners or protocols than those of the data.",
)
# How the names of scores of detected lesions begin.
DETECTION = ("lesion_recall", "false_positives", "sensitivity")
# Settings of a training that a reader asks for first.
_TRAINING = (
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
    """Returns the card.

    Args:
      facts: `name`, `task`, `config`, `data` (`pipeline.components.facts.data_facts`), `conversion` (or None),
        `scores` (by slice and name), `thresholds`, `blessed`, `refusals`, `pushed` (or None),
        `start` (what the 3D network began from), `code_version`, `serving` (a sentence).
    """
    return "\n\n".join(_sections(facts)) + "\n"


def limits(facts: Mapping[str, Any]) -> list[str]:
    """Returns what the scores do not tell, or tell against the model, a sentence each."""
    overall = facts["scores"]["overall"]
    cases = int(overall["cases"])
    sentences = [f"All scores come from {cases} evaluation cases of the data described above."]
    for name in facts["task"]["class_names"][1:]:
        without = int(overall[f"cases_without_{name}"])
        if without:
            sentences.append(
                f"{without} of them have no {name}: their Dice is 1 where none is found either, "
                "else 0."
            )
        worst = min(
            (scores[f"dice_{name}"], each.removeprefix("case_id="))
            for each, scores in facts["scores"].items()
            if each.startswith("case_id=")
        )
        sentences.append(f"The worst Dice of {name} is {worst[0]:.3f} (case {worst[1]}).")
    for each, scores in facts["scores"].items():
        if not each.startswith(("case_id=", "overall")) and scores["cases"] < FEW_CASES:
            sentences.append(
                f"{each} holds {scores['cases']:.0f} cases, too few to judge the model there."
            )
    seen = set(facts["data"].get("train", {}).get("spacing_classes", {}))
    for name in ("thin", "medium", "thick"):
        if name not in seen:
            sentences.append(f"No training case has {name} slices.")
    return sentences


def _sections(facts: Mapping[str, Any]) -> Iterator[str]:
    task, config = facts["task"], facts["config"]
    classes = ", ".join(task["class_names"][1:])
    model = config["3d"]["model"]
    yield f"# {facts['name']}: {model['architecture']} for {task['name']}"
    pushed = f"pushed to `{facts['pushed']}`" if facts["pushed"] else "not pushed"
    blessed = "blessed" if facts["blessed"] else "refused: " + "; ".join(facts["refusals"])
    yield _list(
        [
            f"Classes: {', '.join(task['class_names'])}; target: {task['target']}",
            f"Window of {_by(task['patch_shape_zyx'])} voxels (z, y, x), intensities from "
            f"{task['intensity_window'][0]:g} to {task['intensity_window'][1]:g}",
            f"Outcome: {blessed}; {pushed}",
            f"Serving: {facts['serving']}",
            f"Code version: {facts['code_version']}",
        ]
    )
    yield "## Intended use\n\n" + USES[task["target"]].format(classes=classes)
    yield "Not for:\n\n" + _list(NOT_FOR)
    yield "## Data"
    yield _data_table(facts["data"])
    if facts["conversion"]:
        conversion = facts["conversion"]
        yield (
            f"Converted {conversion['converted']} of {conversion['found']} cases found; "
            f"{conversion['rejected']} rejected."
        )
        if conversion["reasons"]:
            yield _list(conversion["reasons"])
    yield "## Training\n\nThe 3D network started from " + facts["start"] + "."
    yield _training_table(config)
    yield "## Scores"
    yield _scores_table(facts)
    overall = facts["scores"]["overall"]
    found = [name for name in overall if name.startswith(DETECTION)]
    if found:
        yield "Lesions found in all evaluation cases (FROC):\n\n" + _list(
            f"{name.replace('_', ' ')}: {_number(overall[name])}" for name in found
        )
    yield "## Limits\n\n" + _list(limits(facts))


def _data_table(data: Mapping[str, Any]) -> str:
    splits = sorted(data, reverse=True)
    rows = [["", *splits]]
    rows += [[name, *(str(data[split][name]) for split in splits)] for name in ("cases", "patches")]
    for name in ("sources", "spacing_classes"):
        rows.append(
            [name.replace("_", " "), *(", ".join(sorted(data[split][name])) for split in splits)]
        )
    for axis in "xyz":
        ranges = [data[split]["spacing_mm"][axis] for split in splits]
        rows.append([f"spacing {axis}, mm", *(f"{low:.3g} to {high:.3g}" for low, high in ranges)])
    for name in next(iter(data.values()))["intensities"]:
        ranges = [data[split]["intensities"][name] for split in splits]
        rows.append(
            [name.replace("_", " "), *(f"{r['low']:.0f} to {r['high']:.0f}" for r in ranges)]
        )
    for name in next(iter(data.values()))["mean_voxels_a_case"]:
        means = [data[split]["mean_voxels_a_case"][name] for split in splits]
        rows.append([f"voxels of {name} a case, mean", *(f"{mean:.0f}" for mean in means)])
    return _table(rows)


def _training_table(config: Mapping[str, Any]) -> str:
    stages = [stage for stage in ("2d", "3d") if stage in config]
    rows = [["", *stages], ["network", *(config[s]["model"]["architecture"] for s in stages)]]
    for name in _TRAINING:
        rows.append([name.replace("_", " "), *(str(config[s]["training"][name]) for s in stages)])
    return _table(rows)


def _scores_table(facts: Mapping[str, Any]) -> str:
    classes = facts["task"]["class_names"][1:]
    head = ["", "cases"]
    for name in classes:
        head += [f"Dice {name}", f"global {name}"]
    rows = [head]
    for each, scores in sorted(facts["scores"].items(), key=lambda item: item[0] != "overall"):
        if not each.startswith("case_id="):
            row = [each, f"{scores['cases']:.0f}"]
            for name in classes:
                row += [_number(scores[f"{kind}_{name}"]) for kind in ("dice", "dice_global")]
            rows.append(row)
    least = ", ".join(
        f"{score.replace('_', ' ')} {value:g}" for score, value in facts["thresholds"].items()
    )
    return _table(rows) + f"\n\nBlessed from: {least} (mean Dice per case)."


def _number(value: float | None) -> str:
    return "undefined" if value is None or math.isnan(value) else f"{value:.4f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _list(items: Sequence[str] | Iterator[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))
