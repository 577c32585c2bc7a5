"""Dot products of int8 per tier: the instructions, and what a tier asks of the weights it multiplies."""

from __future__ import annotations

from numba.core import types
from numba.core.extending import intrinsic

from .llvm import (
    BYTE,
    INT,
    INTS4,
    SHORT,
    SHORTS8,
    call,
    constant,
    flag,
    join,
    long,
    pick,
    quarter,
    tier,
    vector_of,
)


# ------------------------------------------------------------------------------------- instructions of NEON
def sdot(builder, sums, w, x):
    """SDOT: sums <4 x i32> plus the products of 4 bytes each of w and x <16 x i8>."""
    return call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", INTS4, [sums, w, x])


def smmla(builder, sums, a, b):
    """SMMLA: sums <4 x i32>, 2 × 2, plus 2 rows of 8 bytes of a times 2 of b."""
    return call(builder, "llvm.aarch64.neon.smmla.v4i32.v16i8", INTS4, [sums, a, b])


def smull(builder, w, x):
    """SMULL or SMULL2: 8 products <8 x i16> of <8 x i8>."""
    return call(builder, "llvm.aarch64.neon.smull.v8i16", SHORTS8, [w, x])


def add_pairs(builder, a, b):
    """ADDP: sums of adjacent pairs, a's and then b's; <8 x i16> or <4 x i32>."""
    kind = a.type
    return call(builder, f"llvm.aarch64.neon.addp.v{kind.count}i{kind.element.width}", kind, [a, b])


def widen_pairs(builder, shorts):
    """Sums of adjacent pairs of <8 x i16> as <4 x i32>; with the add that follows it is one SADALP."""
    return call(builder, "llvm.aarch64.neon.saddlp.v4i32.v8i16", INTS4, [shorts])


# ------------------------------------------------------------------------------------------ dot products
def _dot_vnni(builder, acc, weights, x, bits: int):
    return call(builder, "llvm.x86.avx512.vpdpbusd.512", acc.type, [acc, weights, x])


def _dot_avx2(builder, acc, weights, x, bits: int):
    """VPMADDUBSW wants an unsigned side: nibbles are; for int8 the sign of x moves to the weight."""
    half = vector_of(BYTE, 32)
    parts = []
    for i in range(2):
        w, v = (pick(builder, vector, range(32 * i, 32 * i + 32)) for vector in (weights, x))
        if bits == 8:
            w = call(builder, "llvm.x86.avx2.psign.b", half, [w, v])
            v = call(builder, "llvm.abs.v32i8", half, [v, flag(False)])
            w, v = v, w
        pairs = call(builder, "llvm.x86.avx2.pmadd.ub.sw", vector_of(SHORT, 16), [w, v])
        ones = constant(pairs.type, 1)
        parts.append(call(builder, "llvm.x86.avx2.pmadd.wd", vector_of(INT, 8), [pairs, ones]))
    return builder.add(acc, join(builder, parts))


def dot_quad(builder, acc, w, x):
    """4 rows of 4 columns: SDOT, or SMULL, SMULL2, ADDP, SADALP, whose pairs fit int16 (2 · 127 · 127)."""
    if tier().name != "neon":
        return sdot(builder, acc, w, x)
    halves = (range(at, at + 8) for at in (0, 8))
    products = [smull(builder, *(pick(builder, v, half) for v in (w, x))) for half in halves]
    return builder.add(acc, widen_pairs(builder, add_pairs(builder, *products)))


def _dot_quads(builder, acc, weights, x, bits: int):
    operands = ([quarter(builder, v, i) for v in (acc, weights, x)] for i in range(4))
    return join(builder, [dot_quad(builder, *three) for three in operands])


_DOT = {"avx512vnni": _dot_vnni, "avx2": _dot_avx2}


def dot(builder, acc, weights, x, bits: int):
    """acc <16 x i32> plus the products of 4 bytes each of weights and x <64 x i8>.

    Weights of 4 bits are unsigned; those of 8 are signed, but for where `wants_unsigned`.
    """
    return _DOT.get(tier().name, _dot_quads)(builder, acc, weights, x, bits)


def wants_unsigned() -> bool:
    """VPDPBUSD multiplies unsigned by signed: int8 weights are offset by 128 as they are loaded."""
    return tier().name == "avx512vnni"


@intrinsic
def int8_offset(typing):
    """What was added to int8 weights before they were multiplied."""
    return types.int64(), lambda c, b, s, a: long(128 if wants_unsigned() else 0)
