"""What people read of a run: the model card, and the evaluation cases scored as whole volumes."""

# TFX reads the annotations of `write_report` as they stand: no postponed evaluation here.

import contextlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfx.dsl.component.experimental.annotations import (
    InputArtifact,
    OutputArtifact,
    Parameter,
)
from tfx.dsl.component.experimental.decorators import component
from tfx.types import artifact_utils, standard_artifacts
from tfx.types.experimental.simple_artifacts import File
from tfx.utils import io_utils, path_utils

from ahnet_tf.evaluate import TASK as SCORED_TASK
from ahnet_tf.evaluate import main as evaluate
from ahnet_tf.inference.predictor import open_predictor
from pipeline.components.anomaly_gate import EVALUATION_SPLIT, read_all_statistics
from pipeline.components.case_volumes import IMAGES, PREDICTIONS, REFERENCES, write_cases
from pipeline.components.evaluator import read_refusals, read_scores
from pipeline.components.facts import conversion_facts, data_facts
from pipeline.components.model_card import model_card
from pipeline.components.serving_check import BLESSED, serving_sentence
from pipeline.components.trainer import record_files
from preprocessing.errors import PipelineError
from preprocessing.files import without_nan
from preprocessing.tasks import task_from_dict

CARD_FILE = "model_card.md"
FACTS_FILE = "facts.json"
SCORES_FOLDER = "scores"
PRINTED_FILE = "scores.txt"
PAGE_FILE = "report.html"
# The Evaluator and the scorer count the same voxels of the same labels.
AGREEMENT = 1e-6


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
    """A component that writes the model card and the scores of whole evaluation cases.

    Args:
      examples: the newest, whose evaluation cases are put together and scored.
      statistics: of the examples.
      model: the exported network.
      evaluation: the Evaluator's scores.
      blessing: the Evaluator's verdict.
      serving: whether a server could answer with the model.
      pushed_model: where it was pushed to, if it was.
      report: model_card.md, facts.json, and for liver and tumour scores/ as `ahnet_tf.evaluate` writes it.
      settings: JSON with `name`, `task`, `config`, `thresholds`, `start`, `code_version`.
      manifest: of the conversion, if the pipeline made one.
    """
    content = json.loads(settings)
    task = task_from_dict(content["task"])
    scores = read_scores(evaluation.uri)
    facts = content | {
        "data": data_facts(read_all_statistics(statistics), task),
        "conversion": conversion_facts(manifest.uri if manifest else None),
        "scores": scores,
        "blessed": blessing.get_int_custom_property("blessed") == 1,
        "refusals": read_refusals(evaluation.uri),
        "pushed": pushed_model.get_string_custom_property("pushed_destination") or None,
        "serving": serving_sentence(
            serving.uri, {BLESSED: serving.get_int_custom_property(BLESSED)}
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        if task.class_names == SCORED_TASK.class_names:
            split = artifact_utils.get_split_uri([examples], EVALUATION_SPLIT)
            export = Path(folder) / "export"
            io_utils.copy_dir(path_utils.serving_model_path(model.uri), str(export))
            cases = Path(folder) / "cases"
            write_cases(record_files([f"{split}/*"]), open_predictor(export), cases)
            output = Path(folder) / SCORES_FOLDER
            score_cases(cases, output)
            facts["largest_difference"] = compare_scores(scores, output)
            io_utils.copy_dir(str(output), f"{report.uri}/{SCORES_FOLDER}")
    io_utils.write_string_file(
        f"{report.uri}/{FACTS_FILE}", json.dumps(without_nan(facts), indent=2)
    )
    io_utils.write_string_file(f"{report.uri}/{CARD_FILE}", model_card(facts))


def score_cases(cases: Path, output: Path) -> None:
    """Scores predictions against references by `python -m ahnet_tf.evaluate`.

    What the command prints goes to scores.txt in `output`, its page with volumes to report.html.

    Raises:
      PipelineError: a case can't be scored; the command's own message stands above.
    """
    arguments = ["--input", cases / PREDICTIONS, "--reference", cases / REFERENCES]
    arguments += ["--output", output, "--report", output / PAGE_FILE, "--images", cases / IMAGES]
    output.mkdir(parents=True)
    with (
        open(output / PRINTED_FILE, "w", encoding="utf-8") as printed,
        contextlib.redirect_stdout(printed),
    ):
        code = evaluate([str(each) for each in arguments])
    if code:
        raise PipelineError("scores of whole cases", "every case scored", "see above")


def compare_scores(evaluated: Mapping[str, Mapping[str, float]], output: Path) -> float:
    """Returns the largest difference between the Evaluator's Dice of a case and the scorer's.

    Raises:
      PipelineError: it is above `AGREEMENT`.
    """
    record: dict[str, Any] = json.loads((output / "scores.json").read_text(encoding="utf-8"))
    largest = 0.0
    for case_id, scored in record["cases"].items():
        whole = {"liver": scored["liver"]["dice"], "tumour": scored["lesion_dice"]}
        for name, dice in whole.items():
            both = (evaluated[f"case_id={case_id}"][f"dice_{name}"], dice)
            largest = max(largest, abs(both[0] - both[1]))
            if not abs(both[0] - both[1]) <= AGREEMENT:
                raise PipelineError(
                    f"case {case_id}, Dice of {name}",
                    f"the Evaluator's {both[0]:.8f} within {AGREEMENT:g}",
                    f"{both[1]:.8f} from the whole volume",
                )
    return largest
