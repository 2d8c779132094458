"""Segments single volumes for notebooks and scripts: paths, nibabel images or arrays in."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import attrs
import nibabel as nib
import numpy as np
from nibabel.spatialimages import SpatialImage

from ahnet_tf.inference.case_output import software_of, volumes_ml
from ahnet_tf.inference.ensemble import flipped_predictor, mean_predictor
from ahnet_tf.inference.predictor import (
    ExportSettings,
    Predictor,
    content_digest,
    open_predictor,
    predictor_of,
)
from ahnet_tf.inference.segment import PredictionSettings, segment_volume, window_progress
from preprocessing.datasets.case import Case
from preprocessing.datasets.detection_table import Detection
from preprocessing.datasets.discovery import find_cases
from preprocessing.datasets.reading import (
    check_case_image,
    is_dicom_image,
    read_case_image,
    read_case_source,
)
from preprocessing.dicom.segmentation import write_segmentation
from preprocessing.errors import InputError, SettingsError
from preprocessing.settings import check_names
from preprocessing.tasks import Task, load_task
from preprocessing.volumes import nifti
from preprocessing.volumes.geometry import Volume
from preprocessing.volumes.nifti import write_image, write_on_grid
from preprocessing.volumes.quality_checks import check_image

if TYPE_CHECKING:
    import keras

Input: TypeAlias = str | os.PathLike | SpatialImage | Volume | np.ndarray


def load(
    source: str | os.PathLike | Sequence[str | os.PathLike] | keras.Model,
    *,
    task: Task | str | None = None,
    flips: str = "",
    backend: str = "auto",
    precision: str | None = None,
) -> Segmenter:
    """Returns a `Segmenter`, which segments whole volumes with a trained network.

    Args:
      source: folder of an export or of a checkpoint, HOST:PORT or HOST:PORT/NAME of a server; several
        of these, whose probabilities are averaged; or a Keras model from `build`.
      task: name of a preset, JSON file or `Task`, for a Keras model only: the others have theirs.
      flips: also predict each window mirrored along these of x, y and z, and average.
      backend: "tensorflow", "openvino", or "auto": OpenVINO for folders where it is installed and there
        is no GPU, else TensorFlow. OpenVINO computes on CPUs, and caches what it compiles.
      precision: "float32" or "bfloat16" arithmetic, by default the network's own; another one needs
        OpenVINO.

    Raises:
      ModelError: no model there, one that can't segment volumes of one channel, or a back end that
        is not installed.
      ServingError: the server does not answer.
      SettingsError: impossible flips, back end or precision, or a missing, superfluous or unknown task.
    """
    if not isinstance(source, str | os.PathLike | Sequence):
        # Imports TensorFlow, which a network in OpenVINO does without.
        from ahnet_tf.api import config_of

        if task is None:
            raise SettingsError("task", "the task of a Keras model", "none")
        if backend == "openvino" or precision not in (None, "float32"):
            remedy = "ahnet_tf.save writes a folder, which OpenVINO can compile."
            given = f"{backend}, {precision or 'float32'}"
            raise SettingsError("backend", "TensorFlow in float32 for a Keras model", given, remedy)
        own = load_task(task)
        settings = ExportSettings(own, config_of(source, own), own.patch_shape_zyx)
        found = [predictor_of(source, settings, source.name)]
        return Segmenter(flipped_predictor(mean_predictor(found, [source.name]), flips))
    if task is not None:
        raise SettingsError("task", "no task, because the model has its own", "one")
    several = [source] if isinstance(source, str | os.PathLike) else source
    locations = tuple(os.fspath(each) for each in several)
    found = [open_predictor(each, backend=backend, precision=precision) for each in locations]
    return Segmenter(flipped_predictor(mean_predictor(found, locations), flips), locations)


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A network that is ready to segment volumes; `ahnet_tf.load` returns one.

    Attributes:
      predictor: the network, and what it was trained for.
      locations: the folders or addresses it came from, for the record of a DICOM SEG.
    """

    predictor: Predictor
    locations: Sequence[str] = ()

    @property
    def task(self) -> Task:
        """Classes, intensity window and grid of the volumes that the network was trained on."""
        return self.predictor.settings.task

    def segment(
        self,
        image: Input,
        *,
        spacing_mm: tuple[float, float, float] | None = None,
        affine: np.ndarray | None = None,
        allow: Collection[str] = (),
        progress: bool = False,
        **settings: Any,
    ) -> Result:
        """Segments a volume of raw intensities (HU in CT).

        Args:
          image: path of a NIfTI file, of a DICOM file or of a folder of DICOM slices; a nibabel image;
            or an array [x, y, z].
          spacing_mm: voxel spacing (x, y, z) of an array whose axes point right, anterior, superior.
          affine: of an array instead, 4x4, voxel indices to RAS+ mm.
          allow: irregularities to accept, names of `preprocessing.errors.ALLOWANCES`.
          progress: show a progress bar.
          settings: attributes of `ahnet_tf.inference.segment.PredictionSettings`, for example
            `overlap=0.5`, `probabilities=True` or `largest_component=True`.

        Raises:
          InputError: not one readable volume, an array without spacing and affine, or an image that
            can't be one of the task. What is only suspicious about it is a Python warning.
          SettingsError: an unknown setting, or one that is not possible with the task.
          ModelError, ServingError: the network or the server failed.
        """
        names = [field.name for field in attrs.fields(PredictionSettings)]
        chosen = PredictionSettings(**check_names(settings, names, "segment"))
        volume, origin = _read(image, spacing_mm, affine, allow)
        if isinstance(origin, Case):
            checked = check_case_image(origin, volume, self.task, allow=allow)
        else:
            checked = check_image(volume, self.task, allow=allow)
        if checked.misfit is not None:
            raise checked.misfit
        for finding in checked.findings:
            warnings.warn(finding.text, stacklevel=2)
        with window_progress("segment", progress) as advance:
            found = segment_volume(volume, self.predictor, chosen, progress=advance)
        ml = volumes_ml(found.labels, volume.affine, self.task.class_names)
        return Result(
            volume, found.labels, found.probabilities, found.lesions, ml, self, origin, allow
        )


@dataclass(frozen=True, eq=False)
class Result:
    """A segmented volume; arrays [x, y, z] are in the axis order of the input.

    Attributes:
      image: the input, raw intensities [x, y, z] and its affine.
      labels: label values uint8 [x, y, z].
      probabilities: a float32 map [x, y, z] of each class; empty unless requested.
      lesions: detected in the heat map, the highest score first; empty unless the task has one.
      volumes_ml: volume of each class but the background, by name.
      segmenter: what made it.
      origin: the case or NIfTI header that the image came from; None for an array.
      allow: irregularities that were accepted in reading the image.
    """

    image: Volume
    labels: np.ndarray
    probabilities: tuple[np.ndarray, ...]
    lesions: tuple[Detection, ...]
    volumes_ml: dict[str, float]
    segmenter: Segmenter
    origin: Case | nib.Nifti1Header | None
    allow: Collection[str]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the label map in the input's geometry: .nii or .nii.gz, or .dcm for a DICOM SEG.

        A SEG contains the patient's name and number, as the standard requires; a NIfTI file does not.

        Raises:
          InputError: another suffix, or a SEG of an image that is not DICOM.
        """
        case = self.origin if isinstance(self.origin, Case) else None
        is_dicom = case is not None and is_dicom_image(case.path)
        if Path(path).suffix.lower() == ".dcm":
            if case is None or not is_dicom:
                raise InputError(
                    path, "a DICOM image, to which a DICOM SEG refers", "another input"
                )
            source = read_case_source(case, allow=self.allow)
            digests = [content_digest(each) for each in self.segmenter.locations]
            software = software_of(self.segmenter.predictor.settings, digests)
            names = self.segmenter.task.class_names
            write_segmentation(path, self.labels, names, source, software)
        elif self.origin is None or is_dicom:
            write_image(path, Volume(self.labels, self.image.affine))
        else:
            write_on_grid(path, self.labels, like=case.path if case else self.origin)

    def overlay(
        self, path: str | os.PathLike, *, reference: np.ndarray | None = None, title: str = ""
    ) -> None:
        """Draws labels, lesion boxes, and a reference [x, y, z] if given, on slices, as PNG.

        Raises:
          InputError: the reference has another shape.
        """
        # Slow to import.
        from ahnet_tf.report.overlay import overlay_case

        task = self.segmenter.task
        overlay_case(Path(path), self.image, self.labels, reference, task, title, self.lesions)


def _read(
    image: Input,
    spacing_mm: tuple[float, float, float] | None,
    affine: np.ndarray | None,
    allow: Collection[str],
) -> tuple[Volume, Case | nib.Nifti1Header | None]:
    """Returns the volume of an input, and what its output takes the geometry from."""
    if isinstance(image, np.ndarray):
        if (spacing_mm is None) == (affine is None):
            found = "neither" if affine is None else "both"
            raise InputError("array", "spacing_mm or affine", found)
        given = np.diag([*spacing_mm, 1.0]) if spacing_mm is not None else affine
        return nifti.check_image("array", image, np.asarray(given)), None
    if spacing_mm is not None or affine is not None:
        expected = "no spacing_mm and no affine, because the image has its own"
        raise InputError("segment", expected, "one")
    if isinstance(image, Volume):
        return nifti.check_image("volume", image.voxels, image.affine), None
    if isinstance(image, SpatialImage):
        voxels = np.asanyarray(image.dataobj)
        while voxels.ndim > 3 and voxels.shape[-1] == 1:
            voxels = voxels[..., 0]
        header = image.header.copy() if isinstance(image.header, nib.Nifti1Header) else None
        in_mm = image.affine if header is None else nifti.in_mm(image.affine, header, allow)
        volume = nifti.check_image("nibabel image", voxels, in_mm)
        if header is not None:
            header.set_data_shape(voxels.shape)
        return volume, header
    cases = find_cases([image], need_labels=False)
    if len(cases) != 1:
        remedy = "Give one of them, or use python -m ahnet_tf.predict."
        raise InputError(image, "one volume", f"{len(cases)} cases", remedy)
    return read_case_image(cases[0], allow=allow), cases[0]
