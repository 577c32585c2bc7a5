"""Table lookups, per tier: 64 bytes picked from a window of a row, multiplied and summed by fours.

NEON's TBL and TBX pick from four registers, x86's VPERMI2B from two; AVX2 has only VPSHUFB, which picks from
16 bytes.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic

from . import simd
from .simd import ints16

_BYTE, _LONG = ir.IntType(8), ir.IntType(64)
_BYTES16, _BYTES32, _BYTES64 = (ir.VectorType(_BYTE, n) for n in (16, 32, 64))
_WINDOW = {"avx512vnni": 256}  # lookups.BEYOND has the largest


@intrinsic
def window(typing):
    """Bytes of a row that one lookup reaches."""
    return types.int64(), lambda c, b, s, a: ir.Constant(_LONG, _WINDOW.get(simd.tier().name, 128))


@intrinsic
def look_up(typing, acc, row, picks):
    """acc[r] + Σ_j row[picks[4r + j]] · values[4r + j], j < 4, r < 16.

    `row` is the address of int8 digits, `picks` of 64 bytes below `window()`; 64 int8 values follow them.
    """
    tier = simd.tier().name
    pick = {"avx512vnni": _pick_vbmi, "avx2": _pick_avx2}.get(tier, _pick_neon)

    def emit(context, builder, signature, args):
        acc, row, picks = args
        digits = pick(builder, row, _load(builder, _BYTES64, picks, 0))
        values = _load(builder, _BYTES64, picks, 64)
        if tier == "avx512vnni":  # its first factor is unsigned: the sign of a digit moves to the value
            negative = builder.icmp_signed("<", digits, simd._constant(_BYTES64, 0))
            values = builder.select(negative, builder.neg(values), values)
            digits = simd._call(builder, "llvm.abs.v64i8", _BYTES64, [digits, ir.Constant(ir.IntType(1), 0)])
            values, digits = digits, values
        return simd._DOT[tier](builder, acc, values, digits, 8)

    return ints16(ints16, types.int64, types.int64), emit


def _load(builder, llvm, address, offset: int):
    value = builder.load(simd._address(builder, builder.add(address, ir.Constant(_LONG, offset)), llvm))
    value.align = 1
    return value


def _pick_vbmi(builder, row, picks):
    """Bits 0 … 6 choose within two registers, bit 7 between two such pairs."""
    tables = [_load(builder, _BYTES64, row, 64 * i) for i in range(4)]
    permute = "llvm.x86.avx512.vpermi2var.qi.512"
    low = simd._call(builder, permute, _BYTES64, [tables[0], picks, tables[1]])
    high = simd._call(builder, permute, _BYTES64, [tables[2], picks, tables[3]])
    return builder.select(builder.icmp_signed("<", picks, simd._constant(_BYTES64, 0)), high, low)


def _pick_avx2(builder, row, picks):
    """Sixteen bytes at a time; VPSHUFB gives 0 where bit 7 of a pick is set, which saturation sees to."""
    twice, parts = ir.Constant(ir.VectorType(ir.IntType(32), 32), list(range(16)) * 2), []
    tables = [_load(builder, _BYTES16, row, 16 * i) for i in range(8)]
    tables = [builder.shuffle_vector(t, ir.Constant(_BYTES16, ir.Undefined), twice) for t in tables]
    for half in (0, 32):
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), 32), list(range(half, half + 32)))
        chosen = builder.shuffle_vector(picks, ir.Constant(_BYTES64, ir.Undefined), lanes)
        found = simd._constant(_BYTES32, 0)
        for i, table in enumerate(tables):
            offset = builder.sub(chosen, simd._constant(_BYTES32, 16 * i))
            marked = simd._call(
                builder, "llvm.uadd.sat.v32i8", _BYTES32, [offset, simd._constant(_BYTES32, 0x70)]
            )
            found = builder.or_(
                found, simd._call(builder, "llvm.x86.avx2.pshuf.b", _BYTES32, [table, marked])
            )
        parts.append(found)
    return simd._join(builder, parts)


def _pick_neon(builder, row, picks):
    """TBL gives 0 beyond its 64 bytes, TBX leaves what was there."""
    tables = [_load(builder, _BYTES16, row, 16 * i) for i in range(8)]
    parts = []
    for i in range(4):
        chosen = simd._quarter(builder, picks, i)
        low = simd._call(builder, "llvm.aarch64.neon.tbl4.v16i8", _BYTES16, [*tables[:4], chosen])
        beyond = builder.sub(chosen, simd._constant(_BYTES16, 64))
        both = "llvm.aarch64.neon.tbx4.v16i8"
        parts.append(simd._call(builder, both, _BYTES16, [low, *tables[4:], beyond]))
    return simd._join(builder, parts)
