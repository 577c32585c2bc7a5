"""What is decided per layer: as it begins, in which order it is kept, and that a journal gives it back."""

from __future__ import annotations

import numpy as np
import pytest

from flatlm.export.decisions import Decision, Decisions
from flatlm.export.journal import Journal
from flatlm.export.passes.bits import Variant
from flatlm.export.passes.flatten import flatten
from flatlm.export.passes.split import by_size
from flatlm.export.recipe import RECIPES

LOW, HIGH = Variant(4, 2.5, 10.0, 0.5), Variant(8, 2.5, 20.0, 0.25)


def test_of_a_layer_nothing_is_decided_at_first():
    assert Decisions(RECIPES["edge"]).of("layers.0.mlp.down") == Decision()


def test_a_later_decision_keeps_the_earlier_ones():
    decided = Decisions(RECIPES["edge"])
    decided.note("a", alpha=0.5)
    decided.measured("a", [LOW, HIGH])
    decided.note("a", way=HIGH.way)
    assert decided.of("a") == Decision(alpha=0.5, variants=[LOW, HIGH], way=(8, 2.5))
    assert (decided.way("a"), decided.of("a").kl) == ((8, 2.5), 0.25)


def test_variants_are_in_the_order_of_measuring_and_not_of_looking():
    decided = Decisions(RECIPES["edge"])
    for name in ("a", "b", "without a choice"):
        decided.note(name, alpha=0.5)
    for name in ("head", "b", "a"):
        decided.measured(name, [LOW])
    decided.note("head", variants=[HIGH])
    assert list(decided.variants) == ["head", "b", "a"]
    assert decided.variants["head"] == [HIGH]


def test_a_way_that_nobody_chose_has_no_prediction():
    assert Decision(variants=[LOW]).kl is None
    assert Decision(way=(8, 2.5)).kl is None


def test_a_journal_gives_decisions_back(tmp_path):
    decided = Decisions(RECIPES["paper"], keys={"attend": np.ones((1, 2))}, probes=[{"x": np.arange(3)}])
    maxima = np.array([3.0, 1.0, 2.0])
    decided.note("down", smoothing=np.float32([1, 2, 3]), order=by_size(maxima), unexplained=0.25)
    decided.note("down", flattenings={bits: flatten(maxima, 127, 0.0) for bits in (4, 8)}, way=LOW.way)
    decided.measured("down", (LOW, HIGH))
    journal = Journal.open(tmp_path / "journal", "k", pytest.fail)
    journal.save("survey", decided)
    found = journal.load("survey")
    assert (found.recipe, found.variants) == (decided.recipe, {"down": (LOW, HIGH)})
    one = found.of("down")
    assert (one.way, one.unexplained, list(one.flattenings)) == (LOW.way, 0.25, [4, 8])
    assert one.order.channel.tolist() == [0, 2, 1]
    assert one.smoothing.tolist() == [1, 2, 3]
    assert np.array_equal(one.flattenings[8].limit, decided.of("down").flattenings[8].limit)
