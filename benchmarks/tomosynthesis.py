"""Synthetic tomosynthesis beside a volume of VICTRE's: pictures on one window, and figures.

AHNET_DATA=DIR python -m benchmarks.tomosynthesis

DIR/victre_dbt_insilico holds a volume with a mass, the mass's mask, and the same breast without it, from
FDA's VICTRE pipeline (CC0). Writes docs/images/tomosynthesis.png and breasts.png.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import ndimage, signal

from benchmarks.report import goal, print_table, versions, write_report
from preprocessing.cli import make_parser, run_command
from preprocessing.errors import InputError
from preprocessing.files import atomic_write
from preprocessing.phantom.dbt import DBTSettings, make_case
from preprocessing.tasks import load_task
from preprocessing.volumes.geometry import spacing_mm
from preprocessing.volumes.intensities import breast_range, normalized
from preprocessing.volumes.nifti import read_image

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
FOLDER = "victre_dbt_insilico"
WINDOW = load_task("dbt_lesion").intensity_window
# VICTRE's grid, arc and density; its mass has 9 mm.
LIKE_VICTRE = DBTSettings(
    shape_xyz=(319, 497, 52),
    spacing_mm=(0.2, 0.2, 1.0),
    fewest_masses=1,
    most_masses=1,
    mass_diameter_mm=(8.0, 12.0),
    arc="wide",
    density="d",
)
BREASTS = DBTSettings(fewest_masses=1, most_masses=1, mass_diameter_mm=(9.0, 13.0))
# Side of the squares whose spectrum is taken, and the frequencies of the fit, in 1/mm.
SQUARE_MM, BAND = 12.8, (0.15, 0.8)


class Pair(NamedTuple):
    """A volume with a mass, and the same without it."""

    name: str
    with_mass: np.ndarray  # [x, y, z]
    without: np.ndarray
    mass: np.ndarray  # bool
    spacing_mm: tuple[float, float, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = make_parser(
        "benchmarks.tomosynthesis",
        __doc__.splitlines()[0],
        ["AHNET_DATA=~/data python -m benchmarks.tomosynthesis"],
    )
    parser.add_argument("--cases", type=int, default=8, help="synthetic cases (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the synthetic cases")
    return run_command(_run, parser.parse_args(argv))


def _run(arguments) -> None:
    data = Path(os.environ.get("AHNET_DATA", ".")) / FOLDER
    if not data.is_dir():
        raise InputError(data, "VICTRE's volumes", "no such folder", "AHNET_DATA names its parent.")
    pairs = [_victre(data)]
    pairs += [_synthetic(arguments.seed, number) for number in range(arguments.cases)]
    figures = [{"volume": pair.name} | _figures(pair) for pair in pairs]
    columns = list(figures[0])
    print_table(columns, [[figure[column] for column in columns] for figure in figures])
    draw_pairs(IMAGES / "tomosynthesis.png", pairs[:3])
    draw_breasts(IMAGES / "breasts.png", arguments.seed)
    start = time.process_time()
    make_case(arguments.seed, 0, DBTSettings())
    seconds = time.process_time() - start
    settings = {"cases": arguments.cases, "seed": arguments.seed}
    report = {"volumes": figures, "seconds_a_case_of_0.4_mm": seconds}
    write_report(
        "tomosynthesis",
        report,
        [goal("seconds of one core for a case of 0.4 mm", "<=", 15, seconds)],
        versions("numpy", "scipy"),
        settings,
    )


def _victre(data: Path) -> Pair:
    names = ("dbt_positive", "dbt_negative", "mass_positive")
    positive, negative, mass = (read_image(data / f"{name}.nii.gz") for name in names)
    step = spacing_mm(positive.affine)
    return Pair("VICTRE", positive.voxels, negative.voxels, mass.voxels > 0, step)


def _synthetic(seed: int, number: int) -> Pair:
    case = make_case(seed, number, LIKE_VICTRE)
    without = make_case(
        seed, number, dataclasses.replace(LIKE_VICTRE, fewest_masses=0, most_masses=0)
    )
    # Left views, as VICTRE's, and rows in one direction.
    turn = (slice(None, None, -1 if case.view.startswith("r") else 1),)
    volumes = (each.voxels[turn] for each in (case.image, without.image, case.label))
    with_mass, without_mass, mass = volumes
    step = spacing_mm(case.image.affine)
    return Pair(f"synthetic {number}", with_mass, without_mass, mass > 0, step)


def _figures(pair: Pair) -> dict[str, float]:
    """Returns what can be measured in both: texture, contrast of the mass, its spread along z."""
    low, high = breast_range(pair.with_mass)
    image, other = ((each - low) / (high - low) for each in (pair.with_mass, pair.without))
    z_index = int(np.argmax(pair.mass.sum(axis=(0, 1))))
    area = pair.mass[:, :, z_index]
    ring = ndimage.binary_dilation(area, iterations=round(3 / pair.spacing_mm[0])) & ~area
    profile = [float((image - other)[:, :, z][area].mean()) for z in range(image.shape[2])]
    return {
        "spectrum_exponent": spectrum_exponent(other[:, :, z_index], pair.spacing_mm[0]),
        "contrast_to_surroundings": float(image[:, :, z_index][area].mean())
        - float(image[:, :, z_index][ring].mean()),
        "contrast_to_no_mass": profile[z_index],
        "spread_along_z_mm": width_at_half(profile, z_index) * pair.spacing_mm[2],
        "mass_mm": float(np.sqrt(area.sum() * 4 / np.pi)) * pair.spacing_mm[0],
    }


def spectrum_exponent(plane: np.ndarray, pixel_mm: float) -> float:
    """Returns b of the power spectrum 1 / f^b within a breast [x, y], the median of squares of it.

    Squares whose darkest pixels are air are left out.
    """
    size = round(SQUARE_MM / pixel_mm)
    window = signal.windows.hann(size, sym=False)
    frequency = np.hypot(*np.ix_(np.fft.fftfreq(size, pixel_mm), np.fft.fftfreq(size, pixel_mm)))
    used = (frequency > BAND[0]) & (frequency < BAND[1])
    exponents = []
    for x in range(0, plane.shape[0] - size + 1, size // 2):
        for y in range(0, plane.shape[1] - size + 1, size // 2):
            square = plane[x : x + size, y : y + size]
            if np.quantile(square, 0.02) > -0.3 and square.max() < 1.5:
                tapered = (square - square.mean()) * np.outer(window, window)
                power = np.square(np.abs(np.fft.fft2(tapered)))
                slope, _ = np.polyfit(np.log(frequency[used]), np.log(power[used]), 1)
                exponents.append(-slope)
    return statistics.median(exponents)


def width_at_half(profile: Sequence[float], middle: int) -> float:
    """Returns the full width, in steps, at half of a profile's value at `middle`; linear between steps."""
    half, width = profile[middle] / 2, 0.0
    for step in (-1, 1):
        place = middle
        while 0 <= place + step < len(profile) and profile[place + step] > half:
            place += step
        width += abs(place - middle)
        if 0 <= place + step < len(profile):
            width += (profile[place] - half) / (profile[place] - profile[place + step])
    return width


def draw_pairs(path: Path, pairs: Sequence[Pair]) -> None:
    """Draws a row per pair: the mass's slice, a slice 12 mm away, and the sagittal plane of the mass."""
    figure = Figure(figsize=(11, 3.9 * len(pairs)), dpi=80, layout="constrained")
    rows = figure.subplots(len(pairs), 3, squeeze=False)
    for axes, pair in zip(rows, pairs, strict=True):
        image = normalized(pair.with_mass, WINDOW)
        x, y, z = (round(float(c)) for c in ndimage.center_of_mass(pair.mass))
        away = z - 12 if z >= 12 else z + 12
        planes = [
            (image[:, :, z].T, "slice of the mass", 1.0),
            (image[:, :, away].T, "12 mm away", 1.0),
            (image[x].T, "across, along the arc", pair.spacing_mm[2] / pair.spacing_mm[1]),
        ]
        for one, (plane, title, aspect) in zip(axes, planes, strict=True):
            one.imshow(plane, cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1], aspect=aspect)
            one.set_title(f"{pair.name}: {title}", fontsize=10)
            one.set_axis_off()
        half = 8 / pair.spacing_mm[0]
        axes[0].plot(
            [x - half, x + half, x + half, x - half, x - half],
            [y - half, y - half, y + half, y + half, y - half],
            color="#E69F00",
            linewidth=0.8,
        )
    _save(figure, path)


def draw_breasts(path: Path, seed: int) -> None:
    """Draws synthetic breasts of 0.4 mm: a column per density class, a row per arc, boxes of masses."""
    figure = Figure(figsize=(11, 9.2), dpi=80, layout="constrained")
    for row, arc in zip(figure.subplots(2, 4), ("wide", "narrow"), strict=True):
        for axes, density in zip(row, "abcd", strict=True):
            case = make_case(seed, 5, dataclasses.replace(BREASTS, arc=arc, density=density))
            image = normalized(case.image.voxels, WINDOW)
            z = case.boxes[0].slice_index if case.boxes else image.shape[2] // 2
            axes.imshow(image[:, :, z].T, cmap="gray", vmin=WINDOW[0], vmax=WINDOW[1])
            for box in case.boxes[:1]:
                right, bottom = box.x + box.width, box.y + box.height
                corners = [box.x, right, right, box.x, box.x], [box.y, box.y, bottom, bottom, box.y]
                axes.plot(*corners, color="#E69F00", linewidth=0.8)
            axes.set_title(f"{arc} arc, density {density}", fontsize=10)
            axes.set_axis_off()
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as temporary:
        FigureCanvasAgg(figure).print_png(str(temporary))


if __name__ == "__main__":
    sys.exit(main())
