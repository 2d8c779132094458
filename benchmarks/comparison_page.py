"""The page of the paper's comparison: tables, plots and sentences, all generated from the results."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ahnet_tf.evaluation.froc import CHALLENGE_PIXEL_MM
from benchmarks.comparison_plan import (
    CT_PHANTOM,
    DBT_PHANTOM,
    GOAL,
    NORMS,
    REFERENCE,
    SLICES_2D,
    SLICES_3D,
    SOURCE,
    VARIANTS,
    Plan,
    rows,
    voxels_a_step,
)
from benchmarks.comparison_plots import TITLES
from benchmarks.comparison_statistics import (
    HIGHER,
    MEASURES,
    UNCLEAR,
    summarise,
    summarise_curves,
)

# The cores that the time of the comparison is stated for.
CORES = 2
# A curve that gains no more over the last quarter of the steps counts as flat.
FLAT_GAIN = 0.02

# What trainings led to while the plan was made; their scores are not kept.
CHOICE = """## How the plan was chosen

The plan was chosen by scores, mostly of single trainings in CT with one seed, which often changed more than one thing
at a time. With other choices the transferred AH-Net scored lower:

- **Thickness of slices.** AH-Net halves z in its stem and again in its first pooling, so its finest map has half of the
  slices. With tumours of four to six slices, the transferred encoder made it worse, at three learning rates.
- **Number of volumes.** From four and from six volumes all AH-Nets learned little that holds for other cases.
- **Lookalikes** have three slices instead of one, so that the three slices that 2D networks see do not tell them apart
  from tumours.
- **Norm.** In tomosynthesis with batch norm the transferred AH-Net was no better than the one from scratch and worse
  than MC-GCN. A step of the 3D networks is one patch, whose statistics batch norm takes for those of all, and patches
  of a breast differ. With group norm in all networks both AH-Nets gained in two seeds. In CT, in one seed, AH-Net from
  scratch and MC-GCN were as with batch norm and 2D U-Net was worse, so batch norm remained."""


def page(
    results: Sequence[Mapping[str, Any]],
    plan: Plan,
    machine: Mapping[str, Any],
    images: str,
    command: str,
) -> str:
    """Returns the page as Markdown.

    Args:
      results: of all runs.
      plan: that they followed.
      machine: see `benchmarks.report.machine`.
      images: the folder of the plots as seen from the page.
      command: what makes the page.
    """
    summary = summarise(results, plan)
    parameters = {(r["task"], r["variant"]): r["parameters"] for r in results}
    parts = [_introduction(plan, command), f"![Scores of each network]({images}/comparison.png)"]
    for task, variants in summary.items():
        parts += [f"## {TITLES[task]}", *_goal(variants, task), _table(variants, task, parameters)]
        if len(plan.seeds) > 1:
            lines = [_paragraph(line, indent="  ") for line in _sentences(variants, task)]
            parts.append("\n".join(lines))
    parts += [_curves(summarise_curves(results, plan), plan, images)]
    parts += [_cost(results, plan, machine), CHOICE, _limits(plan)]
    return "\n\n".join(parts) + "\n"


def minutes_on_cores(results: Sequence[Mapping[str, Any]]) -> float:
    """Returns the CPU time of all runs in minutes, shared by `CORES` cores."""
    return sum(r["cpu_seconds"] for r in results) / 60 / CORES


def _paragraph(text: str, indent: str = "") -> str:
    """Returns one paragraph (or list item) of Markdown in lines of at most 120 bytes."""
    return textwrap.fill(
        text, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = (header, ["---"] * len(header), *lines)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _introduction(plan: Plan, command: str) -> str:
    ct, dbt = CT_PHANTOM, DBT_PHANTOM
    purpose = (
        "trains small versions of the networks that the AH-Net paper "
        "([arXiv 1711.08580](https://arxiv.org/abs/1711.08580)) compares on synthetic cases and writes this page. "
        "All numbers and all sentences about scores below are generated from the results. Synthetic cases, narrow "
        "networks and minutes of training show how the methods compare here; they are no evidence about patients."
    )
    cases_ct = (
        f"**CT** has slices of {ct.spacing_mm[2]:g} mm and pixels of {ct.spacing_mm[0]:g} mm. Each liver has "
        f"{ct.fewest_tumours} to {ct.most_tumours} tumours, most of them of five slices or more, and up to "
        f"{ct.flat_lookalikes} flat lookalikes: {ct.flat_slices} slices of a tumour without the others, which count as "
        "liver. In the middle of either, a network that sees three slices sees the same."
    )
    low, high = dbt.mass_contrast
    cases_dbt = (
        f"**Tomosynthesis** has {dbt.fewest_masses} to {dbt.most_masses} masses per breast, {low:g} to {high:g} times "
        f"as dense as gland, and {(dbt.lookalikes + 1) // 2} to {dbt.lookalikes} lookalikes: lymph nodes, cysts, and "
        "strands that cross at different depths. Wide and narrow arcs and all classes of density occur; structures "
        "smear into adjacent slices as far as the missing angles let them."
    )
    data = (
        f"**Data.** {plan.volumes} cases are annotated completely; {plan.further} more only in slabs, {plan.slabs} "
        f"slabs of {SLICES_2D} whole slices per case. The 2D networks (2D U-Net, MC-GCN) train on slabs of all "
        f"{plan.volumes + plan.further} cases, the 3D networks on patches of the {plan.volumes} volumes. Plenty of 2D "
        "annotations and few volumes are the paper's premise, not a finding of this page. The scores are those on "
        f"{plan.unseen} unseen cases, predicted as whole volumes with the same windows for all networks; the 2D "
        f"networks see each slice with its two neighbours. The curves are measured on {plan.validation} further "
        "validation cases. No training reads the unseen or the validation cases."
    )
    rates = sorted({VARIANTS[name].learning_rate for name in plan.variants})
    voxels = _list([f"{voxels_a_step(task, plan):,} ({_short(task)})" for task in plan.tasks])
    budget = (
        "**Budget.** Each network has its own number of steps, meant to be enough for its curve to flatten; the last "
        f"network is scored, not the best one. A step sees {voxels} voxels: "
        f"{_count(plan.batch_3d, 'patch', 'patches')} of {SLICES_3D} slices, or "
        f"{plan.batch_3d * SLICES_3D // SLICES_2D} slabs of {SLICES_2D}. A transferred AH-Net starts from the encoder "
        f"of the {VARIANTS[SOURCE].title} of the same seed, whose steps come on top of its own. All networks use the "
        "same augmentation, schedule, averaging of weights and class weights, the same norm "
        f"({_list([f'{NORMS[task]} norm in {_short(task)}' for task in plan.tasks])}), and the focal loss unless their "
        f"name says another. Learning rates are {' and '.join(f'{rate:g}' for rate in rates)}: the lower one for U-Nets."
    )
    dice = "Tumour and liver Dice are means over cases. "
    sensitivity = (
        "Sensitivity is the share of masses found at a "
        "number of false positives per volume (FP), by the rules of the BCS-DBT challenge's scorer with boxes in its "
        f"pixels of {CHALLENGE_PIXEL_MM} mm: the challenge's own mean at 1, 2, 3 and 4 FP over volumes with masses, and the "
        "mean at 1/4, 1/2, 1 and 2 FP over all volumes. "
    )
    measures = (
        f"{_numbers(plan)} {dice if 'ct' in plan.tasks else ''}{sensitivity if 'dbt' in plan.tasks else ''}Differences "
        "are paired by seed: the score of the transferred AH-Net minus that of the other network."
    )
    blocks = ["# The paper's comparison, on phantoms", f"    {command}"]
    cases = {"ct": cases_ct, "dbt": cases_dbt}
    texts = (purpose, *(cases[task] for task in plan.tasks), data, budget, measures)
    return "\n\n".join([*blocks, *map(_paragraph, texts)])


def _numbers(plan: Plan) -> str:
    """Returns sentences on what the numbers of the tables are."""
    drawn = "start weights, order of patches, augmentation"
    if len(plan.seeds) == 1:
        limit = f" and at most {plan.most_steps} steps" if plan.most_steps else ""
        return (
            f"**One seed ({drawn}){limit} shows that every part works. The numbers don't say which network is "
            "better.**"
        )
    return (
        f"Numbers are means over {len(plan.seeds)} seeds ({drawn}) ± their standard deviation; cases are the same for "
        "all seeds. In brackets are 95 % confidence intervals of the mean difference (Student's t, "
        f"{len(plan.seeds) - 1} degrees of freedom). A score is called higher or lower only where this interval "
        "excludes zero."
    )


def _goal(variants: Mapping[str, Any], task: str) -> list[str]:
    """Returns a sentence and a table on whether the transferred AH-Net is above the GOAL's networks."""
    measure, name = next(iter(MEASURES[task].items()))
    others = [each for each in GOAL if each in variants]
    if REFERENCE not in variants or not others:
        return []
    found = {VARIANTS[each].title: variants[each][measure]["difference"] for each in others}
    aim = (
        f"**Goal: the transferred AH-Net is above {_list(list(found))} in {name}, with intervals of the differences "
        "that exclude zero.**"
    )
    if any(difference["interval"] is None for difference in found.values()):
        return [_paragraph(f"{aim} One seed gives no interval, so nothing is said about it.")]
    holds = [title for title, difference in found.items() if difference["verdict"] == HIGHER]
    fails = [title for title in found if title not in holds]
    result = [f"It holds against {_list(holds)}."] if holds else []
    result += [f"It does not hold against {_list(fails)}."] if fails else []
    lines = []
    for title, difference in found.items():
        kind = difference["verdict"]
        answer = "yes" if kind == HIGHER else f"no: {kind}"
        lines.append([title, _difference(difference), answer])
    header = [f"transferred AH-Net minus ({name})", "difference", "goal holds"]
    return [_paragraph(f"{aim} {' '.join(result)}"), _markdown_table(header, lines)]


def _count(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _list(titles: Sequence[str]) -> str:
    *first, last = titles
    return f"{', '.join(first)} and {last}" if first else last


def _table(
    variants: Mapping[str, Any], task: str, parameters: Mapping[tuple[str, str], int]
) -> str:
    names = MEASURES[task]
    header = ["network", "weights", *names.values()]
    header += [f"difference, {name}" for name in names.values()]
    lines = []
    for variant, measures in variants.items():
        cells = [VARIANTS[variant].title, f"{parameters[task, variant]:,}"]
        cells += [_score(measures[name]) for name in names]
        for name in names:
            difference = measures[name].get("difference")
            cells.append(_difference(difference) if difference else "")
        lines.append(cells)
    return _markdown_table(header, lines)


def _score(numbers: Mapping[str, Any]) -> str:
    spread = "" if numbers["spread"] is None else f" ± {numbers['spread']:.3f}"
    return f"{numbers['mean']:.3f}{spread}"


def _difference(difference: Mapping[str, Any]) -> str:
    text = f"{difference['mean']:+.3f}"
    if difference["interval"] is None:
        return text
    low, high = difference["interval"]
    return f"{text} ({low:+.3f} to {high:+.3f})"


def _sentences(variants: Mapping[str, Any], task: str) -> list[str]:
    """Returns sentences on the ranking of the means and on the differences that are not in the goal."""
    measure, name = next(iter(MEASURES[task].items()))
    ranked = sorted(variants, key=lambda each: -variants[each][measure]["mean"])
    first, last = (
        f"{VARIANTS[each].title} ({variants[each][measure]['mean']:.3f})"
        for each in (ranked[0], ranked[-1])
    )
    lines = [f"- By {name}, the highest mean is that of {first}, the lowest that of {last}."]
    for variant, measures in variants.items():
        difference = measures[measure].get("difference")
        if difference is None or variant in GOAL:
            continue
        title, shown = VARIANTS[variant].title, _difference(difference)
        if difference["verdict"] == UNCLEAR:
            lines.append(f"- Against {title}: {UNCLEAR}, {shown}.")
        else:
            kind = difference["verdict"]
            lines.append(f"- Against {title}, the transferred AH-Net scored {kind}: {shown}.")
    return lines


def _curves(curves: Mapping[str, Any], plan: Plan, images: str) -> str:
    header = ["network"]
    for task in curves:
        header += [f"steps, {_short(task)}", f"gain over the last quarter, {_short(task)}"]
    lines = []
    for name in _rows(plan):
        cells = [VARIANTS[name].title]
        for variants in curves.values():
            numbers = variants.get(name)
            cells += [f"{numbers['steps']:,}", f"{numbers['gain']:+.3f}"] if numbers else ["", ""]
        lines.append(cells)
    measured = " and ".join(
        f"{next(iter(MEASURES[task].values()))} ({_short(task)})" for task in curves
    )
    rising = [
        f"{VARIANTS[name].title} ({_short(task)}, {numbers['gain']:+.3f})"
        for task, variants in curves.items()
        for name, numbers in variants.items()
        if numbers["gain"] > FLAT_GAIN
    ]
    still = f"These still gain more: {_list(rising)}." if rising else "None gains more."
    text = _paragraph(
        f"The {measured} on {plan.validation} validation cases along each training, means over seeds, show whether "
        "the steps suffice. A curve counts as flat if it gains at most "
        f"{FLAT_GAIN} over the last quarter of its steps. {still}"
    )
    picture = f"![Scores along each training]({images}/comparison_curves.png)"
    return "\n\n".join(["## Curves", text, picture, _markdown_table(header, lines)])


def _rows(plan: Plan) -> list[str]:
    """Returns the variants that a plan trains for any of its tasks."""
    trained = {name for task in plan.tasks for name in rows(plan, task)}
    return [name for name in plan.variants if name in trained]


def _short(task: str) -> str:
    return TITLES[task].partition(":")[0]


def _cost(results: Sequence[Mapping[str, Any]], plan: Plan, machine: Mapping[str, Any]) -> str:
    wall, cpu = (sum(r[f"{kind}_seconds"] for r in results) / 60 for kind in ("wall", "cpu"))
    text = _paragraph(
        f"{len(results)} runs, each on about one core, took {cpu:.0f} minutes of CPU time and {wall:.0f} minutes of "
        f"wall-clock time in total, the last ones on a machine ({machine['cpu']}, {machine['cores']} cores) that may "
        f"have had other load. On {CORES} cores that do nothing else this CPU time takes {minutes_on_cores(results):.0f} minutes."
    )
    lines = []
    for name in _rows(plan):
        cells = [VARIANTS[name].title]
        for task in plan.tasks:
            own = [r for r in results if (r["task"], r["variant"]) == (task, name)]
            cells.append(f"{statistics.mean(r['cpu_seconds'] for r in own):.0f}" if own else "")
        lines.append(cells)
    header = ["network", *(f"CPU seconds per run, {_short(task)}" for task in plan.tasks)]
    return "\n\n".join(["## Cost", text, _markdown_table(header, lines)])


def _limits(plan: Plan) -> str:
    seeds = (
        "The intervals are over seeds with the same cases, so they say nothing about other cases, and they are not "
        "corrected for the number of comparisons. "
    )
    text = _paragraph(
        f"{seeds if len(plan.seeds) > 1 else ''}Learning rates were not tuned for each network. The difficulty of the "
        "phantoms, the number of volumes and the class weight of tumours were chosen by single runs, also on the cases "
        "that are scored here. The curves are those of few cases: one mass more or less is a visible step. Networks are as wide as minutes on a core allow; rankings may change "
        "with more volumes or wider networks. MC-GCN starts from random weights, not from ImageNet as in the paper. "
        f"The transferred networks with another loss than the focal one start from the same {VARIANTS[SOURCE].title}, "
        "which was trained with the focal loss."
    )
    return f"## Limits\n\n{text}"
