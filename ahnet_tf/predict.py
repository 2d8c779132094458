"""Segments whole volumes: NIfTI or DICOM in, label maps on the grid of the input out.

python -m ahnet_tf.predict --model models/ahnet cases/ predictions/
"""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ahnet_tf.inference.case_output import (
    output_names,
    predict_case,
    redraw_case,
    software_of,
)
from ahnet_tf.inference.ensemble import flip_axes, flipped_predictor, mean_predictor
from ahnet_tf.inference.lesion_nms import DetectionSettings
from ahnet_tf.inference.predictor import (
    BACKENDS,
    PRECISIONS,
    Predictor,
    content_digest,
    is_address,
    open_predictor,
)
from ahnet_tf.inference.run_record import (
    LESION_FILE,
    RECORD_FILE,
    changed_settings,
    check_files,
    finished_cases,
    only_run_in,
    other_cases,
    read_record,
    remove_stale_files,
    stale_files,
    write_record,
)
from ahnet_tf.inference.segment import PredictionSettings, check_postprocessing
from preprocessing.cli import add_allow_option, make_parser, parse_allowances, run_command
from preprocessing.datasets.bcs_dbt import VolumeKey
from preprocessing.datasets.case import Case
from preprocessing.datasets.detection_table import Detection
from preprocessing.datasets.discovery import discover
from preprocessing.datasets.reading import is_dicom_image, read_case_label
from preprocessing.dicom.deidentify import redact_path
from preprocessing.errors import InputError, SettingsError
from preprocessing.files import DISK_FULL
from preprocessing.settings import to_dict
from preprocessing.tasks import Task
from preprocessing.volumes.geometry import Volume

DEFAULTS = PredictionSettings()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m ahnet_tf.predict`; returns its exit code."""
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
    _add_input_options(parser)
    _add_result_options(parser)
    # Intermixed, so that options may stand between the paths.
    return run_command(_run, parser.parse_intermixed_args(argv))


def _add_input_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("input", nargs="+", metavar="IN", help="images (NIfTI, DICOM), or folders of cases")
    add("output", metavar="OUT", help="folder for label maps")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--model",
        action="append",
        metavar="DIR",
        help="SavedModel (or a folder of numbered versions: the newest), or checkpoint; repeat it to "
        "average several",
    )
    server_help = "model server with TF Serving's gRPC interface"
    source.add_argument("--target", metavar="HOST:PORT[/NAME]", help=server_help)
    backend_help = (
        "what computes; auto: OpenVINO where it is installed and there is no GPU (default: auto)"
    )
    add("--backend", choices=BACKENDS, default="auto", help=backend_help)
    precision_help = "arithmetic (default: the network's own; another one needs OpenVINO)"
    add("--precision", choices=PRECISIONS, help=precision_help)
    add("--resume", action="store_true", help="skip cases predicted earlier with these settings")
    add_allow_option(parser)
    overlap_help = "overlap of neighbouring windows, 0 to below 1"
    _add_number(parser, "--overlap", DEFAULTS.overlap, "F", overlap_help)
    _add_number(parser, "--batch-size", DEFAULTS.batch_size, "N", "windows at a time")
    add(
        "--flips",
        default="",
        metavar="AXES",
        help="also predict each window mirrored along these of x, y and z, and average; each axis "
        "doubles the time (default: none)",
    )


def _add_result_options(parser: argparse.ArgumentParser) -> None:
    flag = functools.partial(parser.add_argument, action="store_true")
    flag("--largest-component", help="keep only the largest foreground region: liver with tumours")
    flag("--lesions-in-organ", help="remove lesions that don't touch the organ (the liver)")
    flag("--probabilities", help="also write a probability map of each class to OUT/probabilities")
    flag("--overlay", help="also draw each case to OUT/overlays, with its reference labels if any")
    flag(
        "--dicom-seg",
        help="also write a DICOM SEG of each DICOM image to OUT/dicom_seg; unlike all other outputs "
        "it contains the patient's name and number, as the standard requires",
    )
    smallest_help = "remove smaller lesions; in the organ they become organ"
    smallest = DEFAULTS.smallest_lesion_mm3
    _add_number(parser, "--smallest-lesion-mm3", smallest, "V", smallest_help)
    threshold_help = f"lowest score of a lesion in {LESION_FILE}"
    _add_number(parser, "--threshold", DetectionSettings.threshold, "P", threshold_help)
    most_help = f"largest number of lesions per volume in {LESION_FILE}"
    _add_number(parser, "--most-lesions", DetectionSettings.most, "N", most_help)


def _add_number(
    parser: argparse.ArgumentParser, name: str, default: float, metavar: str, text: str
) -> None:
    """Adds an option for a number of the default's type."""
    text += " (default %(default)s)"
    parser.add_argument(name, type=type(default), default=default, metavar=metavar, help=text)


def _settings(arguments: argparse.Namespace) -> PredictionSettings:
    """Returns the settings from the command line, checked before anything slow happens."""
    if arguments.target is not None and not is_address(arguments.target):
        raise SettingsError("--target", "HOST:PORT or HOST:PORT/NAME", arguments.target)
    flip_axes(arguments.flips)
    return PredictionSettings(
        overlap=arguments.overlap,
        batch_size=arguments.batch_size,
        largest_component=arguments.largest_component,
        lesions_in_organ=arguments.lesions_in_organ,
        smallest_lesion_mm3=arguments.smallest_lesion_mm3,
        probabilities=arguments.probabilities,
        detection=DetectionSettings(arguments.threshold, arguments.most_lesions),
    )


def _run(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    allow = parse_allowances(arguments.allow)
    output = Path(arguments.output)
    found = discover(arguments.input, need_labels=False)
    cases = found.cases
    for line in found.lines():
        print(line, file=sys.stderr)
    _check_output(arguments.input, output)
    for case in cases:
        if arguments.dicom_seg and not is_dicom_image(case.path):
            raise SettingsError("--dicom-seg", "DICOM images to refer to", f"case {case.case_id}")
    locations = [arguments.target] if arguments.target else arguments.model
    predictors = [
        open_predictor(each, backend=arguments.backend, precision=arguments.precision)
        for each in locations
    ]
    predictor = mean_predictor(predictors, locations)
    task = predictor.settings.task
    check_postprocessing(settings, task)
    digests = [content_digest(location) for location in locations]
    record = {
        "models": [
            {"location": location, "sha256": digest, "settings": each.settings.to_dict()}
            | ({} if each.version is None else {"version": each.version})
            for location, digest, each in zip(locations, digests, predictors, strict=True)
        ],
        "precision": "+".join(sorted({each.settings.precision for each in predictors})),
        **_backend_record(predictors),
        "flips": arguments.flips,
        "input": [_shown_input(path, cases) for path in arguments.input],
        "settings": to_dict(settings)
        | {"blend": "gaussian", "overlay": arguments.overlay, "dicom_seg": arguments.dicom_seg}
        | {"allow": sorted(allow)},
        **found.record(),
    }
    software = software_of(predictor.settings, digests) if arguments.dicom_seg else None
    draw = functools.partial(_draw_overlay, task, allow) if arguments.overlay else None

    def names_of(some: Sequence[Case]) -> list[str]:
        flags = {"dicom_seg": arguments.dicom_seg, "picture": arguments.overlay}
        names = (output_names(case.case_id, task, settings, **flags) for case in some)
        return list(itertools.chain(*names))

    tables = [LESION_FILE] if task.target == "heat_map" else []
    entries: dict[str, dict[str, Any]] = {}
    others: list[tuple[VolumeKey, dict[str, Any]]] = []
    options = {"allow": allow, "debug": arguments.debug}
    predictor = flipped_predictor(predictor, arguments.flips)
    with only_run_in(output):
        earlier = read_record(output)
        if arguments.resume:
            entries = finished_cases(output, record, cases, earlier)
        if not changed_settings(record, earlier):
            others = other_cases(output, cases, earlier)
        stale = stale_files(earlier, [*entries.values(), *(entry for _, entry in others)])
        # LiTS stores images and label maps side by side, with the same names as predictions.
        check_files(output, cases, names_of(cases) + tables, stale, earlier)
        remove_stale_files(output, stale)
        todo = [case for case in cases if draw is not None or case.case_id not in entries]
        write = functools.partial(write_record, output, record, cases, entries, others)
        try:
            # Written before the first case: the record marks the folder as one of predictions.
            write(names_of(todo[:1]))
            for number, case in enumerate(todo, start=1):
                if case.case_id not in entries:
                    entries[case.case_id] = predict_case(
                        case, predictor, settings, output, draw=draw, dicom_seg=software, **options
                    )
                elif draw is not None:
                    redraw_case(case, entries[case.case_id], task, output, draw, **options)
                write(names_of(todo[number : number + 1]))
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            remedy = "The finished cases are kept; make room and continue with --resume."
            raise InputError(output, "room for the predictions", error.strerror, remedy) from None
    failed = sum(entry["status"] == "failed" for entry in entries.values())
    if failed:
        print(f"{failed} of {len(entries)} cases failed", file=sys.stderr)
    return 1 if failed else 0


def _backend_record(predictors: Sequence[Predictor]) -> dict[str, str]:
    """Returns what computes; nothing for TensorFlow or a server, as in records of version 0.1."""
    used = sorted({each.backend for each in predictors})
    return {"backend": "+".join(used)} if "openvino" in used else {}


def _check_output(inputs: Sequence[str], output: Path) -> None:
    """Checks that predictions can't be mistaken for input by the next run."""
    place = output.resolve()
    for path in map(Path, inputs):
        if path.is_dir() and path.resolve() in (place, *place.parents):
            found = f"{output} in {path}"
            remedy = "The next run would take predictions for cases."
            raise SettingsError("OUT", "a folder outside the input", found, remedy)


def _shown_input(path: str, cases: Sequence[Case]) -> str:
    """Returns an input path without the parts that identify a patient of the cases below it."""
    inside = [case for case in cases if case.path.is_relative_to(path)]
    identifying = {each for case in inside for each in case.identifiers}
    return redact_path(path, identifying) if identifying else path


def _draw_overlay(
    task: Task,
    allow: Collection[str],
    case: Case,
    volume: Volume,
    labels: np.ndarray,
    lesions: Sequence[Detection],
    picture: Path,
) -> None:
    """Draws a case with its label map [x, y, z] and detections, and with its reference if any."""
    # Slow to import, and needed with --overlay only.
    from ahnet_tf.report.overlay import overlay_case

    reference = None
    if case.label_path is not None:
        reference = read_case_label(case, task, volume, allow=allow).voxels
    overlay_case(picture, volume, labels, reference, task, case.case_id, lesions)


if __name__ == "__main__":
    sys.exit(main())
