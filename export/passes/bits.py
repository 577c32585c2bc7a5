"""Which layers keep 8 bits: by the KL divergence that quantizing one layer alone causes at the end.

Two rules: a budget of bytes (8 bits go where they buy most per byte), or a limit of KL (4 bits while the
layers' divergences, which add up to a good approximation, stay below it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Choice:
    """What is known of one linear layer before its bits are chosen."""

    kl: float  # nats, of the layer at 4 bits alone
    weights: int
    bytes_low: float  # at 4 bits, excess included
    bytes_high: float


def within_bytes(choices: Mapping[str, Choice], bits_per_weight: float) -> dict[str, int]:
    """Bits per layer: all 4, then 8 where KL per additional byte is largest, while the budget lasts."""
    left = bits_per_weight / 8 * sum(c.weights for c in choices.values())
    left -= sum(c.bytes_low for c in choices.values())
    bits = dict.fromkeys(choices, 4)
    for name in sorted(choices, key=lambda name: -choices[name].kl / choices[name].weights):
        cost = choices[name].bytes_high - choices[name].bytes_low
        if cost <= left:
            bits[name], left = 8, left - cost
    return bits


def within_kl(choices: Mapping[str, Choice], limit: float) -> dict[str, int]:
    """Bits per layer: all 8, then 4 where KL per weight is least, while the sum stays within `limit`."""
    bits = dict.fromkeys(choices, 8)
    for name in sorted(choices, key=lambda name: choices[name].kl / choices[name].weights):
        if choices[name].kl <= limit:
            bits[name], limit = 4, limit - choices[name].kl
    return bits
