"""Datasets of patches: complete, reproducible, shared among workers; checks of records."""

import dataclasses
import itertools

import attrs
import numpy as np
import pytest
import tensorflow as tf

from ahnet_tf.config import AugmentationConfig
from ahnet_tf.data import dataset
from ahnet_tf.data.dataset import evaluation_dataset, training_dataset
from ahnet_tf.data.records import find_records, scan_records
from preprocessing.errors import InputError
from preprocessing.records.schema import Patch, encode_patch
from preprocessing.tasks import Task

TASK = Task("toy", ("background", "liver", "tumour"), (-200.0, 250.0), patch_shape_zyx=(2, 4, 6))


def patch(number, case="case-0", valid=(2, 4, 6), volume=(2, 4, 6)):
    """A patch whose voxels all hold its number, which identifies it in a batch."""
    label = np.zeros((2, 4, 6), np.uint8)
    label[:, :2] = 1
    label[0, 0, 0] = 2
    return Patch(
        image_zyx=np.full((2, 4, 6), number, np.int16),
        label_zyx=label,
        case_id=case,
        source="toy",
        index=number,
        origin_zyx=(0, 0, 0),
        valid_zyx=valid,
        volume_shape_zyx=volume,
        spacing_mm=(1.0, 1.0, 5.0),
        intensity_quantiles=(0.0, 0.0, 0.0),
        case_label_voxels=(23, 24, 1),
    )


def write(path, patches, task=TASK):
    compression = "GZIP" if path.suffix == ".gz" else None
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for one in patches:
            writer.write(encode_patch(one, task))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    return [
        write(folder / "a.tfrecord", [patch(number) for number in range(4)]),
        write(folder / "b-00000-of-00001.gz", [patch(number) for number in range(4, 7)]),
    ]


def numbers(dataset, batches):
    taken = itertools.islice(dataset.as_numpy_iterator(), batches)
    return [batch["image"][:, 0, 0, 0, 0].astype(int).tolist() for batch in taken]


def test_finds_plain_and_compressed_records_in_order(files, tmp_path):
    assert find_records(tmp_path.parent / files[0].rsplit("/", 1)[0]) == files


@pytest.mark.parametrize("folder", ["", "missing"])
def test_refuses_a_folder_without_records(tmp_path, folder):
    with pytest.raises(InputError, match="TFRecords"):
        find_records(tmp_path / folder)


def test_every_epoch_holds_every_record_once(files):
    batches = numbers(training_dataset(files, TASK, batch_size=2, seed=3), 14)
    flat = list(itertools.chain(*batches))
    epochs = [flat[start : start + 7] for start in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


@pytest.mark.slow
def test_order_and_augmentation_follow_seed_and_step_alone(files):
    def batches(start, seed=3):
        dataset = training_dataset(
            files,
            TASK,
            batch_size=2,
            seed=seed,
            augment=AugmentationConfig(warp_probability=0.5),
            start_step=start,
        )
        return list(itertools.islice(dataset.as_numpy_iterator(), 12 - start))

    whole = batches(0)
    for start in (1, 5, 9):
        for resumed, first in zip(batches(start), whole[start:], strict=True):
            for name, values in first.items():
                np.testing.assert_array_equal(resumed[name], values)
    assert any(
        not np.array_equal(a["image"], b["image"])
        for a, b in zip(whole, batches(0, 4), strict=False)
    )


def test_windows_mix_many_cases_whatever_the_size_of_patches(tmp_path, monkeypatch):
    # As if patches were so large that 128 MiB held none.
    monkeypatch.setattr(dataset, "WINDOW_BYTES", 1)
    cases, each = 24, 32
    files = [
        write(tmp_path / f"{case}.tfrecord", [patch(each * case + n) for n in range(each)])
        for case in range(cases)
    ]
    (first,) = numbers(training_dataset(files, TASK, batch_size=cases * each, seed=3), 1)
    windows = [first[start : start + 256] for start in range(0, len(first), 256)]
    assert sorted(first) == list(range(cases * each))
    for window in windows[:2]:
        # Sixteen files are read in turn, and their records are shuffled: a batch mixes cases.
        assert len({number // each for number in window}) == 16
        assert len({number // each for number in window[:16]}) > 8


def test_slabs_are_slices_of_the_patch_with_their_labels(tmp_path):
    ramp = patch(0)
    image = np.arange(2, dtype=np.int16)[:, None, None] + np.zeros((2, 4, 6), np.int16)
    files = [write(tmp_path / "a.tfrecord", [dataclasses.replace(ramp, image_zyx=image)])]
    batches = training_dataset(files, TASK, batch_size=40, seed=1, slab_slices=1)
    batch = next(batches.as_numpy_iterator())
    assert batch["image"].shape == (40, 1, 4, 6, 1)
    assert batch["label"].shape == batch["weight"].shape == (40, 1, 4, 6)
    slices = batch["image"][:, 0, 0, 0, 0]
    # Either slice is as likely; only the first has a tumour.
    assert 8 < slices.sum() < 32
    np.testing.assert_array_equal((batch["label"] == 2).any(axis=(1, 2, 3)), slices == 0)
    whole = training_dataset(files, TASK, batch_size=1, seed=1, slab_slices=5)
    assert next(whole.as_numpy_iterator())["image"].shape == (1, 2, 4, 6, 1)


def test_raw_intensities_labels_and_weights_reach_the_network_unchanged(files):
    batch = next(training_dataset(files, TASK, batch_size=3, seed=0).as_numpy_iterator())
    assert batch["image"].dtype == np.float32
    assert batch["image"].shape == (3, 2, 4, 6, 1)
    assert set(batch["image"].ravel()) <= set(range(7))
    np.testing.assert_array_equal(batch["label"][0], patch(0).label_zyx)
    assert batch["weight"].min() == 1


def test_evaluation_keeps_order_and_fills_the_last_batch_with_weightless_copies(files):
    batches = list(evaluation_dataset(files, TASK, batch_size=3).as_numpy_iterator())
    assert [batch["image"][:, 0, 0, 0, 0].tolist() for batch in batches] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 6, 6],
    ]
    assert batches[-1]["weight"].sum(axis=(1, 2, 3)).tolist() == [48, 0, 0]
    assert batches[-1]["case_id"].tolist() == [b"case-0"] * 3
    assert batches[-1]["spacing_mm"].tolist() == [[1, 1, 5]] * 3


def shares(dataset_of, batch_size, steps):
    """What two workers of two replicas each read, put together again: the numbers of each step."""
    taken = []
    for worker in range(2):
        context = tf.distribute.InputContext(
            num_input_pipelines=2, input_pipeline_id=worker, num_replicas_in_sync=4
        )
        elements = numbers(dataset_of(batch_size=batch_size, context=context), 2 * steps)
        assert {len(element) for element in elements} == {batch_size // 4}
        taken.append(elements)
    return [
        list(
            itertools.chain(*(worker[2 * step + replica] for worker in taken for replica in (0, 1)))
        )
        for step in range(steps)
    ]


def test_workers_share_each_batch_of_the_training(files):
    def dataset_of(**options):
        return training_dataset(files, TASK, seed=3, start_step=2, **options)

    assert shares(dataset_of, 8, steps=5) == numbers(dataset_of(batch_size=8), 5)
    cardinality = dataset_of(batch_size=8).cardinality()
    assert cardinality == tf.data.INFINITE_CARDINALITY


def test_workers_share_each_batch_of_the_evaluation(files):
    def dataset_of(**options):
        return evaluation_dataset(files, TASK, **options)

    assert shares(dataset_of, 4, steps=2) == [[0, 1, 2, 3], [4, 5, 6, 6]]


def test_scan_counts_records_and_voxels(files):
    summary = scan_records(files, TASK)
    assert summary.records == 7
    assert summary.volume_voxels == {"case-0": 48}


def test_scan_requires_eval_patches_to_tile_each_volume(tmp_path, files):
    first = patch(0, valid=(2, 4, 3), volume=(2, 4, 9))
    last = dataclasses.replace(patch(1, volume=(2, 4, 9)), origin_zyx=(0, 0, 3))
    tiles = [first, last]
    whole = [write(tmp_path / "whole.gz", tiles)]
    assert scan_records(whole, TASK, tiled=True).volume_voxels == {"case-0": 72}
    with pytest.raises(InputError, match="72 voxels exactly, found 1 of 2 missing, 0 twice"):
        scan_records([write(tmp_path / "part.gz", tiles[:1])], TASK, tiled=True)
    # Those of version 0.1 began with a whole tile.
    earlier = [
        dataclasses.replace(first, valid_zyx=(2, 4, 6)),
        dataclasses.replace(last, origin_zyx=(0, 0, 6), valid_zyx=(2, 4, 3)),
    ]
    of_earlier = [write(tmp_path / "earlier.gz", earlier)]
    assert scan_records(of_earlier, TASK, tiled=True).volume_voxels == {"case-0": 72}
    # As many voxels as the volume, but some of them twice.
    twice = [
        write(
            tmp_path / "twice.gz", [tiles[0], dataclasses.replace(tiles[1], origin_zyx=(0, 0, 0))]
        )
    ]
    assert scan_records(twice, TASK).records == 2
    with pytest.raises(InputError, match="72 voxels exactly, found 1 of 2 missing, 1 twice"):
        scan_records(twice, TASK, tiled=True)
    with pytest.raises(InputError, match="found 0 of 2 missing, 1 twice or elsewhere"):
        scan_records([write(tmp_path / "more.gz", [*tiles, tiles[1]])], TASK, tiled=True)


def test_scan_names_file_expected_and_found_for_another_patch_size(files):
    other = attrs.evolve(TASK, patch_shape_zyx=(2, 4, 4))
    with pytest.raises(InputError, match=r"a.tfrecord, record 0 .*2 x 4 x 4 .*found 2 x 4 x 6"):
        scan_records(files, other)


def test_scan_refuses_records_of_another_voxel_type(tmp_path):
    example = tf.train.Example.FromString(encode_patch(patch(0), TASK))
    voxels = np.zeros((2, 4, 6), np.float32).tobytes()
    example.features.feature["image"].bytes_list.value[0] = voxels
    path = str(tmp_path / "float.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(example.SerializeToString())
    with pytest.raises(InputError, match="96 bytes of int16 image, found 192 bytes"):
        scan_records([path], TASK)


@pytest.mark.parametrize("name", ["cut.tfrecord", "cut.tfrecord.gz"])
def test_scan_names_a_damaged_file(tmp_path, name):
    path = tmp_path / name
    write(path, [patch(number) for number in range(50)])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 + 40])
    with pytest.raises(InputError, match=r"cut.tfrecord.*readable records.*truncated|inflate|Data"):
        scan_records([str(path)], TASK)


def test_scan_names_the_damaged_one_of_several_files_and_the_record_within_its_file(tmp_path):
    good = [write(tmp_path / f"{name}.tfrecord", [patch(n) for n in range(3)]) for name in "abd"]
    cut = tmp_path / "c.tfrecord"
    write(cut, [patch(0)])
    cut.write_bytes(cut.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"c.tfrecord: expected readable records"):
        scan_records([*good[:2], str(cut), good[2]], TASK)
    other = write(tmp_path / "e.tfrecord", [patch(0), patch(1)])
    wrong = attrs.evolve(TASK, patch_shape_zyx=(2, 4, 4))
    with pytest.raises(InputError, match=r"e.tfrecord, record 0 "):
        scan_records([other, *good], wrong)
    assert scan_records([*good, other], TASK).records == 11


def test_scan_refuses_missing_files_foreign_records_and_none(tmp_path):
    with pytest.raises(InputError, match="readable records"):
        scan_records([str(tmp_path / "missing.gz")], TASK)
    foreign = str(tmp_path / "foreign.tfrecord")
    with tf.io.TFRecordWriter(foreign) as writer:
        writer.write(tf.train.Example().SerializeToString())
    with pytest.raises(InputError, match="readable records of patches"):
        scan_records([foreign], TASK)
    with pytest.raises(InputError, match="at least one record"):
        scan_records([write(tmp_path / "empty.gz", [])], TASK)
    with pytest.raises(InputError, match="at least one file"):
        scan_records([], TASK)
