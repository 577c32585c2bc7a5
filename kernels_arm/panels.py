"""Panels made ready for many tokens, per tier: int8, in the order that costs the tier's dot product least.

What is done to a panel here is done once for all tokens of a step, so the loop over tokens has no nibbles,
no sparse excess, no zips and no picked groups in it. SMMLA multiplies 8 columns of two rows with 8 of two
tokens:

    order of the weights   SDOT, x86: as in `layout`, steps of 64 bytes: 4 columns of 16 rows
                           SMMLA: pairs of steps zipped to 128 bytes, 8 columns of 16 rows
    order of the digits    SDOT, x86: a word of 4 columns a token, as in `blocks`
                           SMMLA: 8 columns a token
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from .blocks import adder
from .dots import smmla, wants_unsigned
from .forms import by_register, from_registers
from .llvm import (
    BYTES16,
    FLOAT,
    INT,
    INTS4,
    constant,
    flag,
    load,
    long,
    pointer_to,
    quarter,
    shuffle,
    smallest,
    splat,
    tier,
    vector_of,
)
from .simd import floats16, ints16
from .tiles import tile_sizes

_TILES = {"i8mm": (2, 4, 6)}  # pairs of tokens; the other tiers' as for few tokens


def ready_sizes() -> tuple[int, ...]:
    """The tile sizes of many tokens."""
    return _TILES.get(tier().name, tile_sizes())


def _zipped() -> bool:
    return tier().name == "i8mm"


# ------------------------------------------------------------------------------------------------- tiles
@intrinsic
def full_ready(typing):
    """Tokens of a full tile of many tokens, a constant of the tier."""
    return types.int64(), lambda context, builder, signature, args: long(ready_sizes()[-1])


@intrinsic(prefer_literal=True)
def has_ready(typing, tokens):
    """Whether the tier has tiles of this size for many tokens."""
    known = tokens.literal_value in ready_sizes()
    return types.boolean(tokens), lambda c, b, s, a: flag(known)


@intrinsic
def ready_of(typing, tokens):
    """The smallest tile of many tokens that holds so many, at most a full one."""
    return types.int64(types.int64), lambda c, builder, s, args: smallest(builder, args[0], ready_sizes())


# ------------------------------------------------------------------------------------------------ panels
@intrinsic
def zips(typing):
    """Whether `zip_steps` changes anything."""
    return types.boolean(), lambda c, b, s, a: flag(_zipped())


@intrinsic
def zip_steps(typing, source, out):
    """Two steps of an int8 panel, 128 bytes, in SMMLA's order: 8 columns of rows 0 and 1, of 2 and 3, …"""

    def emit(context, builder, signature, args):
        even, odd = (
            [load(builder, INTS4, args[0], 64 * step + 16 * quad) for quad in range(4)] for step in (0, 1)
        )
        for quad, (a, b) in enumerate(zip(even, odd, strict=True)):
            for half, lanes in enumerate(([0, 4, 1, 5], [2, 6, 3, 7])):
                at = builder.add(args[1], long(32 * quad + 16 * half))
                builder.store(shuffle(builder, a, b, lanes), pointer_to(builder, at, INTS4)).align = 1
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def push_column(typing, words, panel, column):
    """Of 16 rows' words of 4 bytes: drop the lowest byte, put the rows' weight of `column` on top."""

    def emit(context, builder, signature, args):
        llvm, (words, panel, column) = ints16.llvm, args
        four = builder.lshr(column, long(2))
        step = load(builder, llvm, builder.add(panel, builder.shl(four, long(6))), 0)
        byte = builder.and_(builder.trunc(column, INT), ir.Constant(INT, 3))
        up = builder.sub(ir.Constant(INT, 24), builder.shl(byte, ir.Constant(INT, 3)))
        top = builder.and_(builder.shl(step, splat(builder, up, 16)), constant(llvm, -(1 << 24)))
        return builder.or_(top, builder.lshr(words, constant(llvm, 8)))

    return ints16(ints16, types.int64, types.int64), emit


# ------------------------------------------------------------------------------------------------ digits
@intrinsic
def store_ready(typing, address, value, i, tile):
    """Truncate 16 ints to bytes: token i's columns of a block of 16, `address` that of the block's digits."""

    def emit(context, builder, signature, args):
        address, value, i, tile = args
        count = 2 if _zipped() else 4
        word = ir.IntType(128 // count)
        parts = builder.bitcast(builder.trunc(value, BYTES16), vector_of(word, count))
        at = builder.add(address, builder.mul(i, long(16 // count)))
        for part in range(count):
            one = builder.extract_element(parts, ir.Constant(INT, part))
            builder.store(one, pointer_to(builder, at, word)).align = 1
            at = builder.add(at, builder.mul(tile, long(16 // count)))
        return context.get_dummy_value()

    return types.void(types.int64, ints16, types.int64, types.int64), emit


@intrinsic
def ready_place(typing, column, i, tile):
    """Where token i's digit of a column stands among a tile's digits."""

    def emit(context, builder, signature, args):
        column, i, tile = args
        shift = 3 if _zipped() else 2
        group = builder.add(builder.mul(builder.lshr(column, long(shift)), tile), i)
        rest = builder.and_(column, long((1 << shift) - 1))
        return builder.add(builder.shl(group, long(shift)), rest)

    return types.int64(types.int64, types.int64, types.int64), emit


# ---------------------------------------------------------------------------------------------- products
@intrinsic(prefer_literal=True)
def add_ready(typing, tile, weights, x, tokens):
    """Add 16 columns of a ready panel (256 bytes) to a tile, in the form of `forms.to_block` for 8 bits."""
    add = _add_zipped if _zipped() else adder()

    def emit(context, builder, signature, args):
        rows = cgutils.unpack_tuple(builder, args[0], tile.count)
        rows = add(builder, rows, args[1], args[2], tokens.literal_value, 8)
        return context.make_tuple(builder, tile, rows)

    return tile(tile, types.int64, types.int64, tokens), emit


def _add_zipped(builder, rows, weights, x, tokens: int, bits: int):
    sums = by_register(builder, rows)
    for half in (0, 1):
        pairs = [load(builder, BYTES16, x, 8 * tokens * half + 16 * p) for p in range(tokens // 2)]
        for r in range(8):
            w = load(builder, BYTES16, weights, 128 * half + 16 * r)
            for p, pair in enumerate(pairs):
                sums[8 * p + r] = smmla(builder, sums[8 * p + r], pair, w)
    return from_registers(builder, sums)


@intrinsic
def finish_rows(typing, tile, sums, steps, scale, bias, out, stride, add):
    """out[i] = float(tile[i] − shift) · scale · steps[i] + bias, plus what was there where `add` is not 0.

    scale, bias: addresses of 16 floats; the shift is int8_offset · sums[i], int32 at `sums`.
    """

    def emit(context, builder, signature, args):
        tile_value, sums, steps, scale, bias, out, stride, add = args
        rows = cgutils.unpack_tuple(builder, tile_value, tile.count)
        floats4 = vector_of(FLOAT, 4)
        if wants_unsigned():
            rows = [_less_offset(builder, row, sums, i) for i, row in enumerate(rows)]
        each = [load(builder, FLOAT, steps, 4 * i) for i in range(len(rows))]
        places = [builder.add(out, builder.mul(stride, long(i))) for i in range(len(rows))]

        def finish(with_old: bool) -> None:
            width = floats4 if tier().machine == "aarch64" else floats16.llvm
            for at in range(0, 64, 4 * width.count):
                factor, more = (load(builder, width, address, at) for address in (scale, bias))
                for row, step, place in zip(rows, each, places, strict=True):
                    part = quarter(builder, row, at // 16) if width is floats4 else row
                    y = builder.fmul(builder.sitofp(part, width), factor)
                    y = builder.fadd(builder.fmul(y, splat(builder, step, width.count)), more)
                    if with_old:
                        y = builder.fadd(load(builder, width, place, at), y)
                    target = pointer_to(builder, builder.add(place, long(at)), width)
                    builder.store(y, target).align = 4

        wanted = builder.icmp_signed("!=", add, long(0))
        with builder.if_else(wanted) as (then, otherwise):
            with then:
                finish(True)
            with otherwise:
                finish(False)
        return context.get_dummy_value()

    return types.void(tile, *[types.int64] * 7), emit


def _less_offset(builder, row, sums, i: int):
    """VNNI: 128 · Σ x off the sums."""
    total = load(builder, INT, sums, 4 * i)
    return builder.sub(row, splat(builder, builder.shl(total, ir.Constant(INT, 7)), 16))
