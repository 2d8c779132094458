"""Settings of a pipeline: span folders of its data."""

from __future__ import annotations

import pytest

from pipeline.configs import newest_span, spans_of
from preprocessing.errors import InputError


def test_spans_on_disk(tmp_path):
    with pytest.raises(InputError, match="span-1, span-2, found none"):
        newest_span(tmp_path)
    for name in ("span-2", "span-10", "span-x", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "span-11").touch()
    assert list(spans_of(tmp_path)) == [2, 10]
    assert newest_span(tmp_path).name == "span-10"
