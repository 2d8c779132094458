"""Settings from JSON: types from the type hints, requirements, nested places, and back to JSON."""

from __future__ import annotations

import importlib
import json

import attrs
import pytest

from preprocessing.errors import SettingsError
from preprocessing.settings import (
    check_seed,
    fraction,
    from_dict,
    load_settings,
    number,
    one_of,
    to_dict,
    whole,
)


@attrs.frozen
class Part:
    kind: str = attrs.field(validator=one_of("wide", "narrow"))
    share: float = attrs.field(default=0.5, validator=fraction())


@attrs.frozen
class Whole:
    name: str
    count: int = attrs.field(default=1, validator=whole(1, 9))
    rate: float = attrs.field(default=0.1, validator=number(0))
    fast: bool = False
    sizes: tuple[int, int] | None = None
    parts: tuple[Part, ...] = ()
    named: dict[str, Part] = attrs.field(factory=dict)


JSON = {
    "name": "x",
    "count": 2,
    "rate": 1,
    "fast": True,
    "sizes": [3, 4],
    "parts": [{"kind": "wide", "share": 0.25}],
    "named": {"a": {"kind": "narrow", "share": 1}},
}


def test_json_is_taken_and_dumped_unchanged():
    settings = from_dict(Whole, JSON)
    assert settings.sizes == (3, 4)
    assert settings.named["a"] == Part("narrow", 1)
    assert json.dumps(to_dict(settings)) == json.dumps(JSON)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cuont": 1}, "here: expected settings among name, .*'cuont'. Did you mean 'count'?"),
        ({"count": "2"}, "here: count: expected a whole number from 1 to 9, found '2'"),
        ({"count": True}, "count: expected a whole number from 1 to 9, found True"),
        ({"count": 2.0}, "count: expected a whole number from 1 to 9, found 2.0"),
        ({"count": 10}, "count: expected a whole number from 1 to 9, found 10"),
        ({"rate": float("nan")}, "rate: expected a finite number of at least 0, found nan"),
        ({"rate": float("inf")}, "rate: expected a finite number of at least 0, found inf"),
        ({"rate": 10**400}, "rate: expected a finite number of at least 0, found 1000"),
        ({"name": 3}, "name: expected text, found 3"),
        ({"fast": 1}, "fast: expected true or false, found 1"),
        ({"sizes": "34"}, "sizes: expected a list, found '34'"),
        ({"sizes": [3]}, r"sizes: expected a list of 2, found \[3\]"),
        ({"sizes": [3, "4"]}, r"sizes\[1\]: expected a whole number, found '4'"),
        ({"parts": {"kind": "wide"}}, "parts: expected a list, found {'kind'"),
        ({"parts": ["wide"]}, r"parts\[0\]: expected a JSON object of settings, found 'wide'"),
        ({"parts": [{}]}, r"parts\[0\]: expected the setting 'kind', found none"),
        ({"parts": [{"kin": 1}]}, r"parts\[0\]: .*'kin'. Did you mean 'kind'?"),
        ({"named": ["a"]}, r"named: expected a JSON object, found \['a'\]"),
        ({"named": {"a": {"kind": "wid"}}}, "named: a: kind: .*'wid'. Did you mean 'wide'?"),
    ],
)
def test_errors_name_the_place_and_what_is_expected(changes, message):
    with pytest.raises(SettingsError, match=message):
        from_dict(Whole, JSON | changes, where="here")


@pytest.mark.parametrize("seed", ["-1", "4294967296"])
@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("preprocessing.phantom.__main__", ["--output", "OUT"]),
        ("preprocessing.convert", ["--input", "IN", "--output", "OUT"]),
        ("ahnet_tf.evaluate", ["IN", "IN"]),
        ("ahnet_tf.train", ["--input", "IN", "--output", "OUT", "--task", "ct_liver"]),
    ],
)
def test_every_command_checks_its_seed(command, options, seed, tmp_path, capsys):
    places = {"IN": str(tmp_path), "OUT": str(tmp_path / "out")}
    main = importlib.import_module(command).main
    assert main([*(places.get(option, option) for option in options), "--seed", seed]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "seed" in line.partition(", found ")[0]
    assert "a whole number from 0 to 4294967295, found " in line
    assert seed in line.partition(", found ")[2]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True])
def test_a_seed_in_python_is_checked(seed):
    with pytest.raises(SettingsError, match="seed: expected a whole number from 0 to 4294967295"):
        check_seed(seed, "seed")


def test_a_missing_setting_is_named():
    with pytest.raises(SettingsError, match="settings: expected the setting 'name', found none"):
        from_dict(Whole, {})


@pytest.mark.parametrize("text", ["{", "[1]", '"x"', "\xff"])
def test_files_without_a_json_object_are_refused(tmp_path, text):
    path = tmp_path / "settings.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError, match=r"settings.json: expected a JSON object of"):
        load_settings(path, Whole)
    with pytest.raises(SettingsError, match=r"none.json: expected a JSON file .* found No such"):
        load_settings(tmp_path / "none.json", Whole)
