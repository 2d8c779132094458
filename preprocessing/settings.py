"""Settings as frozen attrs classes: read from JSON, checked, and dumped again.

A field's type hint decides which JSON fits (cattrs, without any conversion between types), its
`Requirement` which values. An error about a field always names its requirement.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import attrs
import cattrs

from preprocessing.errors import SettingsError

Settings = TypeVar("Settings")

_JSON_NAMES = {
    int: "a whole number",
    float: "a finite number",
    str: "text",
    bool: "true or false",
}
_CONVERTER = cattrs.Converter(detailed_validation=False)


@attrs.frozen
class Requirement:
    """Validator of an attrs field that raises SettingsError."""

    expected: str  # the values that are accepted, as error messages say it
    holds: Callable[[Any], bool]  # whether a value of the field's type is accepted
    choices: tuple[str, ...] = ()  # the accepted names, if any; the nearest one is suggested

    def __call__(self, instance: object, attribute: attrs.Attribute, value: Any) -> None:
        """Raises SettingsError if the value of the attribute is not accepted."""
        try:
            accepted = self.holds(value)
        except TypeError:
            accepted = False
        if not accepted:
            raise self.error(attribute.name, value)

    def error(self, where: str, value: Any) -> SettingsError:
        """Returns the error for a value that is not accepted."""
        return SettingsError(where, self.expected, repr(value), did_you_mean(value, self.choices))


def is_whole(value: Any) -> bool:
    """Whether a value is an int, which true and false are not."""
    return type(value) is int


def is_number(value: Any) -> bool:
    """Whether a value is a finite int or float, which true and false are not."""
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and abs(value) <= sys.float_info.max


def whole(least: int, most: int | None = None) -> Requirement:
    """Returns the requirement of a whole number from `least` to `most`, both included."""
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"
    return Requirement(
        f"a whole number {limits}",
        lambda v: is_whole(v) and least <= v and (most is None or v <= most),
    )


# The seeds that TensorFlow and NumPy take have 32 bits.
SEED = whole(0, 2**32 - 1)
SWITCH = Requirement("true or false", lambda value: isinstance(value, bool))
WINDOW = Requirement(
    "two finite numbers, low < high",
    lambda ends: len(ends) == 2 and all(map(is_number, ends)) and ends[0] < ends[1],
)


def check_seed(seed: Any, where: str = "--seed") -> int:
    """Returns a seed; raises SettingsError unless TensorFlow and NumPy take it."""
    if not SEED.holds(seed):
        raise SEED.error(where, seed)
    return seed


def number(least: float) -> Requirement:
    """Returns the requirement of a finite number of at least `least`."""
    expected = f"a finite number of at least {least}"
    return Requirement(expected, lambda v: is_number(v) and v >= least)


def fraction(kind: str = "a fraction") -> Requirement:
    """Returns the requirement of a number from 0 to 1; `kind` says of what."""
    return Requirement(f"{kind} from 0 to 1", lambda v: is_number(v) and 0 <= v <= 1)


def one_of(*choices: str) -> Requirement:
    """Returns the requirement of one of several names."""
    return Requirement(f"one of {', '.join(choices)}", lambda value: value in choices, choices)


def did_you_mean(name: object, names: Collection[str]) -> str:
    """Returns "Did you mean ...?" with the name most like a misspelt one, or an empty string."""
    near = difflib.get_close_matches(str(name), list(names), n=1)
    return f"Did you mean {near[0]!r}?" if near else ""


def check_names(content: Any, names: Collection[str], where: object) -> dict[str, Any]:
    """Returns the content; raises SettingsError unless it is a JSON object with keys among `names`."""
    if not isinstance(content, dict):
        raise SettingsError(where, "a JSON object of settings", type(content).__name__)
    for name in content:
        if name not in names:
            expected = f"settings among {', '.join(names)}"
            raise SettingsError(where, expected, repr(name), did_you_mean(name, names))
    return content


def read_object(path: str | Path) -> dict[str, Any]:
    """Reads a JSON object of settings; raises SettingsError if the file can't be read as one."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(path, "a JSON file of settings", error.strerror) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(path, "a JSON object of settings", error) from None
    if not isinstance(content, dict):
        raise SettingsError(path, "a JSON object of settings", type(content).__name__)
    return content


def load_settings(path: str | Path, kind: type[Settings]) -> Settings:
    """Reads settings of class `kind` from a JSON file; raises as `read_object` and `from_dict`."""
    return from_dict(kind, read_object(path), where=path)


def from_dict(kind: type[Settings], content: Any, where: object = "settings") -> Settings:
    """Returns settings of class `kind` from plain JSON types.

    Raises SettingsError for an unknown setting (the nearest name is suggested), a missing one, or a
    value that is not accepted; it names the setting after `where`.
    """
    with _inside(str(where)):
        return _CONVERTER.structure(content, kind)


def to_dict(settings: Any) -> dict[str, Any]:
    """Returns settings (an attrs class or a dataclass) as plain JSON types."""
    return json.loads(json.dumps(_CONVERTER.unstructure(settings)))


@contextlib.contextmanager
def _inside(place: str) -> Iterator[None]:
    """Prefixes the place of a SettingsError with the place around it."""
    try:
        yield
    except SettingsError as error:
        joint = ": " if error.where and not error.where.startswith("[") else ""
        where = f"{place}{joint}{error.where}"
        raise SettingsError(where, error.expected, error.found, error.remedy) from None


def _structure_value(value: Any, kind: type) -> Any:
    if not (is_number(value) if kind is float else type(value) is kind):
        raise SettingsError("", _JSON_NAMES[kind], repr(value))
    return value


def _structure_tuple(values: Any, kind: Any) -> tuple:
    items = get_args(kind)
    if not isinstance(values, list | tuple):
        raise SettingsError("", "a list", repr(values))
    if items[-1] is not Ellipsis and len(items) != len(values):
        raise SettingsError("", f"a list of {len(items)}", repr(values))
    structured = []
    for index, value in enumerate(values):
        with _inside(f"[{index}]"):
            # The tuples of settings hold one type each.
            structured.append(_CONVERTER.structure(value, items[0]))
    return tuple(structured)


def _structure_dict(content: Any, kind: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise SettingsError("", "a JSON object", repr(content))
    structured = {}
    for name, value in content.items():
        with _inside(name):
            structured[name] = _CONVERTER.structure(value, get_args(kind)[1])
    return structured


def _structure_class(content: Any, kind: Any) -> Any:
    if not isinstance(content, dict):
        raise SettingsError("", "a JSON object of settings", repr(content))
    fields: dict[str, Any] = attrs.fields_dict(attrs.resolve_types(kind))
    values = {}
    for name, value in check_names(content, fields, "").items():
        requirement = fields[name].validator
        with _inside(name):
            try:
                values[name] = _CONVERTER.structure(value, fields[name].type)
            except SettingsError:
                if isinstance(requirement, Requirement):
                    raise requirement.error("", value) from None
                raise
    for name, field in fields.items():
        if field.default is attrs.NOTHING and name not in values:
            raise SettingsError("", f"the setting {name!r}", "none")
    return kind(**values)


for _kind in _JSON_NAMES:
    _CONVERTER.register_structure_hook(_kind, _structure_value)
_CONVERTER.register_structure_hook_func(lambda kind: get_origin(kind) is tuple, _structure_tuple)
_CONVERTER.register_structure_hook_func(lambda kind: get_origin(kind) is dict, _structure_dict)
_CONVERTER.register_structure_hook_func(attrs.has, _structure_class)
