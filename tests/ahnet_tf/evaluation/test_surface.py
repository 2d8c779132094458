"""Surface Dice and HD95: by hand, every empty mask, laws, and the library that defines them."""

import math

import numpy as np
import pytest
import surface_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ahnet_tf.evaluation.surface import surface_dice_and_hd95

MM = (3.0, 2.0, 1.0)
masks = arrays(bool, (4, 5, 3), elements=st.booleans())


def mask(*voxels, shape=(6, 6, 6)):
    filled = np.zeros(shape, bool)
    for voxel in voxels:
        filled[voxel] = True
    return filled


def scores(prediction, reference, tolerance_mm=1.0, spacing_mm=MM):
    found = surface_dice_and_hd95(prediction, reference, spacing_mm, tolerance_mm)
    return found["surface_dice"], found["hd95_mm"]


def test_two_voxels_by_hand():
    """One voxel has eight elements of the same area at its corners."""
    one, two = mask((1, 2, 1)), mask((1, 2, 3))
    # 2 mm apart along the third axis: four corners lie 1 mm from the other's, four 2 mm.
    assert scores(one, two, 1.0) == (0.5, 2)
    assert scores(one, two, 0.99) == (0, 2)
    assert scores(one, two, 2.0) == (1, 2)
    # The next voxel along the first axis, 3 mm: one face is common, the other corners 3 mm away.
    assert scores(one, mask((2, 2, 1)), 0.0) == (0.5, 3)


def test_elements_count_by_their_area():
    """A slab of 80 x 80 voxels, 10 x 10 x 1 mm: its sides hardly count beside its two faces."""
    reference, prediction = np.zeros((84, 84, 5), bool), np.zeros((84, 84, 5), bool)
    reference[2:82, 2:82, 2] = True
    prediction[2:82, 2:82, 2:4] = True
    dice, _ = scores(prediction, reference, 0.0, (10.0, 10.0, 1.0))
    # One face agrees; the upper faces are 1 mm apart: about half of all area.
    assert dice == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("prediction", "reference", "dice", "hd95_mm"),
    [
        (mask(), mask(), math.nan, math.nan),
        (mask(), mask((1, 1, 1)), 0, math.nan),
        (mask((1, 1, 1)), mask(), 0, math.nan),
        (mask((1, 1, 1)), mask((1, 1, 1)), 1, 0),
        (mask((0, 0, 0)), mask((5, 0, 0)), 0, 15),
        (mask((5, 5, 5)), mask((5, 5, 5)), 1, 0),
        (~mask(), ~mask(), 1, 0),
    ],
)
def test_every_empty_mask(prediction, reference, dice, hd95_mm):
    assert scores(prediction, reference) == pytest.approx((dice, hd95_mm), nan_ok=True)


def test_five_percent_of_the_surface_may_be_far():
    reference = np.zeros((40, 40, 40), bool)
    reference[5:25, 5:25, 5:25] = True
    prediction = reference.copy()
    prediction[35, 35, 35] = True
    # The lone voxel is far below 5 % of the area: HD95 sees nothing of it.
    assert scores(prediction, reference, spacing_mm=(1.0, 1.0, 1.0))[1] == 0


@given(masks, masks, st.sampled_from([0.0, 1.0, 2.5, 4.0]))
@settings(deadline=None, max_examples=60)
def test_equals_the_library(prediction, reference, tolerance_mm):
    """Its distances come from distance transforms, these from a tree of points."""
    if not (prediction.any() and reference.any()):
        return
    distances = surface_distance.compute_surface_distances(reference, prediction, MM)
    expected = (
        surface_distance.compute_surface_dice_at_tolerance(distances, tolerance_mm),
        surface_distance.compute_robust_hausdorff(distances, 95),
    )
    assert scores(prediction, reference, tolerance_mm) == pytest.approx(expected, abs=1e-6)


@given(masks, masks)
@settings(deadline=None, max_examples=40)
def test_laws(prediction, reference):
    there = [scores(prediction, reference, mm) for mm in (0.0, 1.0, 3.0, 1e3)]
    back = [scores(reference, prediction, mm) for mm in (0.0, 1.0, 3.0, 1e3)]
    for one, other in zip(there, back, strict=True):
        assert one == pytest.approx(other, nan_ok=True)
    dices = [dice for dice, _ in there]
    if prediction.any() and reference.any():
        assert dices == sorted(dices)
        assert dices[-1] == pytest.approx(1)
        twice = scores(prediction, reference, 6.0, tuple(2 * mm for mm in MM))
        assert twice == pytest.approx((dices[2], 2 * there[0][1]))
