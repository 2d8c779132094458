"""What is to be known of a run's data and scores: from the folders of its artifacts to plain facts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tfx.dsl.io import fileio

from pipeline.components.data_checks import Statistics, case_ids, moments
from preprocessing.records.output_folder import MANIFEST
from preprocessing.records.schema import INTENSITY_QUANTILES
from preprocessing.tasks import Task

# Values of a text feature that are named one by one.
_MOST_VALUES = 20


def data_facts(statistics: Mapping[str, Statistics], task: Task) -> dict[str, dict[str, Any]]:
    """Returns for each split its cases, patches, sources, and the ranges of spacing and intensity.

    Args:
      statistics: by split.
      task: names the classes.
    """
    facts = {}
    for split, each in sorted(statistics.items()):
        numeric = {
            feature.path.step[0]: feature.num_stats
            for feature in each.features
            if feature.HasField("num_stats")
        }
        means = moments(each)
        facts[split] = {
            "cases": len(case_ids(each)),
            "patches": int(each.num_examples),
            "sources": _values(each, "source"),
            "spacing_classes": _values(each, "spacing_class"),
            "spacing_mm": {
                axis: [numeric[f"spacing_{axis}_mm"].min, numeric[f"spacing_{axis}_mm"].max]
                for axis in "xyz"
            },
            "intensities": {
                name: {
                    "mean": means[name].mean,
                    "low": numeric[name].min,
                    "high": numeric[name].max,
                }
                for name in INTENSITY_QUANTILES
            },
            "mean_voxels_a_case": {
                class_name: means[f"case_voxels_label_{value}"].mean
                for value, class_name in enumerate(task.class_names)
            },
        }
    return facts


def conversion_facts(folder: str | None) -> dict[str, Any] | None:
    """Returns how many cases a conversion found and took, from its manifest; None without one."""
    if folder is None:
        return None
    with fileio.open(f"{folder}/{MANIFEST}", "r") as file:
        manifest = json.load(file)
    reasons = [
        f"{case['case_id']}: {case['reason']}"
        for case in manifest["cases"]
        if case["status"] == "rejected"
    ]
    kept = {name: manifest[name] for name in ("found", "converted", "rejected", "splits")}
    return kept | {"reasons": reasons, "settings": manifest["settings"]}


def _values(statistics: Statistics, name: str) -> dict[str, int]:
    """Returns how many patches have each value of a text feature."""
    for feature in statistics.features:
        if feature.path.step[0] == name:
            buckets = list(feature.string_stats.rank_histogram.buckets)[:_MOST_VALUES]
            return {bucket.label: int(bucket.sample_count) for bucket in buckets}
    return {}
