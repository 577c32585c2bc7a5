"""flatlm.runtime.options: wrong values are named with their flag and range, wherever they come from."""

from __future__ import annotations

import pytest

from flatlm.runtime.errors import UsageError
from flatlm.runtime.options import SamplingOptions, from_json


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temp": -1}, "--temp -1.* from 0.0 to 100.0"),
        ({"temp": float("nan")}, "--temp nan"),
        ({"temp": "hot"}, "--temp 'hot'.*a number"),
        ({"top_k": 1.5}, "--top-k 1.5.*a whole number"),
        ({"top_k": True}, "--top-k True"),
        ({"stop": 3}, "--stop 3"),
        ({"topk": 3}, "unknown option 'topk'; did you mean 'top_k'"),
    ],
)
def test_wrong_options_name_the_flag_the_value_and_the_range(options, message):
    with pytest.raises(UsageError, match=message):
        from_json(options, SamplingOptions)


def test_null_is_the_default_and_other_fields_may_be_ignored():
    given = {"temp": None, "top_k": 3, "stop": "x", "model": "m"}
    assert from_json(given, SamplingOptions, ignore={"model"}) == SamplingOptions(top_k=3, stop=("x",))
