"""The options of `python -m ahnet_tf.predict`, and the settings that they make."""

from __future__ import annotations

import argparse

from ahnet_tf.inference.case_output import LESION_FILE
from ahnet_tf.inference.ensemble import flip_axes
from ahnet_tf.inference.lesion_nms import DetectionSettings
from ahnet_tf.inference.predictor import PRECISIONS, is_address
from ahnet_tf.inference.segment import PredictionSettings
from ahnet_tf.inference.sliding_window import BLENDS, plan_windows
from preprocessing.allowances import ALLOWANCES
from preprocessing.errors import SettingsError


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Adds what is predicted, by what, and where to."""
    parser.add_argument(
        "input", nargs="+", metavar="IN", help="images (NIfTI, DICOM), or folders of cases"
    )
    parser.add_argument("output", metavar="OUT", help="folder for label maps")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--model",
        action="append",
        metavar="DIR",
        help="SavedModel folder (or a folder of numbered versions: the newest), or checkpoint; "
        "repeat it for the mean of several",
    )
    source.add_argument(
        "--target", metavar="HOST:PORT[/NAME]", help="model server that speaks TF Serving's gRPC"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="leave out the cases that an earlier run with the same settings has predicted",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the windows, time and memory to expect for each case, and write nothing",
    )
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="what a checkpoint computes in: bfloat16 takes less time and memory, and rounds more "
        "coarsely (default %(default)s)",
    )
    parser.add_argument(
        "--allow",
        default="",
        metavar="CHECK,...",
        help=f"take DICOM series although they fail a check: {', '.join(ALLOWANCES)} "
        "(python -m preprocessing.convert --help says what each does)",
    )


def add_window_options(parser: argparse.ArgumentParser) -> None:
    """Adds how windows are laid and looked at."""
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
        "--flips",
        default="",
        metavar="AXES",
        help="also look at each window mirrored along these of x, y and z, and take the mean; each "
        "axis doubles the time (default: none)",
    )


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Adds what becomes of the probabilities: post-processing, lesions, maps and pictures."""
    parser.add_argument(
        "--largest-component",
        action="store_true",
        help="keep only the largest connected foreground region: the liver with its tumours",
    )
    parser.add_argument(
        "--lesions-in-organ",
        action="store_true",
        help="take out lesions that don't touch the organ: tumours only in the liver",
    )
    parser.add_argument(
        "--smallest-lesion-mm3",
        type=float,
        default=PredictionSettings.smallest_lesion_mm3,
        metavar="V",
        help="take out smaller lesions; in the organ they become organ (default: none)",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=DetectionSettings.threshold,
        metavar="P",
        help=f"lowest score of a lesion in {LESION_FILE} (default %(default)s)",
    )
    parser.add_argument(
        "--most-lesions",
        type=int,
        default=DetectionSettings.most,
        metavar="N",
        help=f"lesions of a volume in {LESION_FILE} (default %(default)s)",
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="also write a probability map for each class to OUT/probabilities",
    )
    parser.add_argument(
        "--dicom-seg",
        action="store_true",
        help="also answer DICOM images with a DICOM SEG each in OUT/dicom_seg; unlike all other "
        "outputs it carries the patient's name and number, as the standard asks",
    )
    parser.add_argument(
        "--overlay",
        action="store_true",
        help="also draw each case to OUT/overlays, with its reference labels if there are any",
    )


def settings_of(arguments: argparse.Namespace) -> PredictionSettings:
    """Returns the settings that were typed, checked before anything slow happens.

    Raises:
      SettingsError: an option out of range.
    """
    if arguments.target is not None and not is_address(arguments.target):
        raise SettingsError("--target", "HOST:PORT or HOST:PORT/NAME", arguments.target)
    if arguments.batch_size < 1:
        raise SettingsError("--batch-size", "at least 1", arguments.batch_size)
    if not 0 <= arguments.smallest_lesion_mm3 < float("inf"):
        given = arguments.smallest_lesion_mm3
        raise SettingsError("--smallest-lesion-mm3", "a volume of 0 or more", given)
    plan_windows((1, 1, 1), (1, 1, 1), arguments.overlap)
    flip_axes(arguments.flips)
    return PredictionSettings(
        arguments.overlap,
        arguments.blend,
        arguments.batch_size,
        arguments.largest_component,
        arguments.lesions_in_organ,
        arguments.smallest_lesion_mm3,
        arguments.probabilities,
        DetectionSettings(arguments.threshold, arguments.most_lesions),
    )
