"""runtime.evaluation and runtime.measuring.parity: perplexity by its definition, and where backends part."""

from __future__ import annotations

import numpy as np
import pytest

from flatlm.runtime.errors import ContextError, UsageError
from flatlm.runtime.evaluation.divergence import divergence
from flatlm.runtime.evaluation.perplexity import ROWS, log_softmax, perplexity
from flatlm.runtime.measuring.parity import compare, write
from tests.tiny_text import FakeBackend


def _logits_after(ids):
    return FakeBackend().forward(np.array(ids))


def test_perplexity_is_that_of_the_definition():
    ids = np.random.default_rng(0).integers(0, 300, 45).tolist()
    losses = []
    for start in (0, 20):
        window = ids[start : start + 20]
        losses += [-log_softmax(_logits_after(window[:i]))[0, window[i]] for i in range(1, 20)]
    result = perplexity(FakeBackend(), ids, window=20)
    assert (result.windows, result.tokens) == (2, 38)
    assert result.nll == pytest.approx(np.mean(losses), rel=1e-9)
    assert result.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-9)
    assert result.nll_error == pytest.approx(np.std(losses, ddof=1) / np.sqrt(38), rel=1e-9)


def test_a_text_shorter_than_a_window_is_wrong_use():
    with pytest.raises(UsageError, match="19 tokens, one window needs 20"):
        perplexity(FakeBackend(), [1] * 19, window=20)


def test_a_window_longer_than_the_context_gives_both_numbers():
    with pytest.raises(ContextError, match=r"512.*64"):
        perplexity(FakeBackend(), [1] * 600)


class Blunt(FakeBackend):
    """FakeBackend's logits made flatter, and upside down where the last id is a multiple of 10."""

    def row(self):
        return super().row() * (0.5 if self.ids[-1] % 10 else -0.5)


def test_divergence_is_that_of_the_definition():
    ids = np.random.default_rng(0).integers(0, 300, 150).tolist()
    kl, same = [], []
    for start in (0, 70):
        reference, model = FakeBackend(context=70), Blunt(context=70)
        window = np.array(ids[start : start + 69])
        p, q = log_softmax(reference.forward(window, 69)), log_softmax(model.forward(window, 69))
        kl += [float(np.sum(np.exp(a) * (a - b))) for a, b in zip(p, q, strict=True)]
        same += [bool(np.argmax(a) == np.argmax(b)) for a, b in zip(p, q, strict=True)]
    result = divergence(FakeBackend(context=70), Blunt(context=70), ids, window=70)
    assert (result.tokens, result.windows) == (138, 2)
    expected = (np.mean(kl), np.median(kl), np.quantile(kl, 0.9), np.quantile(kl, 0.99), np.max(kl))
    actual = (result.mean, result.median, result.p90, result.p99, result.maximum)
    assert actual == pytest.approx(expected, rel=1e-9)
    assert result.mean_error == pytest.approx(np.std(kl, ddof=1) / np.sqrt(138), rel=1e-9)
    assert result.top1_agreement == np.mean(same) < 1
    assert result.reference_perplexity == pytest.approx(
        perplexity(FakeBackend(context=70), ids, window=70).perplexity, rel=1e-12
    )
    assert result.perplexity == pytest.approx(
        perplexity(Blunt(context=70), ids, window=70).perplexity, rel=1e-12
    )


def test_a_model_does_not_diverge_from_itself():
    result = divergence(FakeBackend(), FakeBackend(), list(range(64)), window=16)
    assert (result.mean, result.maximum, result.top1_agreement) == (0.0, 0.0, 1.0)


def test_models_of_different_vocabularies_are_not_compared():
    with pytest.raises(UsageError, match=r"300.*299"):
        divergence(FakeBackend(), FakeBackend(vocab=299), list(range(64)), window=16)


def test_logits_are_never_held_for_a_whole_window():
    backends = [FakeBackend(context=512), FakeBackend(context=512)]
    divergence(*backends, [1] * 512)
    assert max(len(call) for backend in backends for call in backend.calls) == ROWS


def test_backends_that_compute_the_same_agree():
    (row,) = compare({"native": FakeBackend(), "numpy": FakeBackend()}, [[1, 2, 3], [4]], 20)
    assert (row.positions, row.top1_agreement, row.first_difference, row.identical_prompts) == (
        40,
        1.0,
        None,
        2,
    )
    assert (row.max_logit_difference, row.max_kl) == (0.0, 0.0)


def test_the_first_difference_is_where_two_greedy_runs_part():
    class Other(FakeBackend):
        def row(self):
            row = super().row()
            return -row if len(self.ids) == 7 else row

    prompts = [[1, 2, 3], [4, 5, 6]]
    (row,) = compare({"native": FakeBackend(), "ort": Other()}, prompts, 20)
    free = [write(FakeBackend(), prompts[0], 20)[0], write(Other(), prompts[0], 20)[0]]
    assert row.first_difference == (0, next(i for i in range(20) if free[0][i] != free[1][i])) == (0, 4)
    assert row.top1_agreement == 38 / 40
    assert row.max_kl > row.mean_kl > 0
