"""What conversion refuses unless it is allowed by name, and what then happens instead."""

from __future__ import annotations

from collections.abc import Collection

from preprocessing.errors import InputError, SettingsError

# Each name is the `check` of the error that is raised without it.
ALLOWANCES = {
    "gantry_tilt": "slices that are not stacked along their normal keep their sheared affine",
    "gaps": "slices at uneven steps are taken for even ones of the mean spacing",
    "duplicate_slices": "of several slices in one place the one with the lowest instance number "
    "is kept",
    "mixed_series": "of several series, shapes or orientations in one folder the one with the most "
    "slices is taken",
}


class SeriesError(InputError):
    """Slices that don't make one regular volume; `check` names the allowance that takes them."""

    check = ""

    def __init__(self, where: object, expected: str, found: object, remedy: str = ""):
        remedy = remedy or f"With --allow {self.check}, {ALLOWANCES[self.check]}."
        super().__init__(where, expected, found, remedy)


class GantryTiltError(SeriesError):
    """The slices are not stacked along their normal."""

    check = "gantry_tilt"


class GapError(SeriesError):
    """Slices are missing, or the steps between them differ."""

    check = "gaps"


class DuplicateSliceError(SeriesError):
    """Two slices lie in one place."""

    check = "duplicate_slices"


class MixedSeriesError(SeriesError):
    """Slices of several series, shapes or orientations lie together."""

    check = "mixed_series"


def parse_allowances(text: str) -> frozenset[str]:
    """Returns the names in a comma-separated list.

    Raises:
      SettingsError: a name that is no allowance.
    """
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    unknown = sorted(names - set(ALLOWANCES))
    if unknown:
        raise SettingsError("--allow", f"names among {', '.join(ALLOWANCES)}", unknown[0])
    return names


def refuse_unless_allowed(error: SeriesError, allow: Collection[str]) -> None:
    """Raises the error, unless its check is among the allowances."""
    if error.check not in allow:
        raise error
