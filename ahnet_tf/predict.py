"""Segments whole volumes: NIfTI or DICOM in, label maps on the input's own grid out.

python -m ahnet_tf.predict --model models/ahnet --input cases/ --output predictions/
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ahnet_tf.predictors import PRECISIONS, Predictor, is_address, open_predictor
from ahnet_tf.segmentation import PredictionSettings, segment_volume
from ahnet_tf.windows import BLENDS, plan_windows
from preprocessing.allowances import ALLOWANCES, parse_allowances
from preprocessing.case import Case, public, shown
from preprocessing.cases import find_cases
from preprocessing.command import make_parser, run_command
from preprocessing.dicom_identity import shown_path
from preprocessing.errors import AHNetError, InputError, SettingsError
from preprocessing.files import write_json
from preprocessing.nifti import check_pair, write_image, write_label
from preprocessing.reading import is_dicom_image, read_image_of, read_label_of
from preprocessing.volume import Volume, spacing_mm

RECORD_FILE = "prediction.json"

_LITS_CASE = re.compile(r"^volume-(\d+)$")


def prediction_name(case_id: str) -> str:
    """Returns the file name of a case's label map; `python -m ahnet_tf.evaluate` looks for it.

    LiTS' volume-3 gives segmentation-3.nii.gz, every other case CASE.nii.gz.
    """
    lits = _LITS_CASE.match(case_id)
    return f"segmentation-{lits[1]}.nii.gz" if lits else f"{case_id}.nii.gz"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m ahnet_tf.predict`."""
    parser = make_parser(
        "ahnet_tf.predict",
        "Segments volumes with an exported model, a checkpoint or a server. Writes a label map for "
        "each case on the case's own grid (volume-3.nii.gz gives segmentation-3.nii.gz, others "
        "CASE.nii.gz) and prediction.json with the settings. A case that can't be read is named "
        "and left out; the exit code is then 1.",
        [
            "python -m ahnet_tf.predict --model models/ahnet --input cases/ --output predictions/",
            "python -m ahnet_tf.predict --target localhost:8500 --input ct.nii.gz "
            "--output predictions/ --overlay",
            "python -m ahnet_tf.predict --model run/ahnet --input volume-1.nii volume-2.nii "
            "--output predictions/ --overlap 0.5 --largest-component",
        ],
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--model",
        metavar="DIR",
        help="SavedModel folder (or a folder of numbered versions: the newest), or checkpoint",
    )
    source.add_argument(
        "--target", metavar="HOST:PORT[/NAME]", help="model server that speaks TF Serving's gRPC"
    )
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="IN",
        help="images (NIfTI, DICOM), or folders of cases",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for label maps")
    parser.add_argument(
        "--overlap",
        type=float,
        default=PredictionSettings.overlap,
        metavar="F",
        help="overlap of neighbouring windows, 0 to below 1 (default %(default)s)",
    )
    parser.add_argument(
        "--blend",
        choices=BLENDS,
        default=PredictionSettings.blend,
        help="weights where windows overlap (default %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=PredictionSettings.batch_size,
        metavar="N",
        help="windows computed at a time (default %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="what a checkpoint computes in: bfloat16 takes less time and memory, and its "
        "probabilities differ in the third digit (default %(default)s)",
    )
    parser.add_argument(
        "--largest-component",
        action="store_true",
        help="keep only the largest connected foreground region: the liver with its tumours",
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="also write a probability map for each class to DIR/probabilities",
    )
    parser.add_argument(
        "--allow",
        default="",
        metavar="CHECK,...",
        help=f"take DICOM series although they fail a check: {', '.join(ALLOWANCES)} "
        "(python -m preprocessing.convert --help says what each does)",
    )
    parser.add_argument(
        "--overlay",
        action="store_true",
        help="also draw each case to DIR/overlays, with its reference labels if there are any",
    )
    arguments = parser.parse_args(argv)
    return run_command(_run, arguments)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.target is not None and not is_address(arguments.target):
        raise SettingsError("--target", "HOST:PORT or HOST:PORT/NAME", arguments.target)
    settings = PredictionSettings(
        arguments.overlap,
        arguments.blend,
        arguments.batch_size,
        arguments.largest_component,
        arguments.probabilities,
    )
    if settings.batch_size < 1:
        raise SettingsError("--batch-size", "at least 1", settings.batch_size)
    allow = parse_allowances(arguments.allow)
    # Refuses an overlap out of range before anything slow happens.
    plan_windows((1, 1, 1), (1, 1, 1), settings.overlap)
    output = Path(arguments.output)
    cases = find_cases(arguments.input, need_labels=False)
    _check_output(arguments.input, cases, output)
    predictor = open_predictor(arguments.target or arguments.model, arguments.precision)
    record = {
        "model": arguments.target or arguments.model,
        "model_settings": predictor.settings.to_dict(),
        "precision": arguments.precision,
        "input": [_shown_input(path, cases) for path in arguments.input],
        "settings": dataclasses.asdict(settings) | {"allow": sorted(allow)},
        "cases": [],
    }
    # Written first too: it marks the folder as one of predictions.
    write_json(output / RECORD_FILE, record)
    for case in cases:
        record["cases"].append(_predict_or_report(case, predictor, settings, arguments))
        write_json(output / RECORD_FILE, record)
    failed = sum(case["status"] == "failed" for case in record["cases"])
    if failed:
        print(f"{failed} of {len(cases)} cases failed", file=sys.stderr)
    return 1 if failed else 0


def _predict_or_report(
    case: Case, predictor: Predictor, settings: PredictionSettings, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Predicts a case; what is wrong with the case itself is printed and recorded, not raised."""
    start = time.perf_counter()
    entry = {"case_id": case.case_id}
    try:
        volumes_ml = _predict_case(case, predictor, settings, arguments)
    except (InputError, OSError) as error:
        if arguments.debug:
            raise
        where = "" if isinstance(error, AHNetError) else f"{shown(case, case.image_path)}: "
        problem = public(case, f"{where}{error}")
        print(f"error: {problem}", file=sys.stderr)
        return entry | {"status": "failed", "problem": problem}
    seconds = round(time.perf_counter() - start, 2)
    name = prediction_name(case.case_id)
    found = ", ".join(f"{name} {ml:,.1f} ml" for name, ml in volumes_ml.items())
    print(f"{case.case_id}: {Path(arguments.output) / name} ({found}; {seconds:.1f} s)")
    return entry | {
        "status": "predicted",
        "output": name,
        "volumes_ml": volumes_ml,
        "seconds": seconds,
    }


def _predict_case(
    case: Case, predictor: Predictor, settings: PredictionSettings, arguments: argparse.Namespace
) -> dict[str, float]:
    """Predicts and writes a case; returns each foreground class' volume in ml."""
    output, task = Path(arguments.output), predictor.settings.task
    allow = parse_allowances(arguments.allow)
    volume = read_image_of(case, allow=allow)
    with tqdm(desc=case.case_id, unit="window", leave=False) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        segmentation = segment_volume(volume, predictor, settings, progress=advance)
    labels = segmentation.labels
    name = prediction_name(case.case_id)
    if is_dicom_image(case.image_path):
        write_image(output / name, Volume(labels, volume.affine))
    else:
        write_label(output / name, labels, like=case.image_path)
    for value, voxels in enumerate(segmentation.probabilities):
        path = output / "probabilities" / f"{case.case_id}_{task.class_names[value]}.nii.gz"
        write_image(path, Volume(voxels, volume.affine))
    if arguments.overlay:
        # Takes a while to import, and is not always needed.
        from ahnet_tf.report import overlay_case

        reference = None
        if case.label_path is not None:
            reference = read_label_of(case, task.class_names, allow=allow)
            check_pair(volume, reference, shown(case, case.label_path))
        overlay_case(
            output / "overlays" / f"{case.case_id}.png",
            volume,
            labels,
            None if reference is None else reference.voxels,
            task,
            title=case.case_id,
        )
    voxel_ml = float(np.prod(spacing_mm(volume.affine))) / 1000
    counts = np.bincount(labels.ravel(), minlength=len(task.class_names))
    return {
        class_name: round(float(count) * voxel_ml, 3)
        for class_name, count in zip(task.class_names[1:], counts[1:], strict=True)
    }


def _shown_input(path: str, cases: Sequence[Case]) -> str:
    """Returns a path that was typed, without what names the patient of a case below it."""
    inside = [case for case in cases if case.image_path.is_relative_to(path)]
    identifying = {each for case in inside for each in case.identifiers}
    return shown_path(path, identifying) if identifying else path


def _check_output(inputs: Sequence[str], cases: Sequence[Case], output: Path) -> None:
    """Refuses an output where predictions would be taken for input, or replace a reference.

    LiTS keeps images and label maps side by side, named as predictions are.
    """
    for path in map(Path, inputs):
        place = output.resolve()
        if path.is_dir() and path.resolve() in (place, *place.parents):
            raise SettingsError(
                "--output",
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
                "--output",
                f"an empty folder or one of earlier predictions (with {RECORD_FILE})",
                f"{target}, which would be overwritten",
                "Give predictions a folder of their own.",
            )


if __name__ == "__main__":
    sys.exit(main())
