"""Confidence intervals by bootstrap over cases: whole cases are drawn again, with replacement."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

RESAMPLES = 9999
CONFIDENCE = 0.95


def bootstrap_intervals(
    statistic: Callable[[np.ndarray], np.ndarray], contributing: np.ndarray, cases: int, seed: int
) -> np.ndarray:
    """Returns the 95 % interval of each measure, float64 [measure, 2]: the percentiles 2.5 and 97.5.

    All measures see the same drawings. A drawing in which a measure is undefined is left out for that
    measure. NaN where fewer than two cases contribute: one case says nothing of others.

    Args:
      statistic: from how often each case was drawn, float64 [drawing, case], to the measures
        [drawing, measure].
      contributing: how many cases each measure depends on [measure].
      cases: how many there are.
      seed: of the drawings; the same seed gives the same intervals.
    """
    intervals = np.full((len(contributing), 2), np.nan)
    chosen = np.asarray(contributing) >= 2
    if cases < 2 or not chosen.any():
        return intervals

    def of_drawn(drawn: np.ndarray, axis: int) -> np.ndarray:
        rows = drawn.reshape(-1, cases)
        flat = rows + cases * np.arange(len(rows))[:, None]
        weights = np.bincount(flat.ravel(), minlength=rows.size).reshape(rows.shape)
        measures = statistic(weights.astype(np.float64))[:, chosen]
        return measures.T.reshape(-1, *drawn.shape[:-1])

    result = stats.bootstrap(
        (np.arange(cases),),
        of_drawn,
        n_resamples=RESAMPLES,
        batch=500,
        vectorized=True,
        method="percentile",
        random_state=np.random.default_rng(seed),
    )
    tail = 100 * (1 - CONFIDENCE) / 2
    distribution = result.bootstrap_distribution
    intervals[chosen] = np.nanpercentile(distribution, (tail, 100 - tail), axis=-1).T
    return intervals
