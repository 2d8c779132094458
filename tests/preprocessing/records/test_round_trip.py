"""Label maps through the whole conversion and back: each voxel returns to its own place in the file."""

import json

import attrs
import nibabel as nib
import numpy as np
import pytest
import tensorflow as tf

from preprocessing.convert import convert
from preprocessing.records.schema import parse_example
from preprocessing.tasks import Task, load_task
from preprocessing.volumes.geometry import from_target_grid, target_grid

TASK = Task(
    "round_trip",
    ("background", "organ", "lesion"),
    (-200.0, 250.0),
    patch_shape_zyx=(4, 8, 8),
)
POLICIES = {
    "keep": TASK,
    "in_plane": attrs.evolve(TASK, resampling="in_plane", spacing_mm=(0.6, 0.6, 1.0)),
    "full": attrs.evolve(TASK, resampling="full", spacing_mm=(0.7, 0.6, 1.5)),
}
# Axes in any order and direction; a rotated patient; a tilted gantry.
CODES = ("RAS", "LPS", "LPI", "PIR", "SAL", "ILP")
ROTATED = np.array([[0.8, -0.1, 0.4, 3], [0.1, 0.8, 0, -5], [-0.06, 0.02, 3, 80], [0, 0, 0, 1]])
TILTED = np.array([[-0.8, 0, 0, 3], [0, -0.9, 1.1, -5], [0, 0, 3.0, 80], [0, 0, 0, 1]])


def affine_of(codes):
    orientation = nib.orientations.axcodes2ornt(codes)
    affine = nib.orientations.inv_ornt_aff(orientation, (5, 6, 7))
    return np.diag([0.8, 0.9, 3.0, 1]) @ affine


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """NIfTI cases of all kinds of grids with random labels; {case id: (label, affine)}."""
    folder = tmp_path_factory.mktemp("grids")
    random = np.random.default_rng(0)
    grids = {codes: affine_of(codes) for codes in CODES} | {"rotated": ROTATED, "tilted": TILTED}
    labels = {}
    for name, affine in grids.items():
        image = random.integers(-1000, 1000, (9, 11, 6), np.int16)
        label = random.integers(0, 3, image.shape, np.uint8)
        (folder / name).mkdir()
        nib.save(nib.Nifti1Image(image, affine), folder / name / "image.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), folder / name / "label.nii.gz")
        # The file's own affine: it holds 32-bit numbers.
        labels[name] = (label, nib.load(folder / name / "image.nii.gz").affine)
    return folder, labels


@pytest.mark.parametrize("policy", POLICIES)
def test_labels_land_on_their_own_voxels(data, tmp_path, policy):
    folder, labels = data
    (tmp_path / "splits.json").write_text(json.dumps({"train": [], "eval": list(labels)}))
    output = tmp_path / "records"
    convert(
        [str(folder)],
        str(output),
        POLICIES[policy],
        splits_file=str(tmp_path / "splits.json"),
        progress=False,
    )
    task = load_task(str(output / "task.json"))
    rebuilt = {}
    for serialized in tf.data.TFRecordDataset(sorted(map(str, output.glob("eval/*.tfrecord")))):
        record = {name: value.numpy() for name, value in parse_example(serialized, task).items()}
        shape = [record[f"volume_{axis}"] for axis in "zyx"]
        # 9 says that no tile has come for a voxel.
        array = rebuilt.setdefault(record["case_id"].decode(), np.full(shape, 9, np.uint8))
        valid = [record[f"valid_{axis}"] for axis in "zyx"]
        place = tuple(
            slice(record[f"origin_{axis}"], record[f"origin_{axis}"] + extent)
            for axis, extent in zip("zyx", valid, strict=True)
        )
        array[place] = record["label"][tuple(map(slice, valid))]
    assert rebuilt.keys() == labels.keys()
    for name, (label, affine) in labels.items():
        space = target_grid(label.shape, affine, task)
        assert space.shape_zyx == rebuilt[name].shape
        assert (rebuilt[name] < 9).all()
        assert np.array_equal(from_target_grid(rebuilt[name], space), label), name
