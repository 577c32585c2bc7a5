"""Which layers get which bits: by the KL divergence that each way to round a layer is expected to cause.

Every layer has several variants, each with its bytes and its divergence. Divergences of layers add up to a
good approximation, so the best use of bytes is the steepest descent along the lower convex hulls of all
layers: from the smallest variant of each, always the step that takes off most divergence per byte. The points
passed on the way are the frontier, of which a budget picks one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Way = tuple[int, float]  # how a matrix is rounded: bits; where the excess of 4 bits begins, in sigma


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to round a linear layer, or a table that embedding and head share."""

    bits: int
    sigma: float  # 4 bits: where the excess begins, in standard deviations
    bytes: float
    kl: float  # nats, of this layer alone

    @property
    def way(self) -> Way:
        return self.bits, self.sigma


@dataclass(frozen=True, slots=True)
class Point:
    """All layers after some steps of the descent."""

    bytes: float
    kl: float  # the layers' sum
    chosen: Mapping[str, Variant]


def hull(variants: Sequence[Variant]) -> list[Variant]:
    """Those that no mixture of two others beats, smallest first."""
    found: list[Variant] = []
    for variant in sorted(variants, key=lambda v: (v.bytes, v.kl)):
        if found and variant.kl >= found[-1].kl:
            continue
        while len(found) > 1 and _slope(found[-2], found[-1]) <= _slope(found[-1], variant):
            found.pop()
        found.append(variant)
    return found


def _slope(a: Variant, b: Variant) -> float:
    """Divergence saved per byte."""
    return (a.kl - b.kl) / (b.bytes - a.bytes)


def frontier(layers: Mapping[str, Sequence[Variant]]) -> list[Point]:
    """From the smallest model to the best one."""
    chosen, steps = _descent(layers)
    points = [point_of(chosen)]
    for name, _, after in steps:
        chosen = chosen | {name: after}
        points.append(point_of(chosen))
    return points


def _descent(
    layers: Mapping[str, Sequence[Variant]],
) -> tuple[dict[str, Variant], list[tuple[str, Variant, Variant]]]:
    """The smallest variant of each layer; all steps (layer, from, to), the steepest first."""
    hulls = {name: hull(variants) for name, variants in layers.items()}
    steps = [(name, a, b) for name, line in hulls.items() for a, b in itertools.pairwise(line)]
    steps.sort(key=lambda step: (-_slope(*step[1:]), step[0]))
    return {name: line[0] for name, line in hulls.items()}, steps


def point_of(chosen: Mapping[str, Variant]) -> Point:
    return Point(sum(v.bytes for v in chosen.values()), sum(v.kl for v in chosen.values()), chosen)


def within_bytes(layers: Mapping[str, Sequence[Variant]], budget: float) -> dict[str, Variant]:
    """The descent as far as `budget` bytes last; a step too large for what is left is passed over."""
    chosen, steps = _descent(layers)
    left = budget - sum(v.bytes for v in chosen.values())
    for name, a, b in steps:
        if chosen[name] == a and b.bytes - a.bytes <= left:
            chosen[name], left = b, left - (b.bytes - a.bytes)
    return chosen


def within_kl(layers: Mapping[str, Sequence[Variant]], limit: float) -> dict[str, Variant]:
    """The smallest point of the frontier with a divergence of at most `limit`, else the best one."""
    points = frontier(layers)
    return dict(next((point for point in points if point.kl <= limit), points[-1]).chosen)
