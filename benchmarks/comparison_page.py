"""The page of the paper's comparison: tables, a plot and sentences, all generated from the results."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.comparison_plan import (
    DBT_PIXEL_MM,
    PHANTOMS,
    PRETRAINING,
    REFERENCE,
    SLICES_2D,
    TASKS,
    VARIANTS,
    Plan,
    voxels_a_step,
)
from preprocessing.files import atomic_write

# By task: its title, and its measures with their names, the first being the one that is drawn.
TITLES = {"ct": "CT: liver and tumours", "dbt": "Tomosynthesis: masses"}
MEASURES = {
    "ct": {"tumour_dice": "tumour Dice", "liver_dice": "liver Dice"},
    "dbt": {
        "low_rate_sensitivity": "sensitivity at 1/4 to 2 FP",
        "challenge_sensitivity": "sensitivity at 1 to 4 FP",
    },
}
WIDTH_INCHES, DPI = 11.0, 110
MAIN, SECOND = "#0072B2", "#D55E00"


def summarise(results: Sequence[Mapping[str, Any]], plan: Plan) -> dict[str, Any]:
    """Returns what the page shows: {task: {variant: {measure: numbers}}}.

    Numbers are `seeds` (a score each), their `mean` and `spread` (standard deviation), and the same
    of `differences`: the transferred AH-Net's score minus this one's, seed by seed.
    """
    scores = {(r["task"], r["variant"], r["seed"]): r["scores"] for r in results}
    summary: dict[str, Any] = {}
    for task in plan.tasks:
        summary[task] = {}
        for name in plan.variants:
            summary[task][name] = {}
            for measure in MEASURES[task]:
                own = [scores[task, name, seed][measure] for seed in plan.seeds]
                numbers = {"seeds": own, **_mean_and_spread(own)}
                if REFERENCE in plan.variants and name != REFERENCE:
                    best = [scores[task, REFERENCE, seed][measure] for seed in plan.seeds]
                    differences = [b - o for b, o in zip(best, own, strict=True)]
                    numbers["differences"] = {"seeds": differences, **_mean_and_spread(differences)}
                summary[task][name][measure] = numbers
    return summary


def _mean_and_spread(values: Sequence[float]) -> dict[str, float | None]:
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "spread": spread}


def plot_png(path: Path, summary: Mapping[str, Any]) -> None:
    """Draws each variant's first measure as a PNG: a dot a seed, a bar at their mean."""
    rows = max(len(variants) for variants in summary.values())
    size = (WIDTH_INCHES, 1.2 + 0.42 * rows)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(summary), squeeze=False, sharey=True)[0]
    for axes, (task, variants) in zip(panels, summary.items(), strict=True):
        measure, name = next(iter(MEASURES[task].items()))
        for row, variant in enumerate(variants):
            numbers = variants[variant][measure]
            colour = SECOND if variant == REFERENCE else MAIN
            seeds = numbers["seeds"]
            axes.plot(seeds, [row] * len(seeds), "o", color=colour, alpha=0.6, clip_on=False)
            axes.plot([numbers["mean"]] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2.5)
        axes.set(title=TITLES[task], xlabel=name, xlim=(0, 1))
        axes.set_yticks(range(len(variants)), [VARIANTS[name].title for name in variants])
        axes.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


def page(
    results: Sequence[Mapping[str, Any]],
    plan: Plan,
    machine: Mapping[str, Any],
    picture: str,
    command: str,
) -> str:
    """Returns the page as Markdown.

    Args:
      results: of all runs, the 2D stages among them.
      plan: that they followed.
      machine: see `benchmarks.report.machine`.
      picture: the plot's address as seen from the page.
      command: what makes the page.
    """
    summary = summarise(results, plan)
    parameters = {r["variant"]: r["parameters"] for r in results}
    parts = [_introduction(plan, command), f"![Scores of each network]({picture})"]
    for task in plan.tasks:
        parts += [f"## {TITLES[task]}", _table(summary[task], task, parameters, len(plan.seeds))]
        if len(plan.seeds) > 1:
            lines = [_paragraph(line, indent="  ") for line in _sentences(summary[task], task)]
            parts.append("\n".join(lines))
    parts += [_cost(results, machine), _limits(plan)]
    return "\n\n".join(parts) + "\n"


def _paragraph(text: str, indent: str = "") -> str:
    """Returns one paragraph (or list item) of Markdown in lines of at most 120 bytes."""
    return textwrap.fill(
        text, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _introduction(plan: Plan, command: str) -> str:
    step, share = voxels_a_step(plan), plan.steps - plan.steps_2d
    million = 1e6
    ct, dbt = PHANTOMS["ct"], PHANTOMS["dbt"]
    purpose = _paragraph(
        "trains small versions of the networks that the AH-Net paper "
        "([arXiv 1711.08580](https://arxiv.org/abs/1711.08580)) compares on synthetic cases and writes this page. "
        "All numbers and all sentences about scores below are generated from the results. Synthetic cases, narrow "
        "networks and minutes of training show how the methods compare here; they are no evidence about patients."
    )
    cases_ct = _paragraph(
        f"**CT** has slices of {ct.spacing_mm[2]:g} mm and pixels of {ct.spacing_mm[0]:g} mm. Tumours have an in-plane "
        "texture and extend over several slices. Each liver also contains lookalikes: cysts "
        f"(up to {ct.cysts}), which extend over several slices without the texture, and flat lookalikes "
        f"(up to {ct.flat_lookalikes}), which have the texture in one slice only. Both count as liver."
    )
    cases_dbt = _paragraph(
        f"**Tomosynthesis** has up to {dbt.most_masses} masses and up to {dbt.flat_masses} flat lookalikes per case: "
        "in its own slice each looks like a mass, and it is smeared into adjacent slices according to the depth "
        f"resolution ({dbt.depth_resolution_mm:g} mm, slices of {dbt.spacing_mm[2]:g} mm)."
    )
    data = _paragraph(
        f"**Data.** {plan.volumes} cases are annotated completely; {plan.further} more only in slabs, {plan.slabs} "
        f"slabs of {SLICES_2D} slices x {_yx()} per case. The 2D networks (2D U-Net, MC-GCN and the 2D stage before a "
        f"transfer) train on slabs of all {plan.volumes + plan.further} cases, the 3D networks on patches of the "
        f"{plan.volumes} volumes. Plenty of 2D annotations and few volumes are the paper's premise, not a finding of "
        f"this page. {plan.unseen} unseen cases are predicted as whole volumes, with the same windows for all "
        "networks. The 2D networks see each slice with its two neighbours."
    )
    budget = _paragraph(
        f"**Budget.** Every network sees {plan.steps * step / million:.1f} million voxels: {plan.steps} steps of "
        f"{step:,} voxels. A transferred network spends {plan.steps_2d * step / million:.1f} million of them in its "
        "2D stage (an MC-GCN, trained once per seed and shared by the transferred networks) and "
        f"{share * step / million:.1f} million on volumes. The AH-Net from scratch spends the whole budget on volumes; "
        f"the one with the 3D share only, {share * step / million:.1f} million, makes as many steps on volumes as a "
        "transferred one. All use the same augmentation, schedule and class weights. The learning rate is "
        f"{VARIANTS['mcgcn'].learning_rate:g} for U-Nets and MC-GCN and {VARIANTS[REFERENCE].learning_rate:g} for "
        "AH-Nets, as in the project's small presets."
    )
    measures = _paragraph(
        f"{_numbers(plan)} Tumour and liver Dice are means over cases. Sensitivity is the share of masses found at a "
        "number of false positives per volume (FP), by the rules of the BCS-DBT challenge's scorer with boxes in its "
        f"pixels of {DBT_PIXEL_MM} mm: the mean at 1/4, 1/2, 1 and 2 FP over all volumes, and the challenge's own mean "
        "at 1, 2, 3 and 4 FP over volumes with masses. Differences are paired by seed: the score of the transferred "
        "AH-Net minus that of the other network."
    )
    blocks = [
        "# The paper's comparison, on phantoms",
        f"    {command}",
        purpose,
        cases_ct,
        cases_dbt,
    ]
    return "\n\n".join([*blocks, data, budget, measures])


def _numbers(plan: Plan) -> str:
    """Returns a sentence on what the numbers of the tables are."""
    drawn = "start weights, order of patches, augmentation"
    if len(plan.seeds) == 1:
        return (
            f"**One seed ({drawn}) and {plan.steps} steps show that every part works. The numbers don't "
            "say which network is better.**"
        )
    return (
        f"Numbers are means over {len(plan.seeds)} seeds ({drawn}) ± their standard deviation; "
        "cases are the same for all seeds."
    )


def _yx() -> str:
    return " x ".join(map(str, TASKS["ct"].patch_shape_zyx[1:]))


def _table(variants, task: str, parameters, seeds: int) -> str:
    names = MEASURES[task]
    header = ["network", "weights", *names.values()]
    header += [f"difference, {name}" for name in names.values()]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for variant, measures in variants.items():
        cells = [VARIANTS[variant].title, f"{parameters[variant]:,}"]
        cells += [_text(measures[name]) for name in names]
        for name in names:
            difference = measures[name].get("differences")
            cells.append(_text(difference, sign="+") if difference else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _text(numbers, sign: str = "") -> str:
    spread = "" if numbers["spread"] is None else f" ± {numbers['spread']:.3f}"
    return f"{numbers['mean']:{sign}.3f}{spread}"


def _sentences(variants, task: str) -> list[str]:
    """Returns sentences on the ranking and on the signs of the differences."""
    measure, name = next(iter(MEASURES[task].items()))
    ranked = sorted(variants, key=lambda each: -variants[each][measure]["mean"])
    first, last = ranked[0], ranked[-1]
    lines = [
        f"- By {name}, the highest mean is that of {VARIANTS[first].title} "
        f"({variants[first][measure]['mean']:.3f}), the lowest that of {VARIANTS[last].title} "
        f"({variants[last][measure]['mean']:.3f})."
    ]
    for variant, measures in variants.items():
        if "differences" in measures[measure]:
            lines.append(f"- {_verdict(VARIANTS[variant].title, measures[measure]['differences'])}")
    return lines


def _verdict(title: str, differences) -> str:
    seeds = differences["seeds"]
    higher, lower = sum(d > 0 for d in seeds), sum(d < 0 for d in seeds)
    shown = _text(differences, sign="+")
    against = f"Against {title}, the transferred AH-Net scored"
    if higher == len(seeds):
        return f"{against} higher with every seed ({shown})."
    if lower == len(seeds):
        return f"{against} lower with every seed ({shown})."
    return f"{against} higher with {higher} of {len(seeds)} seeds and lower with {lower} ({shown}): no consistent difference."


def _cost(results, machine) -> str:
    wall, cpu = (sum(r[f"{kind}_seconds"] for r in results) / 60 for kind in ("wall", "cpu"))
    cores = machine["cores"]
    rows = ["| runs | number | CPU seconds per run | wall seconds per run |", "|---|---|---|---|"]
    for name in dict.fromkeys(r["variant"] for r in results):
        own = [r for r in results if r["variant"] == name]
        title = "the 2D stage" if name == PRETRAINING else VARIANTS[name].title
        seconds = [
            f"{statistics.mean(r[f'{kind}_seconds'] for r in own):.0f}" for kind in ("cpu", "wall")
        ]
        rows.append(f"| {title} | {len(own)} | {' | '.join(seconds)} |")
    cost = _paragraph(
        f"{len(results)} runs took {cpu:.0f} minutes of CPU time on a machine ({machine['cpu']}, {cores} cores) with "
        f"other load, and {wall:.0f} minutes of wall-clock time in total; some ran in parallel. CPU time divided by "
        f"the {cores} cores, {cpu / cores:.0f} minutes, is a lower estimate of the time on an idle machine, since not "
        "all work keeps all cores busy."
    )
    return "## Cost\n\n" + cost + "\n\n" + "\n".join(rows)


def _significance(plan: Plan) -> str:
    if len(plan.seeds) == 1:
        return ""
    return (
        f'With {len(plan.seeds)} seeds, "with every seed" is an observation, not a test of significance; '
        "the spread over seeds says nothing about other cases. "
    )


def _limits(plan: Plan) -> str:
    text = _paragraph(
        f"{_significance(plan)}Learning rates were not tuned for each network. The difficulty of the phantoms, the "
        "number of steps and the class weight of tumours were chosen by single runs on the cases that are scored here, "
        "so that the tasks can be learned at all; no network was chosen by them. Networks are as wide as minutes on "
        "two cores allow and stop long before convergence: rankings may change with more training, more volumes or "
        "wider networks. The 2D stage starts from random weights, not from ImageNet as in the paper."
    )
    return f"## Limits\n\n{text}"
