"""How sure a measured share is, and a difference between two measured on the same items.

right in both · only in A · only in B · in neither:   both, only_a, only_b, neither;   n their sum
"""

from __future__ import annotations

import math

Z95 = 1.959963984540054  # 97.5 % of the standard normal distribution lie below


def wilson(right: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Interval of a share right/n: Wilson's score interval (1927); (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    share = right / n
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p of McNemar's test: of the items that differ, each is a fair coin."""
    n, fewer = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    # the integers are exact and Python divides them correctly rounded
    return min(1.0, float(2 * tail / 2**n))


def paired_difference(
    both: int, only_a: int, only_b: int, neither: int, z: float = Z95
) -> tuple[float, float, float]:
    """Share of B minus share of A, with its interval (difference, low, high).

    Newcombe, Statistics in Medicine 17:2635-2650 (1998), method 10: Wilson intervals of the two shares,
    joined by their correlation φ with a continuity correction.
    """
    n = both + only_a + only_b + neither
    if n == 0:
        return 0.0, -1.0, 1.0
    b, a, difference = (both + only_b) / n, (both + only_a) / n, (only_b - only_a) / n
    (low_b, high_b), (low_a, high_a) = wilson(both + only_b, n, z), wilson(both + only_a, n, z)
    phi = _phi(both, only_a, only_b, neither)

    def joined(of_b: float, of_a: float) -> float:
        return math.sqrt(max(0.0, of_b**2 - 2 * phi * of_b * of_a + of_a**2))

    low, high = joined(b - low_b, high_a - a), joined(high_b - b, a - low_a)
    return difference, difference - low, difference + high


def _phi(both: int, only_a: int, only_b: int, neither: int) -> float:
    margins = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    if margins == 0:
        return 0.0
    product: float = both * neither - only_a * only_b
    if product > 0:
        product = max(product - (both + only_a + only_b + neither) / 2, 0)
    return product / math.sqrt(margins)
