"""Report: the model card of a run, and a sample of its evaluation cases as whole volumes.

The card in Markdown states intended use, data, training, scores and limits of the model. All of its
scores are the Evaluator's.
"""

# TFX reads the annotations of `write_report` at run time: no postponed evaluation here.

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import standard_artifacts
from tfx.types.experimental.simple_artifacts import File
from tfx.utils import io_utils, path_utils

from ahnet_tf.inference.predictor import open_predictor
from pipeline.components.anomaly_gate import read_statistics
from pipeline.components.case_volumes import (
    choose_cases,
    compare_scores,
    score_cases,
    write_cases,
)
from pipeline.components.data_checks import case_ids, data_facts
from pipeline.components.evaluator import read_refusals, read_scores
from pipeline.components.serving_check import BLESSED, evaluation_files, serving_sentence
from preprocessing.files import without_nan
from preprocessing.records.output_folder import MANIFEST
from preprocessing.tasks import task_from_dict

CARD_FILE = "model_card.md"
FACTS_FILE = "facts.json"
SCORES_FOLDER = "scores"
# Slices with fewer evaluation cases have little meaning.
FEW_CASES = 5


@component
def write_report(
    examples: InputArtifact[standard_artifacts.Examples],
    statistics: InputArtifact[standard_artifacts.ExampleStatistics],
    model: InputArtifact[standard_artifacts.Model],
    evaluation: InputArtifact[standard_artifacts.ModelEvaluation],
    blessing: InputArtifact[standard_artifacts.ModelBlessing],
    serving: InputArtifact[standard_artifacts.InfraBlessing],
    pushed_model: InputArtifact[standard_artifacts.PushedModel],
    report: OutputArtifact[File],
    settings: Parameter[str],
    manifest: InputArtifact[File] = None,
) -> None:
    """A component that writes the model card, and predicts a sample of cases with label maps.

    The sample is of the newest span's evaluation cases, whose `examples` and `statistics` these are;
    `serving` comes from ServingCheck or InfraValidator. `report` gets model_card.md, facts.json, and
    scores/ of the sample as `ahnet_tf.evaluate` writes it. `settings` is JSON with `name`, `task`,
    `config`, `thresholds`, `start`, `code_version`.
    """
    content = json.loads(settings)
    task = task_from_dict(content["task"])
    scores, gathered = read_scores(evaluation.uri), read_statistics(statistics)
    facts = content | {
        "data": data_facts(gathered, task),
        "shown": [],
        "conversion": conversion_facts(manifest.uri) if manifest else None,
        "scores": scores,
        "blessed": blessing.get_int_custom_property("blessed") == 1,
        "refusals": read_refusals(evaluation.uri),
        "pushed": pushed_model.get_string_custom_property("pushed_destination") or None,
        "serving": serving_sentence(serving.uri, serving.get_int_custom_property(BLESSED) == 1),
    }
    if task.target == "labels":
        facts["shown"] = choose_cases(scores, case_ids(gathered["eval"]), task)
        with tempfile.TemporaryDirectory() as folder:
            export, cases, output = (Path(folder) / name for name in ("export", "cases", "scores"))
            io_utils.copy_dir(path_utils.serving_model_path(model.uri), str(export))
            files = evaluation_files(examples)
            write_cases(files, open_predictor(export), facts["shown"], cases)
            score_cases(cases, output, task)
            facts["largest_difference"] = compare_scores(scores, output, task)
            io_utils.copy_dir(str(output), f"{report.uri}/{SCORES_FOLDER}")
    text = json.dumps(without_nan(facts), indent=2)
    io_utils.write_string_file(f"{report.uri}/{FACTS_FILE}", text)
    io_utils.write_string_file(f"{report.uri}/{CARD_FILE}", model_card(facts))


def model_card(facts: Mapping[str, Any]) -> str:
    """Returns the card in Markdown from the content of a report's facts.json."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    scores, config = facts["scores"], facts["config"]
    slices = {name: each for name, each in scores.items() if not name.startswith("case_id=")}
    return environment.get_template("report.md.jinja").render(
        facts,
        stages=[(stage, config[stage]) for stage in ("2d", "3d") if stage in config],
        slices=sorted(slices.items(), key=lambda item: item[0] != "overall"),
        limits=limits(facts),
    )


def limits(facts: Mapping[str, Any]) -> list[str]:
    """Returns the limits of the scores, and scores that speak against the model, a sentence each."""
    scores = facts["scores"]
    overall = scores["overall"]
    cases = int(overall["cases"])
    sentences = [f"All scores come from {cases} evaluation cases of the data described above."]
    for name in facts["task"]["class_names"][1:]:
        without = int(overall[f"cases_without_{name}"])
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
    for name, of_slice in scores.items():
        if not name.startswith(("case_id=", "overall")) and of_slice["cases"] < FEW_CASES:
            sentences.append(
                f"{name} has {of_slice['cases']:.0f} cases, too few to judge the model there."
            )
    seen = facts["data"].get("train", {}).get("spacing_classes", {})
    for name in ("thin", "medium", "thick"):
        if name not in seen:
            sentences.append(f"No training case has {name} slices.")
    return sentences


def conversion_facts(folder: str) -> dict[str, Any]:
    """Returns the outcome of a conversion from the folder of its manifest."""
    manifest = json.loads(io_utils.read_string_file(f"{folder}/{MANIFEST}"))
    rejected = [case for case in manifest["cases"] if case["status"] == "rejected"]
    reasons = [f"{case['case_id']}: {case['reason']}" for case in rejected]
    kept = ("found", "converted", "rejected", "splits", "settings")
    return {name: manifest[name] for name in kept} | {"reasons": reasons}
