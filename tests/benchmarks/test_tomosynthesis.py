"""What is measured in tomosynthesis volumes, against values known by construction."""

import numpy as np
import pytest

from benchmarks.tomosynthesis import spectrum_exponent, width_at_half
from preprocessing.phantom.breast import power_law_field


@pytest.mark.parametrize("exponent", [2.0, 3.0])
def test_exponent_of_a_field_with_a_known_spectrum(exponent):
    field = power_law_field(np.random.default_rng(0), (320, 320, 8), (0.2, 0.2, 50.0), exponent)
    plane = 0.5 + 0.1 * field[:, :, 4]
    assert spectrum_exponent(plane, 0.2) == pytest.approx(exponent, abs=0.35)
    # Air at the edge is left out.
    beside = np.concatenate([np.full((320, 320), -2.0), plane])
    assert spectrum_exponent(beside, 0.2) == pytest.approx(exponent, abs=0.35)


def test_width_at_half():
    # A triangle of 1 at 5 that is 0 at 1 and 9: half of it at 3 and 7.
    triangle = np.maximum(0, 1 - np.abs(np.arange(11) - 5) / 4).tolist()
    assert width_at_half(triangle, 5) == pytest.approx(4)
    # Half is reached between two steps: 1 falls to 0.25, half of it after two thirds of a step.
    assert width_at_half([0.25, 1.0, 0.25], 1) == pytest.approx(4 / 3)
    # It never falls below: the width that is there.
    assert width_at_half([1.0, 1.0, 1.0], 1) == pytest.approx(2)
