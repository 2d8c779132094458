"""Checks of the statistics of records: features, drift, skew, cases in two splits, swapped labels.

Also collects them as plain facts for the model card.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations, islice
from typing import Any, TypeAlias

from scipy import stats
from tensorflow_metadata.proto.v0 import statistics_pb2

from preprocessing.records.schema import (
    CASE_ID,
    INTENSITY_QUANTILES,
    SOURCE,
    SPACING_CLASS,
    scalar_features,
    specification,
    voxel_features,
)
from preprocessing.tasks import Task

Statistics: TypeAlias = statistics_pb2.DatasetFeatureStatistics

# Means differ if they are further apart than the spread of the cases, and than chance explains at
# this probability, that of three standard deviations.
LEAST_SPREADS = 1.0
LEAST_PROBABILITY = 0.0027
# Differences that a network tolerates: of an intensity as a fraction of the task's window, by which
# augmentation shifts it too; of a spacing as a fraction of itself.
INTENSITY_SLACK = 0.05
SPACING_SLACK = 0.1
# Number of case ids that the statistics keep for the comparison of splits.
MOST_CASES = 1_000_000
# Number of sources that the model card names.
MOST_SOURCES = 20
# Organs and lesions fill less than this fraction of a volume.
LARGEST_FOREGROUND = 0.5
# Lesions by the organ that contains them.
PARTS = {"liver": ("tumour",)}
# TFDV's word for a text that is not UTF-8.
_NO_TEXT = "__BYTES_VALUE__"
# The lists of a tf.train.Feature by TFDV's types, and by the types that TensorFlow parses.
_LISTS = {
    statistics_pb2.FeatureNameStatistics.INT: "int64",
    statistics_pb2.FeatureNameStatistics.FLOAT: "float",
    statistics_pb2.FeatureNameStatistics.STRING: "bytes",
    statistics_pb2.FeatureNameStatistics.BYTES: "bytes",
}
_PARSED = {"int64": "int64", "float32": "float", "string": "bytes"}


def text_values(statistics: Statistics, name: str) -> dict[str, int]:
    """Returns the number of records with each value of a text feature, most frequent first."""
    for feature in statistics.features:
        if feature.path.step[0] == name:
            buckets = feature.string_stats.rank_histogram.buckets
            return {bucket.label: int(bucket.sample_count) for bucket in buckets}
    return {}


def case_ids(statistics: Statistics) -> set[str]:
    """Returns the ids of all cases that the records were cut from."""
    return set(text_values(statistics, CASE_ID))


def numeric_features(statistics: Statistics) -> dict[str, statistics_pb2.NumericStatistics]:
    """Returns the mean, standard deviation, minimum and so on of the numeric features by name."""
    return {
        feature.path.step[0]: feature.num_stats
        for feature in statistics.features
        if feature.HasField("num_stats")
    }


def misfits(statistics: Statistics, task: Task) -> dict[str, str]:
    """Returns what keeps features from being those of a task's records, in words, by feature.

    Each record has exactly one value of each feature, of its type, and no other feature. Voxels are
    checked as far as the statistics have them: they must have the bytes of the task's patches.
    """
    records = int(statistics.num_examples)
    wanted = {name: _PARSED[each.dtype.name] for name, each in specification(task).items()}
    shape = " x ".join(map(str, task.patch_shape_zyx))
    voxel_bytes = {
        name: size * math.prod(task.patch_shape_zyx) for name, size in voxel_features(task).items()
    }
    found: dict[str, str] = {}
    for feature in statistics.features:
        name, kind = feature.path.step[0], _LISTS.get(feature.type, "nested")
        common = getattr(feature, feature.WhichOneof("stats") or "num_stats").common_stats
        least, most = int(common.min_num_values), int(common.max_num_values)
        if name not in wanted:
            found[name] = f"no feature of task {task.name}"
        elif kind != wanted[name]:
            found[name] = f"{kind} values instead of {wanted[name]}"
        elif common.num_missing:
            found[name] = f"missing in {common.num_missing} of {records} records"
        elif (least, most) != (1, 1):
            values = str(most) if least == most else f"{least} to {most}"
            found[name] = f"{values} values in a record instead of 1"
        elif name in voxel_bytes:
            sizes = feature.bytes_stats
            least, most = int(sizes.min_num_bytes), int(sizes.max_num_bytes_int)
            if (least, most) != (voxel_bytes[name], voxel_bytes[name]):
                length = str(most) if least == most else f"{least} to {most}"
                patch = f"{voxel_bytes[name]}, as patches of {shape} voxels (z, y, x) are"
                found[name] = f"{length} bytes long, not {patch}"
        elif name == CASE_ID and {"", _NO_TEXT} & text_values(statistics, name).keys():
            found[name] = "empty or no UTF-8 in some records"
    present = {feature.path.step[0] for feature in statistics.features}
    # Statistics for an inferred schema have no voxels at all.
    needed = wanted if present & voxel_bytes.keys() else scalar_features(task)
    for name in needed:
        if name not in present:
            found[name] = f"missing in all {records} records"
    return found


def absent_labels(statistics: Statistics, task: Task) -> dict[str, str]:
    """Returns what is wrong with the labels that no case has, in words, by feature."""
    features = numeric_features(statistics)
    names = {f"case_voxels_label_{value}": value for value in range(1, len(task.class_names))}
    return {
        name: f"label {value} ({task.class_names[value]}) is present in no case"
        for name, value in names.items()
        if name in features and features[name].max <= 0
    }


def differences(
    new: Statistics, old: Statistics, task: Task, unusable: Collection[str] = ()
) -> Iterator[str]:
    """Yields a sentence for each intensity quantile and spacing whose mean has changed.

    Features that are `unusable`, or that one of the two does not have, are not compared.

    With the pooled standard deviation s, never taken below the tolerated difference, the means
    differ if they are more than s apart and more than t standard errors, s times
    sqrt(1 / new_cases + 1 / old_cases). The quantile t of Student's distribution is 3 for many
    cases, 4 for ten, 19 for two against two, and infinite for one against one.
    """
    low, high = task.intensity_window
    new_features, old_features = numeric_features(new), numeric_features(old)
    new_cases, old_cases = (max(1, len(case_ids(each))) for each in (new, old))
    freedom = new_cases + old_cases - 2
    errors = stats.t.isf(LEAST_PROBABILITY / 2, freedom) if freedom else math.inf
    for name in (*INTENSITY_QUANTILES, *(f"spacing_{axis}_mm" for axis in "xyz")):
        if name in unusable or name not in new_features or name not in old_features:
            continue
        now, before = new_features[name], old_features[name]
        in_mm = name not in INTENSITY_QUANTILES
        slack = SPACING_SLACK * before.mean if in_mm else INTENSITY_SLACK * (high - low)
        spread = max(slack, math.sqrt((now.std_dev**2 + before.std_dev**2) / 2))
        error = spread * math.sqrt(1 / new_cases + 1 / old_cases)
        least = max(LEAST_SPREADS * spread, errors * error)
        # A mean that is NaN has changed as well.
        if not abs(now.mean - before.mean) <= least:
            yield (
                f"{name}: mean {now.mean:.4g} over {new_cases} cases against {before.mean:.4g} over "
                f"{old_cases} (at most {least:.3g} apart)"
            )


def leaks(by_split: Mapping[str, Statistics]) -> Iterator[str]:
    """Yields a sentence for each pair of splits that share cases."""
    for split, other in combinations(sorted(by_split), 2):
        both = case_ids(by_split[split]) & case_ids(by_split[other])
        if both:
            yield f"{CASE_ID}: {len(both)} cases are in both {split} and {other} {_some(both)}"


def span_leaks(
    new: Mapping[str, Statistics],
    together: Sequence[Mapping[str, Statistics]],
    learned: Sequence[Mapping[str, Statistics]],
) -> Iterator[str]:
    """Yields a sentence for each split of a new span with cases that earlier spans have as well.

    None may be trained on and evaluated on in the spans that are used `together`, evaluated on twice
    (both would count as one case), or evaluated on if a start model has `learned` it. All mappings are
    by split.
    """
    for split, other, earlier in (
        ("eval", "train", [*together, *learned]),
        ("train", "eval", together),
        ("eval", "eval", together),
    ):
        before = {each for span in earlier if other in span for each in case_ids(span[other])}
        both = before & case_ids(new[split]) if split in new else set()
        if both:
            where = f"in {split} and in {other} of a span before"
            yield f"{CASE_ID}: {len(both)} cases are {where} {_some(both)}"


def _some(ids: Collection[str]) -> str:
    """Returns up to five case ids in parentheses."""
    return f"({', '.join(sorted(ids)[:5])}{', ...' if len(ids) > 5 else ''})"


def swapped_labels(statistics: Statistics, task: Task) -> Iterator[str]:
    """Yields a sentence for each sign that labels stand for other classes than the task says.

    A part (`PARTS`, a tumour of its liver) is on average smaller than the rest of the whole that
    contains it, and the background fills most of a volume.
    """
    voxels = _voxels_per_case(statistics, task)
    if len(voxels) < len(task.class_names):
        return
    for whole in PARTS.keys() & voxels:
        for part in PARTS[whole]:
            if voxels.get(part, 0) > voxels[whole]:
                yield (
                    f"labels: {voxels[part]:.0f} voxels per case are {part} and only "
                    f"{voxels[whole]:.0f} other {whole}; the two may be swapped"
                )
        share = 1 - voxels[task.class_names[0]] / max(1, sum(voxels.values()))
        if share > LARGEST_FOREGROUND:
            yield (
                f"labels: {100 * share:.0f} % of the voxels are not {task.class_names[0]}; "
                f"it may be swapped with {whole}"
            )


def data_facts(statistics: Mapping[str, Statistics], task: Task) -> dict[str, dict[str, Any]]:
    """Returns the cases, patches, sources, spacings and intensities of each split."""
    facts = {}
    for split, each in sorted(statistics.items()):
        features = numeric_features(each)
        spacings = {axis: features[f"spacing_{axis}_mm"] for axis in "xyz"}
        quantiles = {name: features[name] for name in INTENSITY_QUANTILES}
        facts[split] = {
            "cases": len(case_ids(each)),
            "patches": int(each.num_examples),
            "sources": dict(islice(text_values(each, SOURCE).items(), MOST_SOURCES)),
            "spacing_classes": text_values(each, SPACING_CLASS),
            "spacing_mm": {axis: [found.min, found.max] for axis, found in spacings.items()},
            "intensities": {
                name: {"mean": found.mean, "low": found.min, "high": found.max}
                for name, found in quantiles.items()
            },
            "mean_voxels_a_case": _voxels_per_case(each, task),
        }
    return facts


def _voxels_per_case(statistics: Statistics, task: Task) -> dict[str, float]:
    """Returns the mean number of voxels of each class."""
    features = numeric_features(statistics)
    names = {f"case_voxels_label_{value}": each for value, each in enumerate(task.class_names)}
    return {each: features[name].mean for name, each in names.items() if name in features}
