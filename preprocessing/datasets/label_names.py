"""Maps the label values and names of a data set to the classes of a task."""

from __future__ import annotations

import re
from collections.abc import Sequence

from preprocessing.errors import InputError
from preprocessing.tasks import Task

# Synonyms, without separators; the Medical Segmentation Decathlon uses cancer, 3D-IRCADb livertumor.
BACKGROUND = frozenset(["background", "bg", "clearlabel", "unlabeled", "unlabelled"])
TUMOUR = frozenset(
    f"{organ}{word}{plural}"
    for organ in ("", "liver")
    for word in ("tumour", "tumor", "cancer", "lesion")
    for plural in ("", "s")
)
_LESIONS = re.compile(r"(tumou?r|cancer|lesion)s?[\W_]*$")
# nnU-Net's name of voxels that nobody has annotated.
IGNORE = "ignore"
REMEDY = "Give a task whose label_classes map these names to its classes."


def value_classes(
    named: Sequence[tuple[int, str]], task: Task, where: object
) -> dict[int, int | None]:
    """Returns the class value of each label value of a data set; None for the label `ignore`.

    `named` has (value, name) pairs; if it is empty, the values are those of the task's labels. Value
    0 without a name is background, unless another value is. Raises InputError for a name that means
    no class or more than one, and for two names that mean the same label of the task.
    """
    if not named:
        return dict(enumerate(task.class_values))
    classes: dict[int, int | None] = {}
    owners: dict[int, str] = {}
    for value, name in named:
        label = _label_of(name, task.label_names, where)
        if label is not None:
            if label in owners:
                expected = f"one name for {task.label_names[label]}"
                raise InputError(where, expected, f"{owners[label]} and {name}", REMEDY)
            owners[label] = name
            classes[value] = task.class_values[label]
        elif name.strip().casefold() == IGNORE:
            classes[value] = None
        else:
            expected = f"labels that mean classes of the task ({', '.join(task.label_names)})"
            found = ", ".join(f"{value} {name}" for value, name in named)
            raise InputError(where, expected, found, REMEDY)
    if 0 not in owners:
        classes.setdefault(0, 0)
    return classes


def mask_classes(
    names: Sequence[str], task: Task, where: object, what: str, found: str, *, loose: bool = False
) -> dict[str, int]:
    """Returns the class values of masks by their names, in the order in which they are drawn.

    Names that mean no class are left out. Later masks are drawn over earlier ones: classes in the
    task's order, then labels that the task counts as background. If `loose`, digits in names that
    mean nothing else are dropped, and several masks may mean one class: `livertumor01`.

    `what` and `found` describe a mask and all masks in messages. Raises InputError for a class without
    a mask, and for names that mean more than one class, or one class only together or loosely.
    """
    labels = task.label_names
    near = [_label_of(name, labels, where, loose=True) for name in names]
    own = near if loose else [_label_of(name, labels, where) for name in names]
    unclear = {
        labels[label]: None
        for label, exact in zip(near, own, strict=True)
        if label is not None and not loose and (exact is None or near.count(label) > 1)
    }
    if unclear:
        expected = f"one name of {what} for {', '.join(unclear)}"
        raise InputError(where, expected, f"several among {found}", REMEDY)
    missing = [label for value, label in enumerate(labels) if value and value not in own]
    if missing:
        raise InputError(where, f"{what} for {', '.join(missing)}", found)
    classes = {n: task.class_values[label] for n, label in zip(names, own, strict=True) if label}
    return dict(sorted(classes.items(), key=lambda each: each[1] or len(labels)))


def is_organ_with_lesions(task: Task) -> bool:
    """Returns whether the classes are background, an organ and its lesions, as in LiTS.

    Lesions are named by a word of `TUMOUR`, also behind the organ's: "pancreatic tumour".
    """
    are_lesions = [bool(_LESIONS.search(name.casefold())) for name in task.class_names]
    return task.target == "labels" and are_lesions == [False, False, True]


def _label_of(
    name: str, labels: Sequence[str], where: object, *, loose: bool = False
) -> int | None:
    """Returns which label of a task a name means: exactly, in another spelling, or as a synonym."""
    letters = re.sub(r"\d", "", name) if loose else name
    for key, each in ((_folded, name), (_meaning, name), (_meaning, letters)):
        found = [label for label, own in enumerate(labels) if key(own) == key(each)]
        if len(found) > 1:
            both = " and ".join(labels[label] for label in found)
            raise InputError(where, "names that mean one class each", f"one for {both}", REMEDY)
        if found:
            return found[0]
    return None


def _folded(name: str) -> str:
    return name.strip().casefold()


def _meaning(name: str) -> str | frozenset[str]:
    """Returns a name in lower case without separators, except between digits; or else its synonyms."""
    words = re.sub(r"[\W_]+", " ", name.casefold()).strip()
    plain = re.sub(r"(?<!\d) | (?!\d)", "", words) or name
    return next((names for names in (BACKGROUND, TUMOUR) if plain in names), plain)
