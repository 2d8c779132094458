"""Bootstrap intervals: by hand, against theory, and where there is nothing to say."""

import numpy as np
import pytest

from ahnet_tf.evaluation.summary import bootstrap_intervals


def means(values, seed=0, contributing=None):
    """Intervals of the means of the columns of [case, measure]; NaN marks what is undefined."""
    values = np.asarray(values, float)
    known = ~np.isnan(values)

    def statistic(weights):
        with np.errstate(invalid="ignore"):
            return (weights @ np.where(known, values, 0)) / (weights @ known)

    return bootstrap_intervals(statistic, known.sum(axis=0), len(values), seed)


def test_two_cases_span_their_interval():
    # Drawn twice of two: both the lower in 1/4, both the higher in 1/4 of the drawings.
    assert means([[0.2, 5], [0.8, 5]]).tolist() == [[0.2, 0.8], [5, 5]]


def test_against_the_normal_distribution():
    values = np.random.default_rng(3).normal(7, 2, (400, 1))
    low, high = means(values)[0]
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_one_contributing_case_or_none_says_nothing():
    assert np.isnan(means([[1.0]])).all()
    assert np.isnan(means(np.empty((0, 1)))).all()
    found = means([[1, np.nan, np.nan], [3, 2, np.nan], [5, np.nan, np.nan]])
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1:]).all()


def test_drawings_without_a_value_are_left_out():
    # Most drawings of ten cases hold one of the two that have a value; many hold none.
    found = means([[1.0], [2.0]] + 8 * [[np.nan]])
    assert found.tolist() == [[1, 2]]


def test_seeds():
    values = np.random.default_rng(0).normal(size=(12, 2))
    np.testing.assert_array_equal(means(values, 5), means(values, 5))
    assert (means(values, 5) != means(values, 6)).all()
