"""The inner step of a product, per tier: 16 columns of a panel times a tile's tokens, straight-line code.

Sums stand in a form of forms.py. Weights are 128 bytes (nibbles) or 256 (int8) of `layout`'s steps; digits
are M · 16 bytes, 4 columns of a token (a word) at word step · M + token. NEON takes words by lane from
16-byte loads: one load for four words.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from .dots import add_pairs, dot, sdot, smmla, smull, widen_pairs
from .forms import by_register, from_registers, joined, quads
from .llvm import BYTE, BYTES16, INT, INTS4, call, fixed_address, flag, load, long, pointer_to, shuffle, tier
from .operands import four_words, quad_of_step, splat_word, whole_step

AHEAD = 8192  # bytes of weights between what is multiplied and what is prefetched, on x86
FIRST = 2048  # bytes of a panel that are prefetched before the panel's turn, where one token is multiplied


# ---------------------------------------------------------------------------------------------- blocks
def _add_sdot(builder, rows, weights, x, tokens: int, bits: int):
    """Each quad of weights is used up by all tokens before the next is loaded: registers stay free."""
    sums, chains = quads(builder, rows), len(rows) // tokens
    words = [load(builder, INTS4, x, 16 * i) for i in range(tokens)]
    together = 2 if bits == 4 else 1  # the steps that share a byte of weights
    for first in range(0, 4, together):
        for quad in range(4):
            for step in range(first, first + together):
                w = quad_of_step(builder, weights, step, quad, bits)
                for token in range(tokens):
                    register, lane = divmod(step * tokens + token, 4)
                    word = shuffle(builder, words[register], words[register], [lane] * 4)
                    four = sums[step % chains * tokens + token]
                    four[quad] = sdot(builder, four[quad], w, builder.bitcast(word, BYTES16))
    return joined(builder, sums)


def _add_smmla(builder, rows, weights, x, tokens: int, bits: int):
    """Two steps are zipped to 8 columns of two rows a register, and of two tokens."""
    if tokens == 1:
        return _add_sdot(builder, rows, weights, x, tokens, bits)
    sums = by_register(builder, rows)
    words = [load(builder, INTS4, x, 16 * i) for i in range(tokens)]
    for step in (0, 2):
        two_rows = []
        for quad in range(4):
            even, odd = (
                builder.bitcast(quad_of_step(builder, weights, step + i, quad, bits), INTS4) for i in (0, 1)
            )
            two_rows += [shuffle(builder, even, odd, lanes) for lanes in ([0, 4, 1, 5], [2, 6, 3, 7])]
        for pair in range(tokens // 2):
            index = [(step + i) * tokens + 2 * pair + t for t in (0, 1) for i in (0, 1)]
            low, high = min(index) // 4, max(index) // 4
            lanes = [i % 4 + (4 if i // 4 != low else 0) for i in index]
            two_tokens = builder.bitcast(shuffle(builder, words[low], words[high], lanes), BYTES16)
            for r, w in enumerate(two_rows, 8 * pair):
                sums[r] = smmla(builder, sums[r], two_tokens, builder.bitcast(w, BYTES16))
    return from_registers(builder, sums)


def _add_smull(builder, rows, weights, x, tokens: int, bits: int):
    """Products are summed in int16: of 4 columns of nibbles (8 · 15 · 127 after ADDP), of 2 of int8."""
    sums = quads(builder, rows)
    words = [word for i in range(tokens) for word in four_words(builder, x, 16 * i)]
    together = 2 if bits == 8 else 4
    for first in range(0, 4, together):
        steps = range(first, first + together)
        for quad in range(4):
            w = [quad_of_step(builder, weights, step, quad, bits) for step in steps]
            for token in range(tokens):
                digits = [words[step * tokens + token] for step in steps]
                halves = [_sum_of_products(builder, w, digits, half) for half in (0, 1)]
                if bits == 4:
                    pairs = add_pairs(builder, *halves)
                    sums[token][quad] = builder.add(sums[token][quad], widen_pairs(builder, pairs))
                elif tokens == 1:  # the form `pairs`
                    for four, half in zip(sums, halves, strict=True):
                        four[quad] = builder.add(four[quad], widen_pairs(builder, half))
                else:
                    wide = [widen_pairs(builder, half) for half in halves]
                    total = add_pairs(builder, *wide)
                    sums[token][quad] = builder.add(sums[token][quad], total)
    return joined(builder, sums)


def _sum_of_products(builder, weights, digits, half: int):
    """SMULL and SMLAL (half 0) or SMULL2 and SMLAL2 (half 1) over steps: <8 x i16>."""
    lanes, total = list(range(8 * half, 8 * half + 8)), None
    for w, x in zip(weights, digits, strict=True):
        product = smull(builder, *(shuffle(builder, v, v, lanes) for v in (w, x)))
        total = builder.add(total, product) if total else product
    return total


def _add_steps(builder, rows, weights, x, tokens: int, bits: int):
    """x86: step by step, a word repeated over the whole register."""
    chains, rows = len(rows) // tokens, list(rows)
    if 1 < tokens <= 8:  # between two lines stand so many products that the core does not look far ahead
        for line in range(0, 32 * bits, 64):
            _fetch(builder, builder.add(weights, long(AHEAD + line)))
    for step in range(4):
        w = whole_step(builder, weights, step, bits)
        for token in range(tokens):
            digits = splat_word(builder, x, 4 * (step * tokens + token))
            at = step % chains * tokens + token
            rows[at] = dot(builder, rows[at], w, digits, bits)
    return rows


def _fetch(builder, address):
    flags = [ir.Constant(INT, flag) for flag in (0, 3, 1)]  # to read, into all caches, data
    at = pointer_to(builder, address, BYTE)
    call(builder, "llvm.prefetch.p0", ir.VoidType(), [at, *flags])


_ADD = {"dotprod": _add_sdot, "i8mm": _add_smmla, "neon": _add_smull}


def adder() -> Callable:
    """The tier's (builder, rows, weights, x, tokens, bits) → rows."""
    return _ADD.get(tier().name, _add_steps)


# ------------------------------------------------------------------------------------------ Numba's view
@intrinsic(prefer_literal=True)
def straight(typing, tokens):
    """Whether four blocks are to be straight-line code together.

    One token does little between two ends of a loop: 0.148 instead of 0.156 instructions per MAC of nibbles.
    """
    wanted = tokens.literal_value == 1 and tier().name in ("dotprod", "i8mm")
    return types.boolean(tokens), lambda c, b, s, a: flag(wanted)


def _blocks_adder(count: int):
    @intrinsic(prefer_literal=True)
    def add(typing, tile, weights, x, tokens, bits):
        one, m, width = adder(), tokens.literal_value, bits.literal_value

        def emit(context, builder, signature, args):
            rows, (_, weights, x, _, _) = cgutils.unpack_tuple(builder, args[0], tile.count), args
            if count > 1:
                weights, x = fixed_address(builder, weights), fixed_address(builder, x)
            for i in range(count):
                at, digits = (
                    builder.add(address, long(size * i))
                    for address, size in ((weights, 32 * width), (x, 16 * m))
                )
                rows = one(builder, rows, at, digits, m, width)
            return context.make_tuple(builder, tile, rows)

        return tile(tile, types.int64, types.int64, tokens, bits), emit

    return add


# Add blocks of 16 columns; `weights` and `x` are the addresses of the first one's.
add_block, add_blocks = _blocks_adder(1), _blocks_adder(4)


@intrinsic
def prefetch(typing, address):
    """Ask for 64 bytes, on x86. On ARM cores this was not measured and is nothing."""

    def emit(context, builder, signature, args):
        if tier().machine == "x86_64":
            _fetch(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), emit
