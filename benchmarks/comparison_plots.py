"""Plots of the paper's comparison: scores of each network, and curves of the trainings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.comparison_plan import REFERENCE, VARIANTS
from benchmarks.comparison_statistics import MEASURES
from preprocessing.files import atomic_write

TITLES = {"ct": "CT: liver and tumours", "dbt": "Tomosynthesis: masses"}
WIDTH_INCHES, DPI = 11.0, 110
MAIN, SECOND = "#0072B2", "#D55E00"


def plot_scores(path: Path, summary: Mapping[str, Any]) -> None:
    """Draws each variant's first measure as a PNG: a dot a seed, a bar at their mean.

    Args:
      summary: see `benchmarks.comparison_statistics.summarise`.
    """
    names = _names(summary)
    size = (WIDTH_INCHES, 1.2 + 0.42 * len(names))
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(summary), squeeze=False, sharey=True)[0]
    for axes, (task, variants) in zip(panels, summary.items(), strict=True):
        measure, title = next(iter(MEASURES[task].items()))
        for variant, measures in variants.items():
            numbers, row = measures[measure], names.index(variant)
            colour, seeds = SECOND if variant == REFERENCE else MAIN, numbers["seeds"]
            axes.plot(seeds, [row] * len(seeds), "o", color=colour, alpha=0.6, clip_on=False)
            axes.plot([numbers["mean"]] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2.5)
        axes.set(title=TITLES[task], xlabel=title, xlim=(0, 1))
        axes.set_yticks(range(len(names)), [VARIANTS[name].title for name in names])
        axes.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    _save(figure, path)


def plot_curves(path: Path, curves: Mapping[str, Any]) -> None:
    """Draws the scores along the trainings as a PNG: a line a network over the share of its steps.

    Args:
      curves: see `benchmarks.comparison_statistics.summarise_curves`.
    """
    names, colours = _names(curves), colormaps["tab10"]
    figure = Figure(figsize=(WIDTH_INCHES, 4.6), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    lines = {}
    for axes, (task, variants) in zip(panels, curves.items(), strict=True):
        for variant, numbers in variants.items():
            (lines[variant],) = axes.plot(
                numbers["shares"],
                numbers["scores"],
                marker=".",
                color=colours(names.index(variant)),
                linewidth=3 if variant == REFERENCE else 1.5,
            )
        name = next(iter(MEASURES[task].values()))
        axes.set(title=TITLES[task], xlabel="share of the network's steps", xlim=(0, 1.02))
        axes.set(ylabel=f"{name}, validation cases", ylim=(0, 1))
        axes.grid(alpha=0.3)
    drawn = [name for name in names if name in lines]
    figure.legend(
        [lines[name] for name in drawn],
        [VARIANTS[name].title for name in drawn],
        loc="outside lower center",
        ncols=4,
        fontsize="small",
    )
    _save(figure, path)


def _names(summary: Mapping[str, Any]) -> list[str]:
    """Returns the variants of all tasks in the order of `VARIANTS`."""
    return [name for name in VARIANTS if any(name in variants for variants in summary.values())]


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))
