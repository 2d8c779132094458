"""Segments whole volumes: NIfTI or DICOM in, label maps on the input's own grid out.

python -m ahnet_tf.predict --model models/ahnet cases/ predictions/
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ahnet_tf.inference.case_output import LESION_FILE, predict_case, write_lesion_table
from ahnet_tf.inference.dry_run import print_expectations
from ahnet_tf.inference.ensemble import flipped_predictor, mean_predictor
from ahnet_tf.inference.options import (
    add_model_options,
    add_output_options,
    add_window_options,
    settings_of,
)
from ahnet_tf.inference.postprocessing import check_has_organ
from ahnet_tf.inference.prediction_record import (
    RECORD_FILE,
    content_digest,
    finished_cases,
    image_state,
    prediction_name,
    shown_input,
)
from ahnet_tf.inference.predictor import Predictor, open_predictor
from preprocessing.allowances import parse_allowances
from preprocessing.cli import make_parser, run_command
from preprocessing.datasets.case import Case
from preprocessing.datasets.discovery import find_cases
from preprocessing.datasets.reading import is_dicom_image
from preprocessing.dicom.segmentation import Software
from preprocessing.errors import InputError, ModelError, SettingsError
from preprocessing.files import DISK_FULL, write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m ahnet_tf.predict`."""
    parser = make_parser(
        "ahnet_tf.predict",
        "Segments volumes with an exported model, a checkpoint or a server. Writes a label map for "
        "each case on the case's own grid (volume-3.nii.gz gives segmentation-3.nii.gz, others "
        f"CASE.nii.gz), {LESION_FILE} where the task is lesions, and {RECORD_FILE} with the settings. A "
        "case that can't be read is named and left out; the exit code is then 1.",
        [
            "python -m ahnet_tf.predict --model models/ahnet cases/ predictions/",
            "python -m ahnet_tf.predict --target localhost:8500 ct.nii.gz predictions/ --overlay",
            "python -m ahnet_tf.predict --model run/ahnet volume-1.nii volume-2.nii predictions/ "
            "--overlap 0.5 --largest-component",
            "python -m ahnet_tf.predict --model fold-0 --model fold-1 --flips xy cases/ predictions/ "
            "--resume",
            "python -m ahnet_tf.predict --model models/ahnet dicom_study/ predictions/ --dicom-seg",
        ],
    )
    add_model_options(parser)
    add_window_options(parser)
    add_output_options(parser)
    # Options may stand between the paths too.
    return run_command(_run, parser.parse_intermixed_args(argv))


def _run(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    allow = parse_allowances(arguments.allow)
    output = Path(arguments.output)
    cases = find_cases(arguments.input, need_labels=False)
    _check_output(arguments.input, cases, output)
    if arguments.dicom_seg:
        _check_dicom(cases)
    locations = [arguments.target] if arguments.target else arguments.model
    predictors = [open_predictor(each, arguments.precision) for each in locations]
    predictor = mean_predictor(predictors, locations)
    _check_channels(predictor, locations[0])
    task = predictor.settings.task
    if settings.lesions_in_organ:
        check_has_organ(len(task.class_names))
    models = [
        {
            "location": location,
            "sha256": content_digest(location),
            "settings": each.settings.to_dict(),
        }
        for location, each in zip(locations, predictors, strict=True)
    ]
    record = {
        "models": models,
        "precision": arguments.precision,
        "flips": arguments.flips,
        "input": [shown_input(path, cases) for path in arguments.input],
        "settings": dataclasses.asdict(settings)
        | {name: getattr(arguments, name) for name in ("overlay", "dicom_seg")}
        | {"allow": sorted(allow)},
    }
    software = _software(models) if arguments.dicom_seg else None
    entries = finished_cases(output, record) if arguments.resume else {}
    predictor = flipped_predictor(predictor, arguments.flips)
    if arguments.dry_run:
        left = [case for case in cases if case.case_id not in entries]
        return print_expectations(left, predictor, settings, allow)
    try:
        # Written first too: it marks the folder as one of predictions.
        _write_record(output, record, cases, entries)
        for case in cases:
            entry = entries.get(case.case_id)
            if entry is None or entry["image_state"] != image_state(case.image_path):
                entries[case.case_id] = predict_case(
                    case,
                    predictor,
                    settings,
                    output,
                    overlay=arguments.overlay,
                    dicom_seg=software,
                    allow=allow,
                    debug=arguments.debug,
                )
                _write_record(output, record, cases, entries)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        remedy = "The finished cases are kept; make room and go on with --resume."
        raise InputError(output, "room for the predictions", error.strerror, remedy) from None
    return _summed_up(entries.values())


def _write_record(
    output: Path,
    record: dict[str, Any],
    cases: Sequence[Case],
    entries: dict[str, dict[str, Any]],
) -> None:
    """Writes the record with the cases that are done, and the lesions of all of them."""
    done = [entries[case.case_id] for case in cases if case.case_id in entries]
    write_json(output / RECORD_FILE, record | {"cases": done})
    if any("lesions" in entry for entry in done):
        write_lesion_table(output, cases, done)


def _software(models: Sequence[dict[str, Any]]) -> Software:
    """Returns what a DICOM SEG names as its maker: the models by the digests in the record."""
    settings = models[0]["settings"]
    return Software(
        name="ahnet-tf",
        version=importlib.metadata.version("ahnet-tf"),
        algorithm=f"{settings['model']['architecture']} {settings['task']['name']}"[:64],
        serial_number="+".join((model["sha256"] or "served")[:15] for model in models)[:64],
    )


def _check_channels(predictor: Predictor, location: str) -> None:
    channels = predictor.settings.model.channels
    if channels != 1:
        raise ModelError(location, "a network of 1 channel, which volumes have", channels)


def _check_dicom(cases: Sequence[Case]) -> None:
    for case in cases:
        if not is_dicom_image(case.image_path):
            raise SettingsError("--dicom-seg", "DICOM images to refer to", f"case {case.case_id}")


def _summed_up(entries: Collection[dict[str, Any]]) -> int:
    """Prints how many cases failed, if any; returns the exit code."""
    failed = sum(entry["status"] == "failed" for entry in entries)
    if failed:
        print(f"{failed} of {len(entries)} cases failed", file=sys.stderr)
    return 1 if failed else 0


def _check_output(inputs: Sequence[str], cases: Sequence[Case], output: Path) -> None:
    """Refuses an output where predictions would be taken for input, or replace a reference.

    LiTS keeps images and label maps side by side, named as predictions are.
    """
    for path in map(Path, inputs):
        place = output.resolve()
        if path.is_dir() and path.resolve() in (place, *place.parents):
            raise SettingsError(
                "OUT",
                "a folder outside the input",
                f"{output} in {path}",
                "The next run would take predictions for cases.",
            )
    if (output / RECORD_FILE).is_file():
        return
    for case in cases:
        target = output / prediction_name(case.case_id)
        if target.exists():
            raise SettingsError(
                "OUT",
                f"an empty folder or one of earlier predictions (with {RECORD_FILE})",
                f"{target}, which would be overwritten",
                "Give predictions a folder of their own.",
            )


if __name__ == "__main__":
    sys.exit(main())
