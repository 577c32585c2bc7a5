"""Rounds of bench_peers: the models in turns, a probe of the machine at both ends of every turn.

A virtual machine changes its speed every few seconds (kernels_arm/probes.py), by more than engines
differ. So a turn is short (16 tokens of a text, or one prompt), and a ratio is taken of two turns, one
after the other, whose four probes agree. The text goes on from turn to turn, to its full length.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flatlm.kernels_arm.probes import Limits, Probe, agreed, mean
from flatlm.runtime.progress import ProgressLine

TURN = 16  # tokens
PAUSE = 0.05  # s before a turn: both libraries' threads spin some ms after their last work
LOWER = 0.75  # of the highest probe of the run: a state of the machine of its own


@dataclass(frozen=True)
class Turn:
    """Tokens and seconds of one model, and the probes around it."""

    tokens: int
    seconds: float
    before: Limits
    after: Limits

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


Turns = dict[str, dict[str, list[list[Turn]]]]  # model, test, round


def run_rounds(sides: dict[str, Any], tests: dict[str, tuple[str, int]], rounds: int, probe: Probe) -> Turns:
    """tests: name → ("pp" or "tg", tokens). The order of the models goes round from turn to turn."""
    found: Turns = {name: {test: [] for test in tests} for name in sides}
    order = list(sides)
    with ProgressLine("measuring", "tests") as progress:
        for i in range(rounds):
            for j, (test, (kind, tokens)) in enumerate(tests.items()):
                for name in sides:
                    found[name][test].append([])
                for start in range(0, tokens, size := tokens if kind == "pp" else TURN):
                    for name in order:
                        ids = min(size, tokens - start)
                        turn = _turn(sides[name].backend, start, ids, ids if kind == "pp" else 1, probe)
                        found[name][test][-1].append(turn)
                    order = order[1:] + order[:1]
                progress(i * len(tests) + j + 1, rounds * len(tests))
    return found


def _turn(backend: Any, start: int, tokens: int, step: int, probe: Probe) -> Turn:
    """Random ids after `start` others, `step` a forward pass; one pass more to warm up."""
    ids = np.random.default_rng(start).integers(0, backend.vocab, tokens)
    time.sleep(PAUSE)
    before = probe()
    backend.truncate(start)
    if backend.position < start:  # the first round has not come here
        raise AssertionError(f"the context has {backend.position} tokens, not {start}")
    backend.forward(ids[: step if step == 1 else 16])
    backend.truncate(start)
    started = time.perf_counter()
    for at in range(0, tokens, step):
        backend.forward(ids[at : at + step])
    seconds = time.perf_counter() - started
    return Turn(tokens, seconds, before, probe())


def rates(turns: Turns) -> dict[str, dict[str, list[float]]]:
    """Tokens per second, one a round."""
    return {
        name: {
            test: [sum(t.tokens for t in one) / sum(t.seconds for t in one) for one in found]
            for test, found in tests.items()
        }
        for name, tests in turns.items()
    }


def highest(turns: Turns) -> Limits:
    """The highest probe of the run."""
    probes = [p for tests in turns.values() for found in tests.values() for one in found for t in one
              for p in (t.before, t.after)]  # fmt: skip
    return Limits(probes[0].threads, max(p.read for p in probes), max(p.multiplications for p in probes))


def compare(mine: list[list[Turn]], other: list[list[Turn]], top: Limits) -> dict[str, Any]:
    """Median and quartiles of the turns' ratios, those only of which all probes agree; and by state."""
    pairs = [
        (a, b) for ours, theirs in zip(mine, other, strict=True) for a, b in zip(ours, theirs, strict=True)
    ]
    like = [(a, b) for a, b in pairs if _alike(a, b)] or pairs
    by_state: dict[str, list[tuple[Turn, Turn]]] = {}
    for a, b in like:
        by_state.setdefault(_state(mean([a.before, a.after, b.before, b.after]), top), []).append((a, b))
    states = {
        state: _spread(some)
        | {
            "mine": statistics.median(a.rate for a, _ in some),
            "other": statistics.median(b.rate for _, b in some),
        }
        | {"probe": asdict(mean([a.before for a, _ in some]))}
        for state, some in sorted(by_state.items())
    }
    return _spread(like) | {"pairs": len(pairs), "states": states}


def _alike(a: Turn, b: Turn) -> bool:
    probes = (a.before, a.after, b.before, b.after)
    return all(agreed(probes[0], p) for p in probes[1:])


def _state(limits: Limits, top: Limits) -> str:
    cores = "all cores" if limits.multiplications >= LOWER * top.multiplications else "shared cores"
    return f"{cores}, {'fast' if limits.read >= LOWER * top.read else 'slow'} memory"


def _spread(pairs: list[tuple[Turn, Turn]]) -> dict[str, Any]:
    ratios = [a.rate / b.rate for a, b in pairs]
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return {"median": float(middle), "low": float(low), "high": float(high), "like": len(pairs)}
