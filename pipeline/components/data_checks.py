"""What statistics of two sets of records say against each other: drift, skew, leaks, swapped labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from scipy import stats
from tensorflow_metadata.proto.v0 import statistics_pb2

from pipeline.components.evaluator import PARTS
from preprocessing.records.schema import CASE_ID, INTENSITY_QUANTILES
from preprocessing.tasks import Task

Statistics = statistics_pb2.DatasetFeatureStatistics

# Means differ where they lie further apart than the spread of the cases, and than chance explains:
# by Student's t, which knows how little a few cases tell of their spread. As likely as three
# standard deviations.
LEAST_SPREADS = 1.0
LEAST_PROBABILITY = 0.0027
# Differences that no network minds: intensities by this share of the task's window, which augmentation
# shifts them by too, and spacings by this share of themselves.
INTENSITY_SLACK = 0.05
SPACING_SLACK = 0.1
# Names of cases that are kept for the comparison of splits; statistics are told to keep as many.
MOST_CASES = 1_000_000
# Labels fill less of a whole volume than this where they are organs and lesions.
LARGEST_FOREGROUND = 0.5


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of a feature, and how many cases they come from."""

    mean: float
    spread: float
    cases: int


def case_ids(statistics: Statistics) -> set[str]:
    """Returns the names of all cases that the records were cut from."""
    (feature,) = [each for each in statistics.features if each.path.step[0] == CASE_ID]
    buckets = feature.string_stats.rank_histogram.buckets
    return {bucket.label for bucket in buckets}


def moments(statistics: Statistics) -> dict[str, Moments]:
    """Returns the moments of every numeric feature by name."""
    cases = len(case_ids(statistics))
    return {
        feature.path.step[0]: Moments(
            feature.num_stats.mean, feature.num_stats.std_dev, max(1, cases)
        )
        for feature in statistics.features
        if feature.HasField("num_stats")
    }


def differences(new: Statistics, old: Statistics, task: Task) -> Iterator[str]:
    """Yields a sentence for every intensity quantile and spacing whose mean has moved.

    With the spread s of both sets together, never taken below a slack that no network minds, the
    means differ if they are more than s apart and more than t standard errors, s times
    sqrt(1 / cases + 1 / cases), with t from Student's distribution: 3 for many cases, 4 for ten of
    them, 19 for two against two, and infinite for one against one.
    """
    low, high = task.intensity_window
    new_moments, old_moments = moments(new), moments(old)
    slacks = dict.fromkeys(INTENSITY_QUANTILES, INTENSITY_SLACK * (high - low))
    for axis in "xyz":
        name = f"spacing_{axis}_mm"
        slacks[name] = SPACING_SLACK * old_moments[name].mean
    for name, slack in slacks.items():
        now, before = new_moments[name], old_moments[name]
        spread = max(slack, math.sqrt((now.spread**2 + before.spread**2) / 2))
        error = spread * math.sqrt(1 / now.cases + 1 / before.cases)
        freedom = now.cases + before.cases - 2
        errors = stats.t.isf(LEAST_PROBABILITY / 2, freedom) if freedom else math.inf
        least = max(LEAST_SPREADS * spread, errors * error)
        if not abs(now.mean - before.mean) <= least:
            yield (
                f"{name}: mean {now.mean:.4g} over {now.cases} cases against {before.mean:.4g} over "
                f"{before.cases} (at most {least:.3g} apart)"
            )


def leaks(by_split: Mapping[str, Statistics]) -> Iterator[str]:
    """Yields a sentence where the same case is in two splits."""
    names = sorted(by_split)
    for number, split in enumerate(names):
        for other in names[number + 1 :]:
            both = sorted(case_ids(by_split[split]) & case_ids(by_split[other]))
            if both:
                shown = ", ".join(both[:5]) + (", ..." if len(both) > 5 else "")
                yield f"{CASE_ID}: {len(both)} cases are in both {split} and {other} ({shown})"


def swapped_labels(statistics: Statistics, task: Task) -> Iterator[str]:
    """Yields a sentence where labels stand for other classes than the task says.

    A part (`pipeline.components.evaluator.PARTS`, a tumour of its liver) is on average smaller than the rest of
    the whole that it lies in, and what such wholes and parts leave of a volume is most of it.
    """
    voxels = {
        class_name: moments(statistics)[f"case_voxels_label_{value}"].mean
        for value, class_name in enumerate(task.class_names)
    }
    for whole, parts in PARTS.items():
        if whole not in voxels:
            continue
        for part in parts:
            if voxels.get(part, 0) > voxels[whole]:
                yield (
                    f"labels: {voxels[part]:.0f} voxels a case are {part} and only "
                    f"{voxels[whole]:.0f} other {whole}; the two may be swapped"
                )
        share = 1 - voxels[task.class_names[0]] / max(1, sum(voxels.values()))
        if share > LARGEST_FOREGROUND:
            yield (
                f"labels: {100 * share:.0f} % of the voxels are no {task.class_names[0]}; "
                f"it may be swapped with {whole}"
            )
