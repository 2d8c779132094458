"""Which prediction is scored against which reference, and which image both belong to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ahnet_tf.inference.case_output import prediction_name
from preprocessing.datasets.case import Case
from preprocessing.datasets.discovery import find_cases
from preprocessing.errors import InputError, SettingsError
from preprocessing.volumes.nifti import SUFFIXES, has_nifti_suffix


@dataclass(frozen=True)
class Pair:
    """A prediction and the reference it is scored against.

    Attributes:
      case_id: of the case.
      prediction: label map file.
      reference: label map file.
      image: the case whose image it is; None where none is known.
    """

    case_id: str
    prediction: Path
    reference: Path
    image: Case | None = None


def pair_up(
    inputs: Sequence[str | Path], references: Sequence[str | Path]
) -> tuple[list[Pair], list[str]]:
    """Pairs predictions with references by case.

    Single files are paired in the order given. In folders the prediction of a case is what
    `python -m ahnet_tf.predict` calls it, or a file named like the case, its label map or its image.

    Args:
      inputs: label map files, or folders that hold them (not their subfolders).
      references: label map files, or data-set folders as `preprocessing.datasets.discovery.find_cases` knows.

    Returns:
      The pairs, and a line for every missing or extra case.

    Raises:
      InputError: a path doesn't exist or holds no label maps.
      SettingsError: files whose numbers differ.
    """
    inputs, references = [Path(path) for path in inputs], [Path(path) for path in references]
    if all(path.is_file() for path in inputs + references):
        if len(inputs) != len(references):
            raise SettingsError(
                "--input and --reference", f"as many files, {len(references)}", len(inputs)
            )
        stems = [_stem(path) for path in inputs]
        names = stems if len(set(stems)) == len(stems) else map(str, inputs)
        return [Pair(*files) for files in zip(names, inputs, references, strict=True)], []
    predictions = _prediction_files(inputs)
    cases = find_cases(references, need_labels=True)
    if any(case.label_path for case in cases):
        # Images without label maps are no references; label maps without images are.
        cases = [case for case in cases if case.label_path]
    pairs, problems = [], []
    for case in cases:
        reference = case.label_path or case.image_path
        names = [_stem(Path(prediction_name(case.case_id))), case.case_id, _stem(reference)]
        if case.image_path is not None:
            names.append(_stem(case.image_path))
        name = next((name for name in names if name in predictions), None)
        if name is None:
            problems.append(
                f"case {case.case_id}: expected a prediction named {names[0]}.nii.gz, found none"
            )
        else:
            image = case if case.label_path and case.image_path else None
            pairs.append(Pair(case.case_id, predictions.pop(name), reference, image))
    problems += [
        f"{path}: expected a reference for this prediction, found none"
        for path in predictions.values()
    ]
    return pairs, problems


def with_images(pairs: Sequence[Pair], images: Sequence[str | Path]) -> list[Pair]:
    """Returns the pairs with the images that `--images` names.

    Files are taken in the order of the pairs if there are as many; otherwise an image belongs to the
    pair of its case id, or to the one whose prediction is called as its case's would be.

    Raises:
      InputError: see `preprocessing.datasets.discovery.find_cases`.
    """
    cases = find_cases(images, need_labels=False)
    if len(cases) == len(pairs) == len(images) and all(Path(path).is_file() for path in images):
        matched: list[Case | None] = list(cases)
    else:
        by_name = {case.case_id: case for case in cases}
        by_name |= {prediction_name(case.case_id): case for case in cases}
        matched = [by_name.get(pair.case_id) or by_name.get(pair.prediction.name) for pair in pairs]
    return [
        dataclasses.replace(pair, image=image or pair.image)
        for pair, image in zip(pairs, matched, strict=True)
    ]


def _prediction_files(inputs: Sequence[Path]) -> dict[str, Path]:
    """Returns the label maps by the stem of their names."""
    files: dict[str, Path] = {}
    for path in inputs:
        if not path.exists():
            raise InputError(path, "predicted label maps or a folder of them", "nothing there")
        own = sorted(path.iterdir()) if path.is_dir() else [path]
        own = [file for file in own if file.is_file() and has_nifti_suffix(file)]
        if not own:
            raise InputError(path, "predicted label maps (.nii, .nii.gz)", "none")
        for file in own:
            twin = files.setdefault(_stem(file), file)
            if twin != file:
                raise InputError(file, "one prediction a case", f"{twin} too")
    return files


def _stem(path: Path) -> str:
    suffix = next((s for s in SUFFIXES if path.name.lower().endswith(s)), "")
    return path.name[: len(path.name) - len(suffix)]
