"""How bytes in memory become operands of dot products: weights by step, digits by word.

Weights are `layout`'s steps of 64 bytes: 4 columns of 16 rows (int8), or 8 as low and high nibbles. Digits
are words, 4 columns of a token.
"""

from __future__ import annotations

from llvmlite import ir

from .dots import wants_unsigned
from .llvm import BYTES16, BYTES64, INT, INTS4, call, constant, load, long, pointer_to, shuffle, splat


def nibbles(builder, packed, high: bool):
    """The high or the low nibbles of a vector of bytes."""
    by = constant(packed.type, 4 if high else 15)
    return builder.lshr(packed, by) if high else builder.and_(packed, by)


def quad_of_step(builder, address, step: int, quad: int, bits: int):
    """4 columns of 4 rows, <16 x i8>: nibbles as 0 … 15, int8 as they are."""
    if bits == 8:
        return load(builder, BYTES16, address, 64 * step + 16 * quad)
    packed = load(builder, BYTES16, address, 64 * (step // 2) + 16 * quad)
    return nibbles(builder, packed, bool(step % 2))


def whole_step(builder, address, step: int, bits: int):
    """4 columns of 16 rows, <64 x i8>; int8 offset by 128 where the tier multiplies unsigned weights."""
    w = load(builder, BYTES64, address, 64 * (step if bits == 8 else step // 2))
    if bits == 4:
        return nibbles(builder, w, bool(step % 2))
    return builder.xor(w, constant(BYTES64, -128)) if wants_unsigned() else w


def splat_word(builder, address, offset: int):
    """A token's word repeated over <64 x i8>."""
    return builder.bitcast(splat(builder, load(builder, INT, address, offset), 16), BYTES64)


def words_by_lane(builder, words, count: int):
    """Each of the first `count` words of a vector repeated over a register of its own, <16 x i8>."""
    return [builder.bitcast(shuffle(builder, words, words, [i] * 4), BYTES16) for i in range(count)]


def four_words(builder, address, offset: int):
    """LD4R: the same of four words in memory."""
    at = pointer_to(builder, builder.add(address, long(offset)), INT)
    four = call(builder, "llvm.aarch64.neon.ld4r.v4i32.p0", ir.LiteralStructType([INTS4] * 4), [at])
    return [builder.bitcast(builder.extract_value(four, i), BYTES16) for i in range(4)]
