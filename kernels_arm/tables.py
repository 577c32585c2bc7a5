"""Table lookups, per tier: 64 bytes picked from a window of a row, multiplied and summed by fours.

NEON's TBL and TBX pick from four registers, x86's VPERMI2B from two; AVX2 has only VPSHUFB, which picks from
16 bytes.
"""

from __future__ import annotations

from numba.core import cgutils, types
from numba.core.extending import intrinsic

from .dots import dot
from .llvm import (
    BYTE,
    BYTES16,
    BYTES64,
    call,
    constant,
    flag,
    join,
    load,
    long,
    pick,
    quarter,
    tier,
    vector_of,
)
from .simd import ints16

BYTES32 = vector_of(BYTE, 32)
_WINDOW = {"avx512vnni": 256}  # lookups.BEYOND has the largest


@intrinsic
def window(typing):
    """Bytes of a row that one lookup reaches."""
    return types.int64(), lambda c, b, s, a: long(_WINDOW.get(tier().name, 128))


@intrinsic(prefer_literal=True)
def tokens_at_once(typing, tokens):
    """Whether tiles of so many tokens (a constant) share a lookup's picks and values: on x86 up to 8 do."""
    known = (1, 2, 4, 8) if tier().name == "avx512vnni" else (1,)
    return types.boolean(tokens), lambda c, b, s, a: flag(tokens.literal_value in known)


@intrinsic
def base_of(typing, place):
    """Where the window begins that holds a place of a row: on cache lines where loads are that long."""
    aligned = -64 if tier().name == "avx512vnni" else -1
    return types.int64(types.int64), lambda c, builder, s, a: builder.and_(a[0], long(aligned))


@intrinsic
def to_lookups(typing, tile):
    """A tile in the form to which lookups are added. VNNI has a vector more: what offsets add."""
    more = int(tier().name == "avx512vnni")
    result = types.UniTuple(ints16, tile.count + more)

    def emit(context, builder, signature, args):
        rows = list(cgutils.unpack_tuple(builder, args[0], tile.count))
        return context.make_tuple(builder, result, rows + [constant(ints16.llvm, 0)] * more)

    return result(tile), emit


@intrinsic
def from_lookups(typing, tile):
    """Back to one vector a token."""
    more = int(tier().name == "avx512vnni")
    result = types.UniTuple(ints16, tile.count - more)

    def emit(context, builder, signature, args):
        rows = list(cgutils.unpack_tuple(builder, args[0], tile.count))
        if more:
            rows = [builder.sub(row, rows[-1]) for row in rows[:-1]]
        return context.make_tuple(builder, result, rows)

    return result(tile), emit


@intrinsic
def look_up(typing, tile, row, stride, picks):
    """tile[i][r] += Σ_j row_i[picks[4r + j]] · values[4r + j], j < 4, r < 16 (`to_lookups`).

    `row` is the address of int8 digits in token 0's row, the next token's are `stride` bytes on; `picks` that
    of 64 bytes below `window()`, which 64 int8 values follow.
    """
    name = tier().name

    def emit(context, builder, signature, args):
        rows = list(cgutils.unpack_tuple(builder, args[0], tile.count))
        _, row, stride, picks = args
        chosen, values = load(builder, BYTES64, picks, 0), load(builder, BYTES64, picks, 64)
        if name == "avx512vnni":
            rows = _look_up_vnni(builder, rows, row, stride, chosen, values)
        else:
            pick_bytes = _pick_avx2 if name == "avx2" else _pick_neon
            for i in range(len(rows)):
                at = builder.add(row, builder.mul(stride, long(i)))
                rows[i] = dot(builder, rows[i], values, pick_bytes(builder, at, chosen), 8)
        return context.make_tuple(builder, tile, rows)

    return tile(tile, types.int64, types.int64, types.int64), emit


def _look_up_vnni(builder, rows, row, stride, picks, values):
    """Its first factor is unsigned: digits are offset by 128, and the last row sums what that adds."""
    offset = constant(BYTES64, -128)
    for i in range(len(rows) - 1):
        at = builder.add(row, builder.mul(stride, long(i)))
        digits = builder.xor(_pick_vbmi(builder, at, picks), offset)
        rows[i] = dot(builder, rows[i], digits, values, 8)
    rows[-1] = dot(builder, rows[-1], offset, values, 8)
    return rows


def _pick_vbmi(builder, row, picks):
    """Bits 0 … 6 choose within two registers, bit 7 between two such pairs."""
    tables = [load(builder, BYTES64, row, 64 * i) for i in range(4)]
    permute = "llvm.x86.avx512.vpermi2var.qi.512"
    low = call(builder, permute, BYTES64, [tables[0], picks, tables[1]])
    high = call(builder, permute, BYTES64, [tables[2], picks, tables[3]])
    return builder.select(builder.icmp_signed("<", picks, constant(BYTES64, 0)), high, low)


def _pick_avx2(builder, row, picks):
    """Sixteen bytes at a time; VPSHUFB gives 0 where bit 7 of a pick is set, which saturation sees to."""
    twice, parts = [*range(16)] * 2, []
    tables = [load(builder, BYTES16, row, 16 * i) for i in range(8)]
    tables = [pick(builder, table, twice) for table in tables]
    for half in (0, 32):
        chosen, picked = pick(builder, picks, range(half, half + 32)), constant(BYTES32, 0)
        for i, table in enumerate(tables):
            offset = builder.sub(chosen, constant(BYTES32, 16 * i))
            marked = call(builder, "llvm.uadd.sat.v32i8", BYTES32, [offset, constant(BYTES32, 0x70)])
            some = call(builder, "llvm.x86.avx2.pshuf.b", BYTES32, [table, marked])
            picked = builder.or_(picked, some)
        parts.append(picked)
    return join(builder, parts)


def _pick_neon(builder, row, picks):
    """TBL gives 0 beyond its 64 bytes, TBX leaves what was there."""
    tables = [load(builder, BYTES16, row, 16 * i) for i in range(8)]
    parts = []
    for i in range(4):
        chosen = quarter(builder, picks, i)
        low = call(builder, "llvm.aarch64.neon.tbl4.v16i8", BYTES16, [*tables[:4], chosen])
        beyond = builder.sub(chosen, constant(BYTES16, 64))
        both = "llvm.aarch64.neon.tbx4.v16i8"
        parts.append(call(builder, both, BYTES16, [low, *tables[4:], beyond]))
    return join(builder, parts)
