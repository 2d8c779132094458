"""Shared by all tests: quiet frameworks, TFX or not, real volumes, a browser, DICOM from pydicom."""

from __future__ import annotations

import gc
import os
import tempfile
from importlib.metadata import distributions
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    BreastTomosynthesisImageStorage,
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)

from preprocessing.quiet_start import quiet_frameworks

quiet_frameworks()
# Tests expect the accuracy of float32, but GPUs use TF32; and replicas share the CPU.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
# Side by side, each worker process computes with its share of the cores: more threads only compete.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if _WORKERS > 1:
    _SHARE = str(max(1, len(os.sched_getaffinity(0)) // _WORKERS))
    for _name in ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(_name, _SHARE)
# What OpenVINO compiles is not kept in the user's cache. Worker processes share the folder.
if "AHNET_CACHE" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="ahnet-tests-")
    os.environ["AHNET_CACHE"] = _CACHE.name

ROOT = Path(__file__).resolve().parents[1]

# TFX 1.21 has no packages for older C libraries; an environment there has all others.
HAS_TFX = any(True for _ in distributions(name="tfx"))
WITHOUT_TFX = "TFX is not installed; TFX 1.21 needs glibc 2.39"
NEED_TFX = (ROOT / "tests" / "pipeline", ROOT / "tests" / "e2e" / "test_agreement.py")


class _SkippedModule(pytest.Module):
    def collect(self):
        pytest.skip(WITHOUT_TFX)


def pytest_pycollect_makemodule(module_path: Path, parent) -> pytest.Module | None:
    """Skips the modules that need TFX where it isn't installed, without importing them."""
    if HAS_TFX or not any(module_path.is_relative_to(each) for each in NEED_TFX):
        return None
    return _SkippedModule.from_parent(parent, path=module_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the files that have slow tests, so that no worker ends long after the others."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Spares the garbage collector the millions of objects that imports have made."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tfx() -> None:
    """Skips the test where TFX isn't installed."""
    if not HAS_TFX:
        pytest.skip(WITHOUT_TFX)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Returns the folder of real volumes: `AHNET_DATA`, or shared/data beside the checkout."""
    folder = Path(os.environ.get("AHNET_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real volumes at {folder}; AHNET_DATA may name their folder")
    return folder


# Values that are in the headers and must not be in any output.
IDENTIFIERS = {
    "PatientName": "Doehring^Xaveria",
    "PatientID": "PID7748123",
    "PatientBirthDate": "19560307",
    "AccessionNumber": "ACC99120",
    "StudyID": "STU5521",
    "ReferringPhysicianName": "Quackenbush^Zoltan",
    "StudyDate": "20190823",
    "OtherPatientIDs": ["OPI3301", "OPI3302"],
}
STUDY_UID = "1.2.826.0.1.3680043.8.498.11.77"
SERIES_UID = "1.2.826.0.1.3680043.8.498.11.78"


def _image(stored: np.ndarray, sop_class: str, syntax: str, tags: dict) -> Dataset:
    """Returns a dataset of frames [row, column] or [frame, row, column] with their pixels."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = STUDY_UID, SERIES_UID
    dataset.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.11.79"
    for keyword, value in IDENTIFIERS.items():
        setattr(dataset, keyword, value)
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    if stored.ndim == 3:
        dataset.NumberOfFrames = len(stored)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * stored.dtype.itemsize
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    for keyword, value in tags.items():
        if value is not None:
            setattr(dataset, keyword, value)
        elif keyword in dataset:
            delattr(dataset, keyword)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelData = np.ascontiguousarray(stored).tobytes()
    dataset["PixelData"].VR = "OB" if stored.dtype.itemsize == 1 else "OW"
    if syntax != ExplicitVRLittleEndian:
        dataset.compress(syntax)
    return dataset


def ct_slice(stored, position, *, syntax=ExplicitVRLittleEndian, **tags) -> Dataset:
    """Returns one CT slice [row, column]; the position is LPS."""
    tags = {
        "Modality": "CT",
        "ImagePositionPatient": [f"{value:.6g}" for value in position],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.8, 0.7],
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "SliceThickness": 99,
    } | tags
    return _image(stored, CTImageStorage, syntax, tags)


def multi_frame(
    stored, *, positions=None, per_frame=None, shared=None, ct=False, syntax=None, **tags
) -> Dataset:
    """Returns an image [frame, row, column]; functional groups by {sequence: {keyword: value}}."""
    tags = {"Modality": "CT" if ct else "MG"} | tags
    sop_class = EnhancedCTImageStorage if ct else BreastTomosynthesisImageStorage
    groups = [dict(group) for group in per_frame or [{}] * len(stored)]
    for group, position in zip(groups, positions if positions is not None else (), strict=False):
        group["PlanePositionSequence"] = {"ImagePositionPatient": [f"{v:.6g}" for v in position]}
    if any(groups):
        tags["PerFrameFunctionalGroupsSequence"] = Sequence(map(_groups, groups))
    if shared:
        tags["SharedFunctionalGroupsSequence"] = Sequence([_groups(shared)])
    return _image(stored, sop_class, syntax or ExplicitVRLittleEndian, tags)


def _groups(values: dict) -> Dataset:
    item = Dataset()
    for sequence, elements in values.items():
        inner = Dataset()
        for keyword, value in elements.items():
            setattr(inner, keyword, value)
        setattr(item, sequence, Sequence([inner]))
    return item


def save(dataset: Dataset, path):
    """Writes a dataset as a DICOM file with its preamble; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def ct_series(folder, stored, *, origin=(-20.0, -30.0, 40.0), step=(0, 0, 2.5), seed=0, **tags):
    """Writes stored values [slice, row, column] as files with shuffled names; returns the folder."""
    names = np.random.default_rng(seed).permutation(len(stored))
    for index, (name, values) in enumerate(zip(names, stored, strict=True)):
        position = np.asarray(origin) + index * np.asarray(step)
        number = tags.pop("InstanceNumber", None) or index + 1
        save(
            ct_slice(values, position, InstanceNumber=number, **tags), folder / f"IM{name:04d}.dcm"
        )
    return folder


@pytest.fixture(scope="session")
def dicom():
    """Returns the functions of this file, and the identifiers that they write."""
    return SimpleNamespace(
        ct_slice=ct_slice,
        multi_frame=multi_frame,
        save=save,
        ct_series=ct_series,
        identifiers=[
            *(v for v in IDENTIFIERS.values() if isinstance(v, str)),
            *IDENTIFIERS["OtherPatientIDs"],
            *("Doehring", "Xaveria", "Quackenbush", STUDY_UID, SERIES_UID),
        ],
        study_uid=STUDY_UID,
        series_uid=SERIES_UID,
    )


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """Yields a headless Chromium; skips the test if there is none."""
    from tests.browser import NAMES, Browser, find_browser

    program = find_browser()
    if program is None:
        pytest.skip(
            f"no browser: none of {', '.join(NAMES)} on the PATH; AHNET_BROWSER may name one"
        )
    browser = Browser(program, tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def breast_14_bits():
    """A synthetic breast whose values fill 14 bits, a volume [x, y, z] of 64 x 96 x about 16."""
    from preprocessing.phantom.dbt import DBTSettings, make_case

    image = make_case(3, 0, DBTSettings(shape_xyz=(64, 96, 16))).image
    values = image.voxels.astype(np.float64) - image.voxels.min()
    values += np.random.default_rng(0).random(values.shape)
    voxels = np.floor(values * (2**14 / values.max())).clip(0, 2**14 - 1)
    return type(image)(voxels.astype(np.uint16), image.affine)
