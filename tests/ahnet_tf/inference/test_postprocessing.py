"""Post-processing of label maps, computed by hand."""

import numpy as np
import pytest

from ahnet_tf.inference.postprocessing import (
    check_has_lesions,
    keep_largest_component,
    keep_lesions_in_organ,
    remove_small_lesions,
)
from preprocessing.errors import SettingsError
from preprocessing.tasks import Task


def line(*labels):
    return np.array(labels, np.uint8).reshape(1, 1, -1)


def test_largest_component_keeps_the_liver_and_its_tumours():
    kept = keep_largest_component(line(1, 1, 2, 0, 2, 2, 0, 1))
    np.testing.assert_array_equal(kept, line(1, 1, 2, 0, 0, 0, 0, 0))
    np.testing.assert_array_equal(keep_largest_component(kept), kept)
    empty = np.zeros((2, 2, 2), np.uint8)
    np.testing.assert_array_equal(keep_largest_component(empty), empty)
    # Voxels that share only an edge are two regions.
    corner = np.array([[[1, 0], [0, 1]]], np.uint8)
    assert keep_largest_component(corner).sum() == 1


def test_lesions_stay_where_they_touch_the_organ():
    labels = line(2, 2, 0, 1, 2, 0, 2, 1, 2, 2)
    kept = keep_lesions_in_organ(labels)
    np.testing.assert_array_equal(kept, line(0, 0, 0, 1, 2, 0, 2, 1, 2, 2))
    assert kept.dtype == np.uint8
    # Voxels that share only an edge do not touch; a neighbour along any axis is enough.
    assert keep_lesions_in_organ(np.array([[[1, 0], [0, 2]]], np.uint8)).tolist() == [
        [[1, 0], [0, 0]]
    ]
    for axis in range(3):
        for labels in (line(1, 2), line(2, 1)):
            turned = np.moveaxis(labels, 2, axis)
            np.testing.assert_array_equal(keep_lesions_in_organ(turned), turned)
    np.testing.assert_array_equal(keep_lesions_in_organ(line(0, 2, 0)), line(0, 0, 0))


def test_small_lesions_become_organ_or_background():
    labels = line(1, 2, 1, 2, 2, 0, 2, 0)
    # Voxels of 2 mm3: lesions of 2, 4 and 2 mm3.
    np.testing.assert_array_equal(remove_small_lesions(labels, 3, 2.0, 2.0), labels)
    np.testing.assert_array_equal(
        remove_small_lesions(labels, 3, 2.0, 4.0), line(1, 1, 1, 2, 2, 0, 0, 0)
    )
    np.testing.assert_array_equal(
        remove_small_lesions(labels, 3, 2.0, 4.1), line(1, 1, 1, 1, 1, 0, 0, 0)
    )


def test_with_two_classes_the_foreground_is_the_lesion():
    labels = line(1, 0, 1, 1, 1)
    np.testing.assert_array_equal(remove_small_lesions(labels, 2, 1.0, 2.0), line(0, 0, 1, 1, 1))


def test_organs_are_not_taken_for_lesions():
    def check(*names, lesions_in_organ=False, smallest_mm3=0.0):
        task = Task("own", ("background", *names), (-200.0, 250.0))
        check_has_lesions(task, lesions_in_organ=lesions_in_organ, smallest_mm3=smallest_mm3)

    check("liver", "tumour", lesions_in_organ=True, smallest_mm3=200)
    check("mass", smallest_mm3=200)
    check("liver", "spleen", "kidney")
    for names in (("liver", "spleen", "kidney"), ("liver", "spleen"), ("mass",)):
        with pytest.raises(SettingsError, match="lesions_in_organ: expected a task of an organ"):
            check(*names, lesions_in_organ=True)
        if len(names) > 1:
            with pytest.raises(SettingsError, match=r"smallest_lesion_mm3: .* of two classes"):
                check(*names, smallest_mm3=200)


def test_lesions_of_exactly_the_limit_are_kept():
    # 3 voxels of 0.1 mm3 are a little less or more than 0.3 in floating point.
    labels = line(1, 1, 1, 0)
    for size in (1, 3, 6, 7):
        lesion = np.repeat(np.array([1, 0], np.uint8), (size, 1)).reshape(1, 1, -1)
        np.testing.assert_array_equal(
            remove_small_lesions(lesion, 2, 0.1, round(0.1 * size, 1)), lesion
        )
    assert not remove_small_lesions(labels, 2, 0.1, 0.4).any()
