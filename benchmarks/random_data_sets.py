"""Random data sets of every layout: names, headers, damage and stray files, drawn by hypothesis."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from pydicom.uid import generate_uid

from benchmarks.random_files import (
    CT_CLASS,
    DBT_CLASS,
    SHAPE,
    frames_file,
    nifti_file,
    segmentation_file,
    slice_file,
)
from preprocessing.volumes.nifti import has_nifti_suffix


@dataclass(frozen=True)
class Layout:
    """A published layout: where the files of a case lie, and what lists them."""

    # Paths of case N by role: "image" and "label" are NIfTI, "series" a folder of slices, "masks" one
    # of folders of slices, "organ" a NIfTI mask, "frames" a multi-frame file, "seg" a DICOM SEG.
    files: Callable[[int], dict[str, str]]
    # Content of further files, by path, for a number of cases.
    lists: Callable[[int], dict[str, str]] = lambda cases: {}


def _dataset_json(suffix: str, **labels: Any) -> Callable[[int], dict[str, str]]:
    def content(cases: int) -> dict[str, str]:
        training = [
            {"image": f"./imagesTr/c_{i}{suffix}.nii.gz", "label": f"./labelsTr/c_{i}.nii.gz"}
            for i in range(cases)
        ]
        listed = {"labels": labels, "training": training, "test": []}
        return {"dataset.json": json.dumps(listed)}

    return content


def _tables(cases: int) -> dict[str, str]:
    key = ("PatientID", "StudyUID", "View")
    tables = {
        "boxes": [(*key, "Subject", "Slice", "X", "Y", "Width", "Height", "Class", "VolumeSlices")],
        "labels": [(*key, "Normal", "Actionable", "Benign", "Cancer")],
        "paths": [(*key, "descriptive_path")],
    }
    for i in range(cases):
        row = (f"DBT-P{i:05d}", f"S{i}", "lcc")
        tables["boxes"].append((*row, 0, 2, 3, 3, 4, 4, "cancer", SHAPE[2]))
        tables["labels"].append((*row, 0, 0, 0, 1))
        tables["paths"].append((*row, f"volumes/{i}/1-1.dcm"))
    texts = {}
    for name, rows in tables.items():
        stream = io.StringIO()
        csv.writer(stream).writerows(rows)
        texts[f"{name}.csv"] = stream.getvalue()
    return texts


NAMES = {"background": 0, "liver": 1, "tumour": 2}
LAYOUTS = {
    "lits": Layout(lambda i: {"image": f"volume-{i}.nii", "label": f"segmentation-{i}.nii"}),
    "lits_folders": Layout(
        lambda i: {
            "image": f"volumes/volume-{i}.nii",
            "label": f"segmentations/segmentation-{i}.nii",
            "image ": f"test/test-volume-{i}.nii",
        }
    ),
    "decathlon": Layout(
        lambda i: {"image": f"imagesTr/c_{i}.nii.gz", "label": f"labelsTr/c_{i}.nii.gz"},
        _dataset_json("", **{"0": "background", "1": "liver", "2": "cancer"}),
    ),
    "nnunet_v1": Layout(
        lambda i: {"image": f"imagesTr/c_{i}_0000.nii.gz", "label": f"labelsTr/c_{i}.nii.gz"},
        _dataset_json("", **{"0": "background", "1": "liver", "2": "cancer"}),
    ),
    "nnunet_v2": Layout(
        lambda i: {
            "image": f"imagesTr/c_{i}_0000.nii.gz",
            "label": f"labelsTr/c_{i}.nii.gz",
            "image ": f"imagesTs/t_{i}_0000.nii.gz",
            "label ": f"labelsTs/t_{i}.nii.gz",
        },
        lambda cases: {"dataset.json": json.dumps({"labels": NAMES, "file_ending": ".nii.gz"})},
    ),
    "nnunet_regions": Layout(
        lambda i: {"image": f"imagesTr/c_{i}_0000.nii.gz", "label": f"labelsTr/c_{i}.nii.gz"},
        lambda cases: {
            "dataset.json": json.dumps(
                {"labels": {"background": 0, "liver": [1, 2], "tumour": 2, "ignore": 3}}
            )
        },
    ),
    "ircadb": Layout(
        lambda i: {
            "series": f"3Dircadb1.{i}/PATIENT_DICOM",
            "masks": f"3Dircadb1.{i}/MASKS_DICOM",
            "series ": f"3Dircadb1.{i}/LABELLED_DICOM",
        }
    ),
    "amos": Layout(
        lambda i: {"image": f"imagesVa/amos_{i}.nii.gz", "label": f"labelsVa/amos_{i}.nii.gz"}
    ),
    "ct_org": Layout(lambda i: {"image": f"volume-{i}.nii.gz", "label": f"labels-{i}.nii.gz"}),
    "btcv": Layout(
        lambda i: {"image": f"img/img{i:04d}.nii.gz", "label": f"label/label{i:04d}.nii.gz"}
    ),
    "abdomen_ct_1k": Layout(
        lambda i: {
            "image": f"AbdomenCT-1K-ImagePart1/Case_{i:05d}_0000.nii.gz",
            "label": f"Mask/Case_{i:05d}.nii.gz",
        }
    ),
    "totalsegmentator": Layout(
        lambda i: {
            "image": f"s{i:04d}/ct.nii.gz",
            **{
                f"organ {k}": f"s{i:04d}/segmentations/{k}.nii.gz"
                for k in ("liver", "tumour", "aorta")
            },
        }
    ),
    "pairs": Layout(lambda i: {"image": f"p{i}_ct.nii.gz", "label": f"p{i}_seg.nii.gz"}),
    "folders": Layout(lambda i: {"image": f"case{i}/a.nii.gz", "label": f"case{i}/a_mask.nii.gz"}),
    "dicom_tree": Layout(
        lambda i: {"series": f"person{i}/study/ct", "label": f"person{i}/label.nii.gz"}
    ),
    "frames": Layout(lambda i: {"frames": f"case{i}/ct.dcm", "label": f"case{i}/label.nii.gz"}),
    "seg": Layout(
        lambda i: {"series": f"person{i}/study/ct", "seg": f"person{i}/study/seg/seg.dcm"}
    ),
    "bcs_dbt": Layout(lambda i: {"breast": f"volumes/{i}/1-1.dcm"}, _tables),
}

# Names that real folders have, among them some that mislead.
ODD_NAMES = (
    *("volume-0.nii", "segmentation-7.nii", "a label.nii.gz", "CT.NII.GZ", "c_0_0001.nii.gz"),
    *("ct.nii.gz", "mask.nii", "labels-01.nii.gz", "x.nii.gz.nii.gz", "0001.dcm", "noext"),
    *("é.nii.gz", "name\nline.nii", "-.nii", "a" * 200 + ".nii", "seg.dcm", "liver.nii.gz"),
    # A byte that is no text.
    "\udcff.nii",
)
JUNK = {
    "notes.txt": b"notes",
    "masks.zip": b"PK\x03\x04",
    "Thumbs.db": b"\xd0\xcf",
    ".hidden.nii": b"",
    "DICOMDIR": b"\0" * 128 + b"DICM",
    "empty.nii.gz": b"",
    "text.dcm": b"not an image",
    "dataset.json": b"{",
    "boxes.csv": b"\xff\xfe",
}
NIFTI_VALUES: dict[str, tuple[Any, ...]] = {
    "xyzt_units": (0, 1, 2, 3, 10, 255),
    "scl_slope": (0.0, 1.5, float("nan"), float("inf"), 1e30),
    "scl_inter": (-1024.0, float("nan"), 1e30),
    "sform_code": (0, 2, 99, -1),
    "qform_code": (0, 1, 99),
    "srow_z": ([0, 0, 0, 0], [0, 0, 1e9, 0], [0, 0, float("nan"), 0], [0, 0.1, -2.5, 7]),
    "pixdim": (
        [-1, 0, 0, 0, 1, 1, 1, 1],
        [1, 1e-6, 1, 1, 1, 1, 1, 1],
        [1, 0.8, 0.8, 2500, 0, 0, 0, 0],
    ),
    "dim": (
        *([3, 12, 10, 6, 1, 1, 1, 1], [4, 12, 10, 6, 2, 1, 1, 1], [2, 12, 10, 1, 1, 1, 1, 1]),
        *([3, 30000, 30000, 30000, 1, 1, 1, 1], [0] * 8, [3, 12, -10, 6, 1, 1, 1, 1]),
    ),
    "datatype": (2, 16, 64, 128, 512, 1792, 0, 9999),
    "vox_offset": (0.0, 353.0, 1e9, float("nan")),
    "magic": (b"ni1", b"n+2", b"\0\0\0"),
    "intent_code": (1002, 5),
}
DICOM_VALUES: dict[str, tuple[Any, ...]] = {
    "Modality": ("MR", "SEG", "OT", "MG", "PT", None),
    "SOPClassUID": (
        *("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"),
        *("1.2.840.10008.5.1.4.1.1.7", "1.2.840.10008.5.1.4.1.1.4", "1.2.3", "", None),
    ),
    "ImageType": (
        ["ORIGINAL", "PRIMARY", "LOCALIZER"],
        ["DERIVED", "SECONDARY", "MPR"],
        ["DERIVED", "SECONDARY", "PROJECTION IMAGE"],
        None,
    ),
    "NumberOfFrames": (0, 2, 1000000),
    "RescaleSlope": (0, 1e9, None),
    "RescaleIntercept": (0, None),
    "BitsStored": (0, 8, 12, 40),
    "BitsAllocated": (1, 8, 12, 64),
    "PixelSpacing": ([0, 0], [-1, 1], [1e-9, 1e-9], [1e6, 1e6], None),
    "ImagePositionPatient": ([0, 0, 0], None),
    "ImageOrientationPatient": ([1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], None),
    "Rows": (0, 65535, None),
    "SamplesPerPixel": (3, 0),
    "PhotometricInterpretation": ("RGB", "MONOCHROME1", "PALETTE COLOR", None),
    "SeriesInstanceUID": ("1.2.3.4.5", None),
    "AcquisitionNumber": (2, None),
    "ConvolutionKernel": ("B70f",),
    "TemporalPositionIdentifier": (2,),
    "PixelPaddingValue": (0, 63536),
    "PixelData": (b"", b"\0\0"),
}


@dataclass(frozen=True)
class Damage:
    """What happens to one of the files, chosen by its number."""

    number: int
    kind: str  # "delete", "rename", "copy", "truncate", "garbage", "header"
    value: Any = None


@dataclass(frozen=True)
class DataSet:
    """A random data set: everything that determines its files."""

    layout: str
    cases: int
    seed: int
    damages: Sequence[Damage] = ()
    junk: Sequence[tuple[str, str]] = ()  # folder of which file number, name


def _headers() -> st.SearchStrategy[Any]:
    pairs = [(name, v) for name, values in NIFTI_VALUES.items() for v in values]
    tags = [(name, v) for name, values in DICOM_VALUES.items() for v in values]
    return st.tuples(st.sampled_from(pairs), st.sampled_from(tags), st.integers(-1, 5))


NUMBERS = st.integers(0, 40)
DAMAGES = st.one_of(
    st.builds(Damage, NUMBERS, st.just("header"), _headers()),
    st.builds(Damage, NUMBERS, st.sampled_from(["rename", "copy"]), st.sampled_from(ODD_NAMES)),
    st.builds(Damage, NUMBERS, st.just("truncate"), st.floats(0, 0.99)),
    st.builds(Damage, NUMBERS, st.sampled_from(["delete", "garbage", "bare"])),
)
DATA_SETS = st.builds(
    DataSet,
    st.sampled_from(sorted(LAYOUTS)),
    st.integers(1, 3),
    st.integers(0, 2**16),
    st.lists(DAMAGES, max_size=4),
    st.lists(st.tuples(NUMBERS, st.sampled_from(sorted(JUNK))), max_size=2),
)


def write(root: Path, data: DataSet) -> None:
    """Writes a data set below a folder."""
    layout, random = LAYOUTS[data.layout], np.random.default_rng(data.seed)
    makers: dict[str, Callable[[dict[str, Any]], bytes]] = {}
    for case in range(data.cases):
        for role, path in layout.files(case).items():
            makers |= _makers(role.split()[0], path, random)
            if role == "seg":
                series = {p: m for p, m in makers.items() if p.startswith(f"person{case}/")}
                makers[path] = segmentation_file(list(series.values()), random)
    changes: dict[str, dict[str, Any]] = {path: {} for path in makers}
    for damage in data.damages:
        if damage.kind == "header":
            (nifti, dicom, reach), path = damage.value, _chosen(makers, damage.number)
            folder = Path(path).parent
            alike = [other for other in makers if Path(other).parent == folder]
            for each in alike if reach < 0 else [path]:
                name, value = nifti if has_nifti_suffix(each) else dicom
                changes[each][name] = value
    contents = {path: make(changes[path]) for path, make in makers.items()}
    for damage in data.damages:
        if contents and damage.kind != "header":
            _damage(contents, _chosen(contents, damage.number), damage)
    contents |= {name: text.encode() for name, text in layout.lists(data.cases).items()}
    for number, name in data.junk:
        folder = Path(_chosen(contents, number)).parent if contents else Path()
        contents[str(folder / name)] = JUNK[name]
    for path, content in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def _chosen(paths: dict[str, Any], number: int) -> str:
    return sorted(paths)[number % len(paths)]


def _damage(contents: dict[str, bytes], path: str, damage: Damage) -> None:
    content = contents[path]
    if damage.kind in ("rename", "copy"):
        contents[str(Path(path).parent / damage.value)] = content
    if damage.kind in ("rename", "delete"):
        del contents[path]
    elif damage.kind == "truncate":
        contents[path] = content[: int(len(content) * damage.value)]
    elif damage.kind == "garbage":
        contents[path] = content[: len(content) // 2] + b"\xa5" * (len(content) // 2)
    elif damage.kind == "bare":
        # A DICOM file without its preamble; anything else loses its beginning.
        contents[path] = content[132:]


def _makers(
    role: str, path: str, random: np.random.Generator
) -> dict[str, Callable[[dict[str, Any]], bytes]]:
    """Returns functions that make each file of a role from changes of its header, by path."""
    hu = random.integers(-1000, 400, SHAPE).astype(np.int16)
    label = np.zeros(SHAPE, np.uint8)
    label[3:9, 3:7, 2:5] = 1
    label[4:6, 4:6, 3] = 2
    voxels = {"image": hu, "label": label, "organ": (label == 1).astype(np.uint8)}
    if role in voxels:
        return {path: lambda changes: nifti_file(voxels[role], path, changes)}
    if role == "frames":
        return {path: lambda changes: frames_file(hu + 1024, CT_CLASS, "CT", changes)}
    if role == "breast":
        return {path: lambda changes: frames_file(hu % 1023, DBT_CLASS, "MG", changes)}
    if role == "seg":
        return {}
    if role == "masks":
        masks = {"liver": label > 0, "livertumor01": label > 1}
        stacks = {f"{path}/{name}": mask * np.int16(255) for name, mask in masks.items()}
    else:
        stacks = {path: hu + np.int16(1024)}
    found = {}
    for folder, stack in stacks.items():
        series = generate_uid(entropy_srcs=[folder, str(random.integers(2**31))])
        for z in range(SHAPE[2]):
            found[f"{folder}/image_{z}"] = slice_file(stack[:, :, z], z, series)
    return found
