"""Report: the model card of a run, and its evaluation cases scored as whole volumes.

The card in Markdown states intended use, data, training, scores and limits of the model.
"""

# TFX reads the annotations of `write_report` at run time: no postponed evaluation here.

import contextlib
import csv
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import jinja2
import numpy as np
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types import standard_artifacts
from tfx.types.experimental.simple_artifacts import File
from tfx.utils import io_utils, path_utils

from ahnet_tf.data.records import read_files
from ahnet_tf.evaluate import main as evaluate
from ahnet_tf.evaluation.summary import dice_columns
from ahnet_tf.inference.predictor import Predictor, open_predictor
from pipeline.components.anomaly_gate import read_statistics
from pipeline.components.data_checks import data_facts
from pipeline.components.evaluator import read_refusals, read_scores
from pipeline.components.serving_check import BLESSED, evaluation_files, serving_sentence
from preprocessing.errors import PipelineError
from preprocessing.files import without_nan, write_json
from preprocessing.records.output_folder import MANIFEST
from preprocessing.records.schema import CASE_ID, parse_example
from preprocessing.tasks import Task, task_from_dict
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.nifti import write_image

CARD_FILE = "model_card.md"
FACTS_FILE = "facts.json"
SCORES_FOLDER = "scores"
# Largest difference between the Evaluator's Dice and the scorer's, which count the same voxels.
AGREEMENT = 1e-6
# Slices with fewer evaluation cases have little meaning.
FEW_CASES = 5
_KINDS = ("images", "references", "predictions")


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
    """A component that writes the model card, and scores the classes of labels in whole cases.

    `examples` are of the newest span, whose evaluation cases are scored; `serving` comes from
    ServingCheck or InfraValidator. `report` gets model_card.md, facts.json, and scores/ as
    `ahnet_tf.evaluate` writes it. `settings` is JSON with `name`, `task`, `config`, `thresholds`,
    `start`, `code_version`.
    """
    content = json.loads(settings)
    task = task_from_dict(content["task"])
    scores = read_scores(evaluation.uri)
    facts = content | {
        "data": data_facts(read_statistics(statistics), task),
        "conversion": conversion_facts(manifest.uri) if manifest else None,
        "scores": scores,
        "blessed": blessing.get_int_custom_property("blessed") == 1,
        "refusals": read_refusals(evaluation.uri),
        "pushed": pushed_model.get_string_custom_property("pushed_destination") or None,
        "serving": serving_sentence(serving.uri, serving.get_int_custom_property(BLESSED) == 1),
    }
    if task.target == "labels":
        with tempfile.TemporaryDirectory() as folder:
            export, cases, output = (Path(folder) / name for name in ("export", "cases", "scores"))
            io_utils.copy_dir(path_utils.serving_model_path(model.uri), str(export))
            write_cases(evaluation_files(examples), open_predictor(export), cases)
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


def write_cases(files: Sequence[str], predictor: Predictor, folder: Path) -> None:
    """Predicts each patch by itself and assembles the cases that the patches tile.

    Patches neither overlap nor are blended, so the labels are exactly those that the Evaluator
    counts. Volumes are built on disk; only one patch is in memory. The subfolders images,
    references and predictions receive CASE.nii on the task's grid; the origin is the first voxel,
    because records don't store the case's own.
    """
    spacings_mm: dict[str, list[float]] = {}
    for kind in _KINDS:
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for serialized in read_files(files):
        record = parse_example(serialized, predictor.settings.task)
        case_id = record[CASE_ID].numpy().decode()
        image = record["image"].numpy()
        labels = predictor.predict(image[None])[0].argmax(axis=-1).astype(np.uint8)
        shape, origin, valid = (
            tuple(int(record[f"{name}_{axis}"]) for axis in "zyx")
            for name in ("volume", "origin", "valid")
        )
        place = tuple(slice(start, start + size) for start, size in zip(origin, valid, strict=True))
        patches = (image[..., 0], record["label"].numpy(), labels)
        for kind, patch_zyx in zip(_KINDS, patches, strict=True):
            path = folder / kind / f"{case_id}.npy"
            if case_id not in spacings_mm:
                np.lib.format.open_memmap(path, "w+", patch_zyx.dtype, shape)
            volume = np.load(path, mmap_mode="r+")
            volume[place] = patch_zyx[tuple(slice(size) for size in valid)]
            volume.flush()
        spacings_mm[case_id] = [float(record[f"spacing_{axis}_mm"]) for axis in "xyz"]
    for case_id, spacing_mm in spacings_mm.items():
        for kind in _KINDS:
            path = folder / kind / f"{case_id}.npy"
            voxels_xyz = np.load(path, mmap_mode="r").transpose(2, 1, 0)
            write_image(path.with_suffix(".nii"), Volume(voxels_xyz, np.diag([*spacing_mm, 1.0])))
            path.unlink()


def score_cases(cases: Path, output: Path, task: Task) -> None:
    """Scores predictions against references by `python -m ahnet_tf.evaluate`.

    References have the values of the task's classes. The command's output goes to scores.txt in
    `output`, its page of volumes to report.html. Raises PipelineError if a case can't be scored; the
    command has printed the reason.
    """
    images, references, predictions = (str(cases / kind) for kind in _KINDS)
    arguments = ["--input", predictions, "--reference", references, "--output", str(output)]
    arguments += ["--report", str(output / "report.html"), "--images", images]
    output.mkdir(parents=True)
    write_json(cases / "task.json", attrs.evolve(task, label_classes=None).to_dict())
    arguments += ["--task", str(cases / "task.json")]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = evaluate(arguments)
    (output / "scores.txt").write_text(printed.getvalue(), encoding="utf-8")
    if code:
        raise PipelineError("scores of whole cases", "every case scored", "see above")


def compare_scores(evaluated: Mapping[str, Mapping[str, float]], output: Path, task: Task) -> float:
    """Returns the largest difference between the Evaluator's Dice of a case and the scorer's.

    Raises PipelineError if it is above `AGREEMENT`.
    """
    with open(output / "scores.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    largest = 0.0
    for row in rows:
        case_id = row["case_id"]
        for name, key in zip(task.class_names[1:], dice_columns(task).values(), strict=True):
            dice = float(row[key])
            of_patches = evaluated[f"case_id={case_id}"][f"dice_{name}"]
            difference = abs(of_patches - dice)
            if not difference <= AGREEMENT:
                where = f"case {case_id}, Dice of {name}"
                expected = f"the Evaluator's {of_patches:.8f} within {AGREEMENT:g}"
                raise PipelineError(where, expected, f"{dice:.8f} from the whole volume")
            largest = max(largest, difference)
    return largest
