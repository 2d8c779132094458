"""The tf.Example contract, and TFRecord files as TensorFlow reads them."""

import dataclasses
import hashlib

import attrs
import numpy as np
import pytest
import tensorflow as tf

from preprocessing.errors import InputError
from preprocessing.records.schema import (
    Patch,
    encode_patch,
    parse_example,
    scalar_features,
    spacing_class,
    voxel_features,
)
from preprocessing.records.storage import write_shards
from preprocessing.tasks import PRESETS

TASK = attrs.evolve(PRESETS["ct_liver"], patch_shape_zyx=(2, 3, 4))


@pytest.fixture
def patch():
    image = (np.arange(24, dtype=np.int16) * 100 - 1000).reshape(2, 3, 4)
    label = np.zeros((2, 3, 4), np.uint8)
    label[0, 1] = 1
    label[0, 2, 3] = 2
    label[1, 2, 3] = 2  # in the part that doesn't count
    return Patch(
        image_zyx=image,
        label_zyx=label,
        case_id="case-é",
        source="lits",
        index=5,
        origin_zyx=(10, 20, 30),
        valid_zyx=(1, 3, 4),
        volume_shape_zyx=(11, 23, 34),
        spacing_mm=(0.7, 0.8, 5.0),
        intensity_quantiles=(-900.0, 0.0, 300.0),
        case_label_voxels=(100, 10, 1),
    )


def test_every_feature_comes_back(patch):
    parsed = parse_example(tf.constant(encode_patch(patch, TASK)), TASK)
    assert np.array_equal(parsed.pop("image")[..., 0], patch.image_zyx)
    assert np.array_equal(parsed.pop("label"), patch.label_zyx)
    assert parsed.pop("weight").numpy().tolist() == [
        np.ones((3, 4)).tolist(),
        np.zeros((3, 4)).tolist(),
    ]
    values = {name: tensor.numpy() for name, tensor in parsed.items()}
    assert values.pop("case_id").decode() == "case-é"
    assert values == pytest.approx(
        {
            "source": b"lits",
            "spacing_class": b"thick",
            "patch_index": 5,
            **{"origin_z": 10, "origin_y": 20, "origin_x": 30},
            **{"valid_z": 1, "valid_y": 3, "valid_x": 4},
            **{"shape_z": 2, "shape_y": 3, "shape_x": 4},
            **{"volume_z": 11, "volume_y": 23, "volume_x": 34},
            **{"spacing_x_mm": 0.7, "spacing_y_mm": 0.8, "spacing_z_mm": 5.0},
            **{"intensity_p01": -900, "intensity_p50": 0, "intensity_p99": 300},
            **{"voxels_label_0": 7, "voxels_label_1": 4, "voxels_label_2": 1},
            **{"case_voxels_label_0": 100, "case_voxels_label_1": 10, "case_voxels_label_2": 1},
        }
    )
    assert set(scalar_features(TASK)) == set(values) | {"case_id"}


def test_a_heat_map_comes_back_as_fractions(patch):
    task = attrs.evolve(TASK, class_names=("background", "lesion"), target="heat_map")
    heat_map = np.zeros((2, 3, 4), np.uint8)
    heat_map[0, 1] = [0, 51, 128, 255]
    label = (heat_map >= 128).astype(np.uint8)
    with_map = dataclasses.replace(
        patch, label_zyx=label, heat_map_zyx=heat_map, case_label_voxels=(9, 2)
    )
    serialized = encode_patch(with_map, task)
    found = parse_example(tf.constant(serialized), task)
    assert found["heat_map"].dtype == tf.float32
    np.testing.assert_allclose(found["heat_map"][0, 1], [0, 0.2, 128 / 255, 1], rtol=1e-6)
    assert voxel_features(task) == {"image": 2, "label": 1, "heat_map": 1}
    names = set(tf.train.Example.FromString(serialized).features.feature)
    assert names == {"image", "label", "heat_map", *scalar_features(task)}
    for wrong in (None, heat_map[:1], heat_map.astype(np.int16)):
        with pytest.raises(InputError, match="heat_map"):
            encode_patch(dataclasses.replace(with_map, heat_map_zyx=wrong), task)
    with pytest.raises(
        InputError, match="expected voxels of image, label, found image, label, heat_map"
    ):
        encode_patch(with_map, attrs.evolve(task, target="labels"))


def test_features_written_are_the_features_read(patch):
    example = tf.train.Example.FromString(encode_patch(patch, TASK))
    assert set(example.features.feature) == {"image", "label", *scalar_features(TASK)}


def test_same_patch_same_bytes_and_views_are_fine(patch):
    flipped = dataclasses.replace(
        patch,
        image_zyx=np.flip(np.flip(patch.image_zyx, 1).copy(), 1),
        label_zyx=np.asfortranarray(patch.label_zyx),
    )
    assert encode_patch(flipped, TASK) == encode_patch(patch, TASK)


def test_other_dtypes_and_shapes_are_refused(patch):
    with pytest.raises(InputError, match=r"image patches of int16, .* found float32"):
        encode_patch(dataclasses.replace(patch, image_zyx=patch.image_zyx.astype("f4")), TASK)
    with pytest.raises(InputError, match=r"\(2, 3, 4\)"):
        encode_patch(dataclasses.replace(patch, image_zyx=patch.image_zyx[:1]), TASK)
    bad = np.full((2, 3, 4), 3, np.uint8)
    with pytest.raises(InputError, match="label values below 3"):
        encode_patch(dataclasses.replace(patch, label_zyx=bad), TASK)


@pytest.mark.parametrize(
    ("spacing", "name"), [(0.5, "thin"), (2.0, "medium"), (3.99, "medium"), (4.0, "thick")]
)
def test_spacing_classes(spacing, name):
    assert spacing_class(spacing) == name


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_files_are_those_of_tensorflows_own_writer(tmp_path, size):
    record = np.random.default_rng(size).bytes(size)
    with tf.io.TFRecordWriter(str(tmp_path / "a")) as writer:
        writer.write(record)
    (shard,) = write_shards(str(tmp_path), "b", [record], limit_bytes=1)
    assert (tmp_path / shard.name).read_bytes() == (tmp_path / "a").read_bytes()


def test_shards_are_split_by_size_and_hashed(tmp_path):
    records = [bytes([n]) * 84 for n in range(5)]  # 100 bytes each in a file
    shards = write_shards(str(tmp_path), "case", records, limit_bytes=250)
    assert [(shard.name, shard.records, shard.size) for shard in shards] == [
        ("case-00000.tfrecord", 2, 200),
        ("case-00001.tfrecord", 2, 200),
        ("case-00002.tfrecord", 1, 100),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [shard.name for shard in shards]
    paths = [str(tmp_path / shard.name) for shard in shards]
    assert list(tf.data.TFRecordDataset(paths).as_numpy_iterator()) == records
    for shard in shards:
        content = (tmp_path / shard.name).read_bytes()
        assert shard.sha256 == hashlib.sha256(content).hexdigest()


def test_a_record_beyond_the_limit_has_its_own_file_and_no_records_have_none(tmp_path):
    shards = write_shards(str(tmp_path), "a", [bytes(500), bytes(10)], limit_bytes=100)
    assert [shard.records for shard in shards] == [1, 1]
    assert write_shards(str(tmp_path), "b", [], limit_bytes=100) == []


def test_an_error_between_records_leaves_no_temporary_file(tmp_path):
    def records():
        yield b"1"
        raise InputError("a", "b", "c")

    with pytest.raises(InputError):
        write_shards(str(tmp_path), "a", records(), limit_bytes=100)
    assert list(tmp_path.iterdir()) == []
