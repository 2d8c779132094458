"""Segments whole volumes: NIfTI in, label maps on the input's own grid out.

python -m ahnet_tf.predict --model models/ahnet --input cases/ --output predictions/
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from ahnet_tf.predictors import Predictor, is_address, open_predictor
from ahnet_tf.windows import BLENDS, most_probable, plan_windows, predict_slabs
from preprocessing.cases import Case, find_cases
from preprocessing.command import make_parser, run_command
from preprocessing.errors import AHNetError, InputError, SettingsError
from preprocessing.files import write_json
from preprocessing.nifti import check_pair, read_image, read_label, write_image, write_label
from preprocessing.volume import TaskSpace, Volume, from_task_space, spacing_mm, to_task_space

_LITS_CASE = re.compile(r"^volume-(\d+)$")


@dataclass(frozen=True)
class PredictionSettings:
    """How windows are laid over a volume, and what becomes of the labels.

    Attributes:
      overlap: share of a window covered by its neighbour along each axis, from 0 to below 1.
      blend: "gaussian" or "constant" weights where windows overlap.
      batch_size: windows a call of the network.
      largest_component: keep only the largest connected foreground region; with CT that is the
        liver with the tumours in it. Off by default: what is written is the network's own answer.
    """

    overlap: float = 0.25
    blend: str = "gaussian"
    batch_size: int = 1
    largest_component: bool = False


def segment_volume(
    volume: Volume,
    predictor: Predictor,
    settings: PredictionSettings | None = None,
    *,
    progress: Callable[[int, int], object] | None = None,
) -> np.ndarray:
    """Segments a volume by overlapping windows.

    Where the task resamples, probabilities are brought back to the volume's grid (linearly) before
    the most probable class is taken, which leaves smoother borders than resampling labels.

    Args:
      volume: raw intensities [x, y, z] as on disk, and affine.
      predictor: the network, and the task it was trained for.
      settings: overlap, blending and so on; the defaults if None.
      progress: called with (windows just done, windows in all).

    Returns:
      Label values uint8 [x, y, z] on the volume's own grid.

    Raises:
      ModelError: the network's answer doesn't fit its task.
    """
    return _segmented(volume, predictor, settings or PredictionSettings(), progress, False)[0]


def keep_largest_component(labels: np.ndarray) -> np.ndarray:
    """Returns a label map without the foreground outside its largest 6-connected region.

    Args:
      labels: label values [any axes]; all values above 0 count as one foreground, so that tumours
        stay where they touch the largest organ region, and only there.
    """
    regions, count = ndimage.label(labels > 0)
    if count < 2:
        return labels
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    return np.where(regions == sizes.argmax(), labels, 0).astype(labels.dtype)


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
        "--input", nargs="+", required=True, metavar="IN", help="NIfTI files, or folders of cases"
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
        arguments.overlap, arguments.blend, arguments.batch_size, arguments.largest_component
    )
    if settings.batch_size < 1:
        raise SettingsError("--batch-size", "at least 1", settings.batch_size)
    # Refuses an overlap out of range before anything slow happens.
    plan_windows((1, 1, 1), (1, 1, 1), settings.overlap)
    output = Path(arguments.output)
    cases = find_cases(arguments.input, need_labels=False)
    _refuse_to_overwrite_input(cases, output)
    predictor = open_predictor(arguments.target or arguments.model)
    record = {
        "model": arguments.target or arguments.model,
        "model_settings": predictor.settings.to_dict(),
        "input": list(arguments.input),
        "settings": dataclasses.asdict(settings),
        "cases": [],
    }
    try:
        for case in cases:
            record["cases"].append(_predict_or_report(case, predictor, settings, arguments))
    finally:
        write_json(output / "prediction.json", record)
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
        where = "" if isinstance(error, AHNetError) else f"{case.image_path}: "
        problem = f"{where}{error}"
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
    volume = read_image(case.image_path)
    with tqdm(desc=case.case_id, unit="window", leave=False) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        labels, probabilities = _segmented(
            volume, predictor, settings, advance, arguments.probabilities
        )
    name = prediction_name(case.case_id)
    write_label(output / name, labels, like=case.image_path)
    for value, voxels in enumerate(probabilities):
        path = output / "probabilities" / f"{case.case_id}_{task.class_names[value]}.nii.gz"
        write_image(path, Volume(voxels, volume.affine))
    if arguments.overlay:
        # Takes a while to import, and is not always needed.
        from ahnet_tf.report import overlay_case

        reference = None
        if case.label_path is not None:
            reference = read_label(case.label_path, task.class_names)
            check_pair(volume, reference, case.label_path)
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


def _segmented(
    volume: Volume,
    predictor: Predictor,
    settings: PredictionSettings,
    progress: Callable[[int, int], object] | None,
    return_probabilities: bool,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns labels and, if asked for, each class' probabilities on the volume's own grid."""
    task, window = predictor.settings.task, predictor.settings.window_shape_zyx
    array, space = to_task_space(volume, task)
    windows = plan_windows(array.shape, window, settings.overlap).count
    classes = len(task.class_names)
    turned_shape = tuple(space.input_shape[axis] for axis in reversed(space.axes))
    resampled = turned_shape != space.shape_zyx
    labels = np.empty(array.shape, np.uint8)
    maps = None
    if resampled or return_probabilities:
        maps = np.empty((classes, *array.shape), np.float32)
    slabs = predict_slabs(
        array,
        predictor.predict,
        window,
        classes,
        overlap=settings.overlap,
        blend=settings.blend,
        batch_size=settings.batch_size,
        outside_value=task.outside_value,
        progress=None if progress is None else lambda done: progress(done, windows),
    )
    for z, probabilities in slabs:
        rows = slice(z, z + len(probabilities))
        labels[rows] = most_probable(probabilities)
        if maps is not None:
            maps[:, rows] = np.moveaxis(probabilities, -1, 0)
    if not resampled:
        voxels = from_task_space(labels, space)
    else:
        voxels = _most_probable_on_input_grid(maps, space)
    own_grid = []
    if return_probabilities:
        own_grid = [from_task_space(one, space, label=False) for one in maps]
    if settings.largest_component:
        voxels = keep_largest_component(voxels)
    return voxels, own_grid


def _most_probable_on_input_grid(maps: np.ndarray, space: TaskSpace) -> np.ndarray:
    """Resamples one class at a time, so that two maps in the input's resolution are enough."""
    best = from_task_space(maps[0], space, label=False)
    labels = np.zeros(best.shape, np.uint8)
    for value, one in enumerate(maps[1:], start=1):
        probability = from_task_space(one, space, label=False)
        better = probability > best
        labels[better] = value
        np.maximum(best, probability, out=best)
    return labels


def _refuse_to_overwrite_input(cases: Sequence[Case], output: Path) -> None:
    """LiTS keeps images and labels in one folder: predictions there would replace the reference."""
    inputs = {
        path.resolve() for case in cases for path in (case.image_path, case.label_path) if path
    }
    for case in cases:
        target = output / prediction_name(case.case_id)
        if target.resolve() in inputs:
            raise SettingsError(
                "--output",
                "a folder where no input is overwritten",
                target,
                "Give predictions a folder of their own.",
            )


if __name__ == "__main__":
    sys.exit(main())
