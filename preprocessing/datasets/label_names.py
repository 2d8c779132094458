"""Which class of a task a data set's own name of a label means."""

from __future__ import annotations

from collections.abc import Sequence

from preprocessing.errors import InputError

BACKGROUND = frozenset(["background", "bg", "clearlabel", "unlabeled", "unlabelled"])
# One thing under many names; the Medical Segmentation Decathlon says cancer, 3D-IRCADb livertumor.
TUMOUR = frozenset(
    [
        *("tumour", "tumours", "tumor", "tumors", "cancer", "lesion", "lesions"),
        *("livertumour", "livertumours", "livertumor", "livertumors"),
        *("livercancer", "liverlesion", "liverlesions"),
    ]
)
_SAME = (BACKGROUND, TUMOUR)


def class_value(name: str, class_names: Sequence[str]) -> int | None:
    """Returns the label value of the task's class that a name means; None if it means none.

    Case, digits and what is no letter don't count: `livertumor01` is a liver tumour.
    """
    meaning = _meaning(name)
    return next((v for v, own in enumerate(class_names) if _meaning(own) == meaning), None)


def is_tumour(name: str) -> bool:
    """Returns whether a name means a tumour."""
    return _meaning(name) in TUMOUR


def task_values(
    label_names: Sequence[tuple[int, str]], class_names: Sequence[str], where: object
) -> dict[int, int]:
    """Returns for each label value of a data set the task's value of the same class.

    Raises:
      InputError: a name that means none of the task's classes.
    """
    values = {value: class_value(name, class_names) for value, name in label_names}
    if None in values.values():
        found = ", ".join(f"{value} {name}" for value, name in label_names)
        expected = f"labels that mean classes of the task ({', '.join(class_names)})"
        raise InputError(where, expected, found, "Give a task with these classes.")
    return values


def _meaning(name: str) -> str | frozenset[str]:
    plain = "".join(character for character in name.casefold() if character.isalpha())
    return next((names for names in _SAME if plain in names), plain)
