"""Tiles of int32 sums, M tokens × 16 outputs: which sizes a tier has, and what is done to a whole tile.

A tile is a tuple of M `ints16`, one a token. Its size is a constant where it is compiled.
"""

from __future__ import annotations

from numba.core import cgutils, types
from numba.core.extending import intrinsic

from . import ops
from .llvm import constant, flag, long, pointer_to, smallest, tier
from .simd import ints16

# Tokens of the compiled tiles, the last is the full one. A token's 16 sums take 4 of NEON's 32 registers;
# SMULL needs most of the others for its products, SMMLA for its zipped operands.
_TILES = {"neon": (1, 2), "dotprod": (1, 2, 4, 6), "i8mm": (1, 2, 4)}
_X86_TILES = (1, 2, 4, 8, 16)
# of float64: a row has 8 sums, 1 register of 32, elsewhere 4 of 32 or 2 of 16
_ATTENTION_ROWS = {"avx512vnni": 8}


def tile_sizes() -> tuple[int, ...]:
    """The tile sizes of the tier that is compiled for."""
    return _TILES.get(tier().name, _X86_TILES)


# ------------------------------------------------------------------------------------------------ sizes
@intrinsic
def full_tile(typing):
    """Tokens of a full tile, a constant of the tier."""
    return types.int64(), lambda context, builder, signature, args: long(tile_sizes()[-1])


@intrinsic
def few_tile(typing):
    """The same where weights are multiplied as they stand, and tokens share a lookup of sparse excess."""
    return types.int64(), lambda c, b, s, a: long(min(tile_sizes()[-1], 8))


@intrinsic
def sparse_tokens(typing):
    """`ops.sparse_tokens` of the tier, a constant."""
    return types.int64(), lambda c, b, s, a: long(ops.sparse_tokens(tier().name))


@intrinsic
def full_rows(typing):
    """Query rows that share a load of keys or values, at most ops.ATTEND_ROWS."""
    return types.int64(), lambda c, b, s, a: long(_ATTENTION_ROWS.get(tier().name, 6))


@intrinsic(prefer_literal=True)
def has_tile(typing, tokens):
    """Whether the tier has tiles of this size; other sizes are then not compiled."""
    known = tokens.literal_value in tile_sizes()
    return types.boolean(tokens), lambda c, b, s, a: flag(known)


@intrinsic
def tile_of(typing, tokens):
    """The smallest tile that holds so many tokens, at most a full one."""

    return types.int64(types.int64), lambda c, builder, s, args: smallest(builder, args[0], tile_sizes())


# ----------------------------------------------------------------------------------------------- sums
@intrinsic(prefer_literal=True)
def zero_ints(typing, count):
    """A tile of `count` (a compile-time constant) zero vectors of int32."""
    tile = types.UniTuple(ints16, count.literal_value)

    def emit(context, builder, signature, args):
        return context.make_tuple(builder, tile, [constant(ints16.llvm, 0)] * tile.count)

    return tile(count), emit


@intrinsic
def plus_128_times(typing, tile, high):
    """tile + 128 · high."""

    def emit(context, builder, signature, args):
        seven = constant(ints16.llvm, 7)
        pairs = zip(*(cgutils.unpack_tuple(builder, arg, tile.count) for arg in args), strict=True)
        rows = [builder.add(row, builder.shl(more, seven)) for row, more in pairs]
        return context.make_tuple(builder, tile, rows)

    return tile(tile, tile), emit


@intrinsic
def tile_times_128(typing, tile):
    """Each sum of a tile, in whatever form, times 128."""

    def emit(context, builder, signature, args):
        rows = cgutils.unpack_tuple(builder, args[0], tile.count)
        rows = [builder.shl(row, constant(ints16.llvm, 7)) for row in rows]
        return context.make_tuple(builder, tile, rows)

    return tile(tile), emit


@intrinsic
def store_tile(typing, address, stride, tile):
    """Store row i of the tile at address + i · stride (bytes)."""

    def emit(context, builder, signature, args):
        for i, row in enumerate(cgutils.unpack_tuple(builder, args[2], tile.count)):
            at = builder.add(args[0], builder.mul(args[1], long(i)))
            builder.store(row, pointer_to(builder, at, row.type)).align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, tile), emit


@intrinsic
def add_tile(typing, address, stride, tile):
    """Add row i of the tile to the 16 ints at address + i · stride (bytes)."""

    def emit(context, builder, signature, args):
        for i, row in enumerate(cgutils.unpack_tuple(builder, args[2], tile.count)):
            at = builder.add(args[0], builder.mul(args[1], long(i)))
            before = builder.load(at := pointer_to(builder, at, row.type))
            before.align = 4
            builder.store(builder.add(before, row), at).align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, tile), emit
