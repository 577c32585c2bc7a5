"""Folds: what is worked into a weight while it is read, lazily and with its shape known before."""

from __future__ import annotations

import numpy as np
import pytest

from flatlm.export.rope import Rotary, still
from flatlm.export.weights import Affine, Weight, beside, stack, zeros
from flatlm.runtime.errors import SourceError


def weight(array):
    return Weight(array.shape, array.copy, "tiny: w")


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


A, B = random(6, 4), random(4)
FOLDS = {
    "rows": (lambda w: w.rows(slice(2, 5)), A[2:5]),
    "rows_in_another_order": (lambda w: w.rows(np.array([5, 0, 3])), A[[5, 0, 3]]),
    "every_second_row": (lambda w: w.rows(slice(1, None, 2)), A[1::2]),
    "scaled": (lambda w: w.scaled(0.5), A * np.float32(0.5)),
    "scaled_by_row": (lambda w: w.scaled(np.arange(6)), A * np.arange(6, dtype=np.float32)[:, None]),
    "one_added": (lambda w: w.plus(1), A + 1),
    "transposed": (lambda w: w.transposed(), A.T),
    "by_head": (lambda w: w.reshaped(2, 3, 4).rows(slice(1, 2)).reshaped(3, 4), A[3:]),
    "repeated": (lambda w: w.repeated(2), np.concatenate([A, A])),
    "applied": (lambda w: w.applied_to(weight(B)), A @ B),
    "added": (lambda w: w.added_to(weight(A)), 2 * A),
    "mapped": (lambda w: w.mapped(lambda x: -np.exp(x)), -np.exp(A)),
    "composed": (lambda w: w.transposed().rows(slice(0, 2)).scaled(2), 2 * A.T[:2]),
}


@pytest.mark.parametrize(("fold", "expected"), FOLDS.values(), ids=FOLDS)
def test_a_fold_knows_its_shape_before_it_reads_and_gives_the_array(fold, expected):
    folded = fold(weight(A))
    assert folded.shape == expected.shape
    loaded = folded.load()
    assert loaded.dtype == np.float32 and loaded.shape == expected.shape
    np.testing.assert_allclose(loaded, expected, rtol=1e-6, atol=1e-6)


def test_folds_that_change_nothing_are_the_weight_itself():
    one = weight(A)
    assert one.rows(np.arange(6)) is one and one.scaled(1.0) is one and one.scaled(np.ones(6)) is one


def test_nothing_is_read_before_it_is_loaded_and_each_load_reads_anew():
    reads = []

    def load():
        reads.append(1)
        return A.copy()

    folded = stack([Weight(A.shape, load, "w").rows(slice(0, 2)), weight(A)]).scaled(3).plus(1)
    assert reads == [] and folded.shape == (8, 4)
    folded.load()
    folded.load()
    assert len(reads) == 2


@pytest.mark.parametrize("fold", [lambda w: w.require((6, 5)), lambda w: w.reshaped(5, 5)])
def test_a_shape_that_config_does_not_imply_names_weight_and_both(fold):
    with pytest.raises(SourceError, match=r"tiny: w is \[6, 4\], config.json implies "):
        fold(weight(A))


def test_the_bias_of_a_norm_goes_into_the_linear_that_reads_it():
    x, shift = random(3, 4), weight(B)
    for bias in (None, weight(random(6))):
        folded = Affine(weight(A), bias).reading(shift)
        given = 0 if bias is None else bias.load()
        np.testing.assert_allclose(x @ A.T + folded.bias.load(), (x + B) @ A.T + given, rtol=1e-5)
    assert Affine(weight(A)).reading(None).bias is None


def test_linears_side_by_side_have_zeros_where_one_has_no_bias():
    whole = beside([Affine(weight(A), weight(random(6))), Affine(weight(A[:2]))])
    assert whole.weight.shape == (8, 4)
    assert np.array_equal(whole.bias.load(), np.concatenate([random(6), [0, 0]]))
    assert beside([Affine(weight(A)), Affine(weight(A))]).bias is None
    assert np.array_equal(zeros(3).load(), np.zeros(3))


def test_pairs_on_disk_are_the_pairs_of_rotate():
    frequency = np.zeros(4, np.float32)
    assert Rotary(frequency, turning=8).order().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert Rotary(frequency, 8, interleaved=True).order().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert Rotary(frequency, turning=4).order().tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert Rotary(frequency, 4, interleaved=True).order().tolist() == [0, 2, 4, 5, 1, 3, 6, 7]
    assert Rotary(frequency, 4, factor=2.0).factors().tolist() == [2, 2, 1, 1, 2, 2, 1, 1]
    resting = still(Rotary(frequency, 4, factor=2.0, interleaved=True))
    assert resting.order().tolist() == list(range(8)) and resting.factor == 1
    assert not resting.frequency.any()
