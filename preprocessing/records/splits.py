"""Which cases train and which evaluate: decided by case, never by patch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from preprocessing.errors import SettingsError

SPLITS = ("train", "eval")
# Share of cases to evaluate on, unless told otherwise.
EVAL_FRACTION = 0.2


def split_place(case_id: str) -> float:
    """Returns a case's place in [0, 1): a hash of its id alone, so it never changes."""
    digest = hashlib.sha256(f"split {case_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_by_hash(case_ids: Sequence[str], eval_fraction: float) -> dict[str, str]:
    """Assigns each case to a split by a stable hash of its id.

    A case evaluates if its `split_place` is below `eval_fraction`. Adding or leaving out other cases
    does not move it, with one exception: where two or more cases would leave a split empty, the case
    of the lowest place evaluates, or the one of the highest place trains. A single case trains.

    Args:
      case_ids: all different.
      eval_fraction: expected share of the evaluation, 0 (none at all) up to but not including 1.

    Returns:
      "train" or "eval" a case id.

    Raises:
      SettingsError: the fraction is out of range.
    """
    if not 0 <= eval_fraction < 1:
        raise SettingsError("--eval-fraction", "a share from 0 up to below 1", eval_fraction)
    ordered = sorted(case_ids, key=split_place)
    splits = {each: "eval" if split_place(each) < eval_fraction else "train" for each in ordered}
    if eval_fraction > 0 and len(ordered) > 1:
        splits[ordered[0]] = "eval"
        splits[ordered[-1]] = "train"
    elif ordered:
        splits[ordered[-1]] = "train"
    return splits


def load_splits(path: str | os.PathLike, case_ids: Sequence[str]) -> dict[str, str]:
    """Reads the user's own splits, `{"train": [...], "eval": [...]}` with case ids.

    Raises:
      SettingsError: no such JSON, a case in both lists, or one that was not found.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(path, "a JSON object", error) from None
    lists = content if isinstance(content, dict) else {}
    well_formed = (
        set(lists) == set(SPLITS)
        and all(isinstance(ids, list) for ids in lists.values())
        and all(isinstance(each, str) for ids in lists.values() for each in ids)
    )
    if not well_formed:
        raise SettingsError(path, '{"train": [case ids], "eval": [case ids]}', _brief(content))
    both = sorted(set(lists["train"]) & set(lists["eval"]))
    if both:
        raise SettingsError(path, "each case in one split", f"in both: {', '.join(both)}")
    splits = {case_id: split for split in SPLITS for case_id in lists[split]}
    missing = sorted(set(splits) - set(case_ids))
    if missing:
        raise SettingsError(
            path,
            f"case ids among {_brief(sorted(case_ids))}",
            f"unknown ones: {', '.join(missing)}",
        )
    return splits


def _brief(content: object, most: int = 300) -> str:
    text = json.dumps(content)
    return text if len(text) <= most else f"{text[:most]}..."
