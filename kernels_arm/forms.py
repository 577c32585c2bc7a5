"""How the sums of a tile stand while blocks are added to it, per tier.

A tile is M vectors of 16 sums, one a token. Between blocks it may stand in another form; `to_block` and
`from_block` change it once for a whole product:

    plain      as it is
    chained    several vectors a token, or the latency of the dot product would set the pace of few tokens
    pairs      SMULL, int8: the sums over even and odd pairs of columns apart, as SADALP makes them
    two by two SMMLA: 2 tokens × 2 rows a register
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from numba.core import cgutils, types
from numba.core.extending import intrinsic

from .dots import add_pairs
from .llvm import INTS4, constant, join, quarter, shuffle, tier
from .simd import ints16


# --------------------------------------------------------------------------------------------- registers
def quads(builder, rows):
    """Each vector of 16 as four of 4 rows, [vector][quad]."""
    return [[quarter(builder, row, q) for q in range(4)] for row in rows]


def joined(builder, by_vector):
    """The inverse of `quads`."""
    return [join(builder, four) for four in by_vector]


def by_register(builder, rows):
    """All vectors' quads in one list."""
    return [quad for four in quads(builder, rows) for quad in four]


def from_registers(builder, registers):
    """The inverse of `by_register`."""
    return joined(builder, [registers[i : i + 4] for i in range(0, len(registers), 4)])


# ------------------------------------------------------------------------------------------------- forms
@dataclass(frozen=True)
class Form:
    """How sums stand between blocks: vectors a token, and the change from and to one vector a token."""

    chains: int
    enter: Callable  # (builder, rows) → rows
    leave: Callable


def _chained(chains: int) -> Form:
    def add_zeros(builder, rows):
        return [*rows, *([constant(ints16.llvm, 0)] * ((chains - 1) * len(rows)))]

    def add_halves(builder, rows):
        for _ in range(chains.bit_length() - 1):
            half = len(rows) // 2
            rows = [builder.add(a, b) for a, b in zip(rows[:half], rows[half:], strict=True)]
        return rows

    return Form(chains, add_zeros, add_halves)


def _to_pairs(builder, rows):
    """Rows (0, 0, 1, 1) and (2, 2, 3, 3) of each quad, the sum in the first of two lanes."""
    zero = constant(INTS4, 0)
    return joined(builder, [
        [shuffle(builder, quad, zero, lanes) for quad in four]
        for lanes in ([0, 4, 1, 5], [2, 6, 3, 7])
        for four in quads(builder, rows)
    ])  # fmt: skip


def _from_pairs(builder, rows):
    parts, m = quads(builder, rows), len(rows) // 2
    return joined(builder, [
        [add_pairs(builder, *pair) for pair in zip(parts[t], parts[m + t], strict=True)] for t in range(m)
    ])  # fmt: skip


def _to_two_by_two(builder, rows):
    """Register 8p + r: tokens 2p and 2p + 1, rows 2r and 2r + 1."""
    tokens, registers = quads(builder, rows), []
    for even, odd in zip(tokens[::2], tokens[1::2], strict=True):
        for a, b in zip(even, odd, strict=True):
            registers += [shuffle(builder, a, b, lanes) for lanes in ([0, 1, 4, 5], [2, 3, 6, 7])]
    return from_registers(builder, registers)


def _from_two_by_two(builder, rows):
    registers, tokens = by_register(builder, rows), []
    for at in range(0, len(registers), 8):
        for lanes in ([0, 1, 4, 5], [2, 3, 6, 7]):
            low_high = zip(registers[at : at + 8 : 2], registers[at + 1 : at + 8 : 2], strict=True)
            tokens.append([shuffle(builder, a, b, lanes) for a, b in low_high])
    return joined(builder, tokens)


_PLAIN = Form(1, lambda builder, rows: rows, lambda builder, rows: rows)
_TWO_CHAINS, _FOUR_CHAINS = _chained(2), _chained(4)
_PAIRS = Form(2, _to_pairs, _from_pairs)
_TWO_BY_TWO = Form(1, _to_two_by_two, _from_two_by_two)


def _form(tokens: int, bits: int) -> Form:
    name = tier().name
    if name == "neon":
        return _PAIRS if bits == 8 and tokens == 1 else _PLAIN
    if name == "i8mm" and tokens > 1:
        return _TWO_BY_TWO
    if tokens == 1 and tier().machine == "x86_64":
        return _FOUR_CHAINS
    return _TWO_CHAINS if tokens <= 2 else _PLAIN


# ------------------------------------------------------------------------------------------ Numba's view
@intrinsic(prefer_literal=True)
def to_block(typing, tile, bits):
    """A tile (one vector a token) in the form in which blocks are added to it."""
    form = _form(tile.count, bits.literal_value)
    result = types.UniTuple(ints16, tile.count * form.chains)

    def emit(context, builder, signature, args):
        rows = cgutils.unpack_tuple(builder, args[0], tile.count)
        return context.make_tuple(builder, result, form.enter(builder, list(rows)))

    return result(tile, bits), emit


@intrinsic(prefer_literal=True)
def from_block(typing, tile, tokens, bits):
    """Back to one vector a token."""
    form, result = (
        _form(tokens.literal_value, bits.literal_value),
        types.UniTuple(ints16, tokens.literal_value),
    )

    def emit(context, builder, signature, args):
        rows = cgutils.unpack_tuple(builder, args[0], tile.count)
        return context.make_tuple(builder, result, form.leave(builder, list(rows)))

    return result(tile, tokens, bits), emit
