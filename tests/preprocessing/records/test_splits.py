"""Splits by patient: stable, never empty by accident, or the user's own."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.errors import SettingsError
from preprocessing.records.splits import load_splits, split_by_hash, split_place

ids = st.sets(st.text("abc-_.0123456789", min_size=1, max_size=12), min_size=1, max_size=40)


def of_cases(case_ids, fraction):
    """Returns the splits of cases whose patients are unknown."""
    return split_by_hash(dict.fromkeys(sorted(case_ids), ""), fraction)


def test_places_never_change():
    assert split_place("volume-0") == pytest.approx(0.136164565714, abs=1e-12)
    assert split_place("volume-1") == pytest.approx(0.726143402519, abs=1e-12)


@given(ids, st.floats(0.01, 0.99))
def test_neither_split_is_empty_with_two_or_more_cases(case_ids, fraction):
    splits = of_cases(case_ids, fraction)
    assert set(splits) == case_ids
    assert set(splits.values()) == ({"train", "eval"} if len(case_ids) > 1 else {"train"})


@given(ids, ids, st.floats(0.01, 0.99))
def test_other_cases_move_none_but_those_that_fill_an_empty_split(some, others, fraction):
    few, many = of_cases(some, fraction), of_cases(some | others, fraction)
    for case_id in some:
        if few[case_id] != many[case_id]:
            by_place = "eval" if split_place(case_id) < fraction else "train"
            assert by_place in (few[case_id], many[case_id])
            changed = few if few[case_id] != by_place else many
            assert list(changed.values()).count(changed[case_id]) == 1


def test_share_is_about_what_was_asked():
    splits = of_cases([f"volume-{n}" for n in range(2000)], 0.2)
    assert 340 < list(splits.values()).count("eval") < 460


@given(st.dictionaries(st.integers(0, 99), st.integers(0, 9), min_size=2), st.floats(0.01, 0.99))
def test_all_cases_of_a_patient_are_in_one_split(patient_of, fraction):
    patients = {f"case-{case}": f"patient-{number}" for case, number in patient_of.items()}
    splits = split_by_hash(patients, fraction)
    assert set(splits.values()) == {"train", "eval"}
    if len(set(patients.values())) > 1:
        found = {(patients[case_id], split) for case_id, split in splits.items()}
        assert len(found) == len(set(patients.values()))


def test_no_evaluation_at_all_and_impossible_shares():
    assert set(of_cases("abc", 0.0).values()) == {"train"}
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(SettingsError, match="a share from 0"):
            of_cases("a", share)


def test_own_splits(tmp_path):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"train": ["a", "c"], "eval": ["b"]}))
    assert load_splits(path, ["a", "b", "c", "d"]) == {"a": "train", "c": "train", "b": "eval"}
    with pytest.raises(SettingsError, match="unknown ones: b, c"):
        load_splits(path, ["a"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "a JSON object"),
        ("[]", "case ids"),
        ('{"train": ["a"]}', "case ids"),
        ('{"train": ["a"], "eval": [1]}', "case ids"),
        ('{"train": ["a"], "eval": ["a"]}', "in both: a"),
    ],
)
def test_bad_split_files(tmp_path, content, message):
    path = tmp_path / "splits.json"
    path.write_text(content)
    with pytest.raises(SettingsError, match=message):
        load_splits(path, ["a"])
