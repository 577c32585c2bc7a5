"""Single groups of 4 columns added to a tile in plain form: the high digits of flattened channels."""

from __future__ import annotations

from numba.core import cgutils, types
from numba.core.extending import intrinsic

from .dots import dot, dot_quad
from .forms import joined, quads
from .llvm import INT, INTS4, LONG, constant, flag, load, long, tier, vector_of
from .operands import quad_of_step, splat_word, whole_step, words_by_lane
from .simd import ints16


def _group_at(builder, weights, index, bits: int):
    """Where the group stands whose number is at `index`: two of nibbles share 64 bytes."""
    number = builder.sext(load(builder, INT, index, 0), LONG)
    if bits == 4:
        number = builder.ashr(number, long(1))
    return builder.add(weights, builder.shl(number, long(6)))


def _add_group(builder, rows, weights, x, bits: int, high: bool):
    """4 columns for rows in plain form; of nibbles the low or the high ones. x: a word a token."""
    if tier().name in ("dotprod", "i8mm"):
        return _add_group_sdot(builder, rows, weights, x, bits, high)
    w = whole_step(builder, weights, int(high), bits)
    words = [splat_word(builder, x, 4 * i) for i in range(len(rows))]
    return [dot(builder, row, w, word, bits) for row, word in zip(rows, words, strict=True)]


def _add_group_sdot(builder, rows, weights, x, bits: int, high: bool):
    """By lane of one load for up to four tokens."""
    words = []
    for first in range(0, len(rows), 4):
        count = min(4, len(rows) - first)
        some = load(builder, vector_of(INT, count), x, 4 * first)
        words += words_by_lane(builder, some, count)
    return _add_words(builder, rows, weights, words, bits, high)


def _add_words(builder, rows, weights, words, bits: int, high: bool):
    sums = quads(builder, rows)
    for quad in range(4):
        w = quad_of_step(builder, weights, int(high), quad, bits)
        for four, word in zip(sums, words, strict=True):
            four[quad] = dot_quad(builder, four[quad], w, word)
    return joined(builder, sums)


@intrinsic(prefer_literal=True)
def add_group(typing, tile, weights, index, x, bits, odd):
    """Add a group of 4 columns to a tile in plain form: 64 bytes of weights, 4 bytes of digits a token.

    `index` is the address of its number (int32), `odd` says whether that is odd.
    """

    def emit(context, builder, signature, args):
        rows, width = cgutils.unpack_tuple(builder, args[0], tile.count), bits.literal_value
        at = _group_at(builder, args[1], args[2], width)
        rows = _add_group(builder, rows, at, args[3], width, bool(odd.literal_value))
        return context.make_tuple(builder, tile, rows)

    return tile(tile, types.int64, types.int64, types.int64, bits, odd), emit


@intrinsic(prefer_literal=True)
def add_four_groups(typing, tile, weights, index, x, bits, odd):
    """The same for four groups of one token, on the tiers where `by_fours` is true."""

    def emit(context, builder, signature, args):
        rows, width = cgutils.unpack_tuple(builder, args[0], tile.count), bits.literal_value
        if tier().machine == "x86_64":
            row = _add_four_apart(builder, rows[0], args, width, bool(odd.literal_value))
            return context.make_tuple(builder, tile, [row])
        for i, word in enumerate(words_by_lane(builder, load(builder, INTS4, args[3], 0), 4)):
            index = builder.add(args[2], long(4 * i))
            at = _group_at(builder, args[1], index, width)
            rows = _add_words(builder, rows, at, [word] * tile.count, width, bool(odd.literal_value))
        return context.make_tuple(builder, tile, rows)

    return tile(tile, types.int64, types.int64, types.int64, bits, odd), emit


def _add_four_apart(builder, row, args, bits: int, odd: bool):
    """Sums of their own for each: or one dot product would wait for the last."""
    none, sums = constant(ints16.llvm, 0), []
    for i in range(4):
        at = _group_at(builder, args[1], builder.add(args[2], long(4 * i)), bits)
        x = builder.add(args[3], long(4 * i))
        sums += _add_group(builder, [none], at, x, bits, odd)
    pairs = [builder.add(*sums[:2]), builder.add(*sums[2:])]
    return builder.add(row, builder.add(*pairs))


@intrinsic(prefer_literal=True)
def by_fours(typing, tokens):
    """Whether groups are added four at a time."""
    wanted = tokens.literal_value == 1 and tier().name != "neon"
    return types.boolean(tokens), lambda c, b, s, a: flag(wanted)
