"""Sparse excess as lookups: every entry is there, once low and, in a flattened column, once high."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatlm.kernels_arm import layout, lookups
from flatlm.kernels_arm.layout import padded
from tests.single_ops import native_library


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 1400),
    share=st.sampled_from([0.0005, 0.01, 0.3]),
    wide=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_lookups_hold_every_entry(rows, columns, share, wide, seed):
    rng = np.random.default_rng(seed)
    totals = rng.integers(-8, 8, (rows, columns)).astype(np.int16)
    outside = rng.random(totals.shape) < share
    totals[outside] = rng.choice([-119, -9, 8, 119], outside.sum())
    limit = np.where(rng.random(columns) < wide, 500.0, 127.0)
    groups = np.unique(np.flatnonzero(limit > 127) // 4).astype(np.int32)
    n, k = padded(rows, 16), padded(columns, 16)
    high = lookups.high_places(groups, limit, k)
    found = lookups.gather(native_library(), *layout.encode_excess(totals), n, k, high)

    sums = np.zeros((2, n, k + 4 * len(groups)), np.int64)
    for panel in range(n // 16):
        for part in (0, 1):
            for at in range(*found.starts[2 * panel + part : 2 * panel + part + 2]):
                picks, values = found.picks[at, :64], found.picks[at, 64:].view(np.int8)
                for i in np.flatnonzero(values):
                    sums[part, 16 * panel + i // 4, int(found.bases[at]) + int(picks[i])] += values[i]
    excess = np.zeros((n, k), np.int64)
    excess[:rows, :columns] = totals - np.clip(totals, -8, 7)
    np.testing.assert_array_equal(sums[0, :, :k], excess)
    assert not sums[0, :, k:].any()
    assert not sums[1, :, :k].any()
    if 4 * len(groups) == k:  # the low lookups serve the high digits, which stand as the low ones do
        assert not sums[1].any()
        return
    expected = np.zeros((n, 4 * len(groups)), np.int64)
    columns_wide = np.flatnonzero(limit > 127)
    expected[:, high[columns_wide] - k] = excess[:, columns_wide]
    np.testing.assert_array_equal(sums[1, :, k:], expected)


def test_an_entry_beyond_the_matrix_is_refused():
    delta, value = np.array([255, 255, 10], np.uint8), np.array([0, 0, 9], np.int8)
    high = np.zeros(16, np.int32)
    assert len(lookups.gather(native_library(), delta, value, 48, 16, high).bases) == 1
    with pytest.raises(ValueError, match="beyond the matrix of 32 x 16"):
        lookups.gather(native_library(), delta, value, 32, 16, high)
