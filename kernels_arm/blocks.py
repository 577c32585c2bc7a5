"""The inner step of a product, per tier: 16 columns of a panel times a tile's tokens, straight-line code.

A tile is M vectors of 16 sums, one a token. Between blocks it may stand in another form; `to_block` and
`from_block` change it once for a whole product:

    plain      as it is
    chained    several vectors a token, or the latency of the dot product would set the pace of few tokens
    pairs      SMULL, int8: the sums over even and odd pairs of columns apart, as SADALP makes them
    two by two SMMLA: 2 tokens × 2 rows a register

Weights are 128 bytes (nibbles) or 256 (int8) of `layout`'s steps; digits are M · 16 bytes, 4 columns of a
token (a word) at word step · M + token. NEON takes words by lane from 16-byte loads: one load for four words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from . import ops, simd
from .simd import ints16

_BYTE, _SHORT, _INT, _LONG = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
_BYTES16, _SHORTS8, _INTS4 = (ir.VectorType(t, n) for t, n in ((_BYTE, 16), (_SHORT, 8), (_INT, 4)))

# Tokens of the compiled tiles, the last is the full one. A token's 16 sums take 4 of NEON's 32 registers;
# SMULL needs most of the others for its products, SMMLA for its zipped operands.
_TILES = {"neon": (1, 2), "dotprod": (1, 2, 4, 6), "i8mm": (1, 2, 4)}
_X86, _X86_TILES = ("avx512vnni", "avx2"), (1, 2, 4, 8, 16)
AHEAD = 8192  # bytes of weights between what is multiplied and what is prefetched, on x86
FIRST = 2048  # bytes of a panel that are prefetched before the panel's turn, where one token is multiplied
_ATTENTION_ROWS = {
    "avx512vnni": 8
}  # a row has 8 float64 sums: 1 register of 32, elsewhere 4 of 32 or 2 of 16


def tiles() -> tuple[int, ...]:
    """The tile sizes of the tier that is compiled for."""
    return _TILES.get(simd.tier().name, _X86_TILES)


# ---------------------------------------------------------------------------------------------- pieces
def _shuffle(builder, a, b, lanes):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT, len(lanes)), lanes))


def _load(builder, llvm, address, offset: int):
    value = builder.load(simd._address(builder, builder.add(address, ir.Constant(_LONG, offset)), llvm))
    value.align = 1
    return value


def _quads(builder, rows):
    """Each vector of 16 as four of 4 rows, [vector][quad]."""
    return [[simd._quarter(builder, row, q) for q in range(4)] for row in rows]


def _joined(builder, quads):
    return [simd._join(builder, list(four)) for four in quads]


def _by_register(builder, rows):
    """All vectors' quads in one list, and back by `_from_registers`."""
    return [quad for four in _quads(builder, rows) for quad in four]


def _from_registers(builder, registers):
    return _joined(builder, [registers[i : i + 4] for i in range(0, len(registers), 4)])


def _weights(builder, address, step: int, quad: int, bits: int):
    """4 columns of 4 rows, <16 x i8>: nibbles as 0 … 15, int8 as they are."""
    if bits == 8:
        return _load(builder, _BYTES16, address, 64 * step + 16 * quad)
    packed = _load(builder, _BYTES16, address, 64 * (step // 2) + 16 * quad)
    if step % 2:
        return builder.lshr(packed, simd._constant(_BYTES16, 4))
    return builder.and_(packed, simd._constant(_BYTES16, 15))


# ----------------------------------------------------------------------------------------------- forms
@dataclass(frozen=True)
class Form:
    """How sums stand between blocks: vectors a token, and the change from and to one vector a token."""

    chains: int
    enter: Callable  # (builder, rows) → rows
    leave: Callable


def _chained(chains: int) -> Form:
    def add_zeros(builder, rows):
        return [*rows, *([simd._constant(ints16.llvm, 0)] * ((chains - 1) * len(rows)))]

    def fold(builder, rows):
        for _ in range(chains.bit_length() - 1):
            half = len(rows) // 2
            rows = [builder.add(a, b) for a, b in zip(rows[:half], rows[half:], strict=True)]
        return rows

    return Form(chains, add_zeros, fold)


def _to_pairs(builder, rows):
    """Rows (0, 0, 1, 1) and (2, 2, 3, 3) of each quad, the sum in the first of two lanes."""
    zero = simd._constant(_INTS4, 0)
    return _joined(builder, [
        [_shuffle(builder, quad, zero, lanes) for quad in four]
        for lanes in ([0, 4, 1, 5], [2, 6, 3, 7])
        for four in _quads(builder, rows)
    ])  # fmt: skip


def _from_pairs(builder, rows):
    quads, m = _quads(builder, rows), len(rows) // 2
    add = "llvm.aarch64.neon.addp.v4i32"
    return _joined(builder, [
        [simd._call(builder, add, _INTS4, list(pair)) for pair in zip(quads[t], quads[m + t], strict=True)]
        for t in range(m)
    ])  # fmt: skip


def _to_two_by_two(builder, rows):
    """Register 8p + r: tokens 2p and 2p + 1, rows 2r and 2r + 1."""
    quads, registers = _quads(builder, rows), []
    for even, odd in zip(quads[::2], quads[1::2], strict=True):
        for a, b in zip(even, odd, strict=True):
            registers += [_shuffle(builder, a, b, lanes) for lanes in ([0, 1, 4, 5], [2, 3, 6, 7])]
    return _from_registers(builder, registers)


def _from_two_by_two(builder, rows):
    registers, quads = _by_register(builder, rows), []
    for at in range(0, len(registers), 8):
        for lanes in ([0, 1, 4, 5], [2, 3, 6, 7]):
            low_high = zip(registers[at : at + 8 : 2], registers[at + 1 : at + 8 : 2], strict=True)
            quads.append([_shuffle(builder, a, b, lanes) for a, b in low_high])
    return _joined(builder, quads)


_PLAIN = Form(1, lambda builder, rows: rows, lambda builder, rows: rows)
_TWO_CHAINS, _FOUR_CHAINS = _chained(2), _chained(4)
_PAIRS = Form(2, _to_pairs, _from_pairs)
_TWO_BY_TWO = Form(1, _to_two_by_two, _from_two_by_two)


def _form(tokens: int, bits: int) -> Form:
    name = simd.tier().name
    if name == "neon":
        return _PAIRS if bits == 8 and tokens == 1 else _PLAIN
    if name == "i8mm" and tokens > 1:
        return _TWO_BY_TWO
    if tokens == 1 and name in _X86:
        return _FOUR_CHAINS
    return _TWO_CHAINS if tokens <= 2 else _PLAIN


# ---------------------------------------------------------------------------------------------- blocks
def _add_sdot(builder, rows, weights, x, tokens: int, bits: int):
    """Each quad of weights is used up by all tokens before the next is loaded: registers stay free."""
    sums, chains = _quads(builder, rows), len(rows) // tokens
    words = [_load(builder, _INTS4, x, 16 * i) for i in range(tokens)]
    together = 2 if bits == 4 else 1  # the steps that share a byte of weights
    for first in range(0, 4, together):
        for quad in range(4):
            for step in range(first, first + together):
                w = _weights(builder, weights, step, quad, bits)
                for token in range(tokens):
                    register, lane = divmod(step * tokens + token, 4)
                    word = _shuffle(builder, words[register], words[register], [lane] * 4)
                    four = sums[step % chains * tokens + token]
                    operands = [four[quad], w, builder.bitcast(word, _BYTES16)]
                    four[quad] = simd._call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", _INTS4, operands)
    return _joined(builder, sums)


def _add_smmla(builder, rows, weights, x, tokens: int, bits: int):
    """Two steps are zipped to 8 columns of two rows a register, and of two tokens."""
    if tokens == 1:
        return _add_sdot(builder, rows, weights, x, tokens, bits)
    sums = _by_register(builder, rows)
    words = [_load(builder, _INTS4, x, 16 * i) for i in range(tokens)]
    for step in (0, 2):
        two_rows = []
        for quad in range(4):
            even, odd = (
                builder.bitcast(_weights(builder, weights, step + i, quad, bits), _INTS4) for i in (0, 1)
            )
            two_rows += [_shuffle(builder, even, odd, lanes) for lanes in ([0, 4, 1, 5], [2, 6, 3, 7])]
        for pair in range(tokens // 2):
            index = [(step + i) * tokens + 2 * pair + t for t in (0, 1) for i in (0, 1)]
            low, high = min(index) // 4, max(index) // 4
            lanes = [i % 4 + (4 if i // 4 != low else 0) for i in index]
            two_tokens = builder.bitcast(_shuffle(builder, words[low], words[high], lanes), _BYTES16)
            for r, w in enumerate(two_rows, 8 * pair):
                operands = [sums[r], two_tokens, builder.bitcast(w, _BYTES16)]
                sums[r] = simd._call(builder, "llvm.aarch64.neon.smmla.v4i32.v16i8", _INTS4, operands)
    return _from_registers(builder, sums)


def _add_smull(builder, rows, weights, x, tokens: int, bits: int):
    """Products are summed in int16: of 4 columns of nibbles (8 · 15 · 127 after ADDP), of 2 of int8."""
    sums = _quads(builder, rows)
    words = [word for i in range(tokens) for word in _repeated_words(builder, x, 16 * i)]
    together = 2 if bits == 8 else 4
    for first in range(0, 4, together):
        steps = range(first, first + together)
        for quad in range(4):
            w = [_weights(builder, weights, step, quad, bits) for step in steps]
            for token in range(tokens):
                digits = [words[step * tokens + token] for step in steps]
                halves = [_sum_of_products(builder, w, digits, half) for half in (0, 1)]
                if bits == 4:
                    pairs = simd._call(builder, "llvm.aarch64.neon.addp.v8i16", _SHORTS8, halves)
                    sums[token][quad] = builder.add(sums[token][quad], _widened(builder, pairs))
                elif tokens == 1:  # the form `pairs`
                    for four, half in zip(sums, halves, strict=True):
                        four[quad] = builder.add(four[quad], _widened(builder, half))
                else:
                    wide = [_widened(builder, half) for half in halves]
                    total = simd._call(builder, "llvm.aarch64.neon.addp.v4i32", _INTS4, wide)
                    sums[token][quad] = builder.add(sums[token][quad], total)
    return _joined(builder, sums)


def _repeated_words(builder, address, offset: int):
    """LD4R: four words, each repeated over a register of its own."""
    at = simd._address(builder, builder.add(address, ir.Constant(_LONG, offset)), _INT)
    four = simd._call(builder, "llvm.aarch64.neon.ld4r.v4i32.p0", ir.LiteralStructType([_INTS4] * 4), [at])
    return [builder.bitcast(builder.extract_value(four, i), _BYTES16) for i in range(4)]


def _sum_of_products(builder, weights, digits, half: int):
    """SMULL and SMLAL (half 0) or SMULL2 and SMLAL2 (half 1) over steps: <8 x i16>."""
    lanes, total = list(range(8 * half, 8 * half + 8)), None
    for w, x in zip(weights, digits, strict=True):
        operands = [_shuffle(builder, v, v, lanes) for v in (w, x)]
        product = simd._call(builder, "llvm.aarch64.neon.smull.v8i16", _SHORTS8, operands)
        total = builder.add(total, product) if total else product
    return total


def _widened(builder, shorts):
    """Sums of adjacent pairs; with the add that follows it is one SADALP."""
    return simd._call(builder, "llvm.aarch64.neon.saddlp.v4i32.v8i16", _INTS4, [shorts])


def _add_steps(builder, rows, weights, x, tokens: int, bits: int):
    """x86: step by step, a word repeated over the whole register."""
    one, chains, rows = simd._DOT[simd.tier().name], len(rows) // tokens, list(rows)
    bytes64 = simd.bytes64.llvm
    if 1 < tokens <= 8:  # between two lines stand so many products that the core does not look far ahead
        for line in range(0, 32 * bits, 64):
            _fetch(builder, builder.add(weights, ir.Constant(_LONG, AHEAD + line)))
    for step in range(4):
        w = _load(builder, bytes64, weights, 64 * (step if bits == 8 else step // 2))
        if bits == 8:
            w = builder.xor(w, simd._constant(bytes64, -128)) if simd._wants_unsigned() else w
        elif step % 2:
            w = builder.lshr(w, simd._constant(bytes64, 4))
        else:
            w = builder.and_(w, simd._constant(bytes64, 15))
        for token in range(tokens):
            word = _load(builder, _INT, x, 4 * (step * tokens + token))
            digits = builder.bitcast(simd._splat(builder, word, 16), bytes64)
            at = step % chains * tokens + token
            rows[at] = one(builder, rows[at], w, digits, bits)
    return rows


def _fetch(builder, address):
    flags = [ir.Constant(_INT, flag) for flag in (0, 3, 1)]  # to read, into all caches, data
    at = simd._address(builder, address, _BYTE)
    simd._call(builder, "llvm.prefetch.p0", ir.VoidType(), [at, *flags])


_ADD = {"dotprod": _add_sdot, "i8mm": _add_smmla, "neon": _add_smull}


def adder() -> Callable:
    """The tier's (builder, rows, weights, x, tokens, bits) → rows."""
    return _ADD.get(simd.tier().name, _add_steps)


def _group_at(builder, weights, index, bits: int):
    """Where the group stands whose number is at `index`: two of nibbles share 64 bytes."""
    number = builder.sext(_load(builder, _INT, index, 0), _LONG)
    if bits == 4:
        number = builder.ashr(number, ir.Constant(_LONG, 1))
    return builder.add(weights, builder.shl(number, ir.Constant(_LONG, 6)))


def _add_group(builder, rows, weights, x, bits: int, high: bool):
    """4 columns for rows in plain form; of nibbles the low or the high ones. x: a word a token."""
    if simd.tier().name in ("dotprod", "i8mm"):
        return _add_group_sdot(builder, rows, weights, x, bits, high)
    one, bytes64 = simd._DOT[simd.tier().name], simd.bytes64.llvm
    w = _load(builder, bytes64, weights, 0)
    if bits == 4:
        w = _half_of(builder, w, high)
    elif simd._wants_unsigned():
        w = builder.xor(w, simd._constant(bytes64, -128))
    words = [simd._splat(builder, _load(builder, _INT, x, 4 * i), 16) for i in range(len(rows))]
    return [
        one(builder, row, w, builder.bitcast(word, bytes64), bits)
        for row, word in zip(rows, words, strict=True)
    ]


def _add_group_sdot(builder, rows, weights, x, bits: int, high: bool):
    """By lane of one load for up to four tokens."""
    words = []
    for first in range(0, len(rows), 4):
        count = min(4, len(rows) - first)
        words += _lanes(builder, _load(builder, ir.VectorType(_INT, count), x, 4 * first), count)
    return _add_words(builder, rows, weights, words, bits, high)


def _lanes(builder, some, count: int):
    """Each of the first `count` words repeated over a register."""
    return [builder.bitcast(_shuffle(builder, some, some, [i] * 4), _BYTES16) for i in range(count)]


def _add_words(builder, rows, weights, words, bits: int, high: bool):
    sums = _quads(builder, rows)
    for quad in range(4):
        w = _load(builder, _BYTES16, weights, 16 * quad)
        w = _half_of(builder, w, high) if bits == 4 else w
        for four, word in zip(sums, words, strict=True):
            four[quad] = simd._dot_quad(builder, four[quad], w, word)
    return _joined(builder, sums)


def _half_of(builder, packed, high: bool):
    """The high or the low nibbles."""
    by = simd._constant(packed.type, 4 if high else 15)
    return builder.lshr(packed, by) if high else builder.and_(packed, by)


# ------------------------------------------------------------------------------------------ Numba's view
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
        if simd.tier().name in _X86:
            row = _add_four_apart(builder, rows[0], args, width, bool(odd.literal_value))
            return context.make_tuple(builder, tile, [row])
        for i, word in enumerate(_lanes(builder, _load(builder, _INTS4, args[3], 0), 4)):
            index = builder.add(args[2], ir.Constant(_LONG, 4 * i))
            at = _group_at(builder, args[1], index, width)
            rows = _add_words(builder, rows, at, [word] * tile.count, width, bool(odd.literal_value))
        return context.make_tuple(builder, tile, rows)

    return tile(tile, types.int64, types.int64, types.int64, bits, odd), emit


def _add_four_apart(builder, row, args, bits: int, odd: bool):
    """Sums of their own for each: or one dot product would wait for the last."""
    none, sums = simd._constant(ints16.llvm, 0), []
    for i in range(4):
        at = _group_at(builder, args[1], builder.add(args[2], ir.Constant(_LONG, 4 * i)), bits)
        x = builder.add(args[3], ir.Constant(_LONG, 4 * i))
        sums += _add_group(builder, [none], at, x, bits, odd)
    pairs = [builder.add(*sums[:2]), builder.add(*sums[2:])]
    return builder.add(row, builder.add(*pairs))


@intrinsic(prefer_literal=True)
def by_fours(typing, tokens):
    """Whether groups are added four at a time."""
    wanted = tokens.literal_value == 1 and simd.tier().name in ("dotprod", "i8mm", *_X86)
    return types.boolean(tokens), lambda c, b, s, a: ir.Constant(ir.IntType(1), int(wanted))


@intrinsic(prefer_literal=True)
def straight(typing, tokens):
    """Whether four blocks are to be one piece of straight-line code.

    One token does little between two ends of a loop: 0.148 instead of 0.156 instructions per MAC of nibbles.
    """
    wanted = tokens.literal_value == 1 and simd.tier().name in ("dotprod", "i8mm")
    return types.boolean(tokens), lambda c, b, s, a: ir.Constant(ir.IntType(1), int(wanted))


@intrinsic(prefer_literal=True)
def to_block(typing, tile, bits):
    """A tile (one vector a token) in the form in which blocks are added to it."""
    form = _form(tile.count, bits.literal_value)
    result = types.UniTuple(ints16, tile.count * form.chains)

    def emit(context, builder, signature, args):
        rows = cgutils.unpack_tuple(builder, args[0], tile.count)
        return context.make_tuple(builder, result, form.enter(builder, list(rows)))

    return result(tile, bits), emit


def _blocks_adder(count: int):
    @intrinsic(prefer_literal=True)
    def add(typing, tile, weights, x, tokens, bits):
        one, m, width = adder(), tokens.literal_value, bits.literal_value

        def emit(context, builder, signature, args):
            rows, (_, weights, x, _, _) = cgutils.unpack_tuple(builder, args[0], tile.count), args
            if count > 1:
                weights, x = simd._fixed(builder, weights), simd._fixed(builder, x)
            for i in range(count):
                at, digits = (
                    builder.add(address, ir.Constant(_LONG, size * i))
                    for address, size in ((weights, 32 * width), (x, 16 * m))
                )
                rows = one(builder, rows, at, digits, m, width)
            return context.make_tuple(builder, tile, rows)

        return tile(tile, types.int64, types.int64, tokens, bits), emit

    return add


# Add blocks of 16 columns; `weights` and `x` are the addresses of the first one's.
add_block, add_blocks = _blocks_adder(1), _blocks_adder(4)


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


@intrinsic
def prefetch(typing, address):
    """Ask for 64 bytes, on x86. On ARM cores this was not measured and is nothing."""

    def emit(context, builder, signature, args):
        if simd.tier().name in _X86:
            _fetch(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic
def full_tile(typing):
    """Tokens of a full tile, a constant of the tier."""
    return types.int64(), lambda context, builder, signature, args: ir.Constant(_LONG, tiles()[-1])


@intrinsic
def few_tile(typing):
    """The same where weights are multiplied as they stand, and tokens share a lookup of sparse excess."""
    return types.int64(), lambda c, b, s, a: ir.Constant(_LONG, min(tiles()[-1], 8))


@intrinsic
def sparse_tokens(typing):
    """`ops.sparse_tokens` of the tier, a constant."""
    return types.int64(), lambda c, b, s, a: ir.Constant(_LONG, ops.sparse_tokens(simd.tier().name))


@intrinsic
def full_rows(typing):
    """Query rows that share a load of keys or values, at most ops.ATTEND_ROWS."""
    return types.int64(), lambda c, b, s, a: ir.Constant(_LONG, _ATTENTION_ROWS.get(simd.tier().name, 6))


@intrinsic(prefer_literal=True)
def has_tile(typing, tokens):
    """Whether the tier has tiles of this size; other sizes are then not compiled."""
    known = tokens.literal_value in tiles()
    return types.boolean(tokens), lambda c, b, s, a: ir.Constant(ir.IntType(1), int(known))


@intrinsic
def tile_of(typing, tokens):
    """The smallest tile that holds so many tokens, at most a full one."""

    return types.int64(types.int64), lambda c, builder, s, args: smallest(builder, args[0], tiles())


def smallest(builder, count, sizes: tuple[int, ...]):
    """The smallest of the sizes that is no less than `count`, else the last."""
    size = ir.Constant(_LONG, sizes[-1])
    for smaller in reversed(sizes[:-1]):
        fits = builder.icmp_signed("<=", count, ir.Constant(_LONG, smaller))
        size = builder.select(fits, ir.Constant(_LONG, smaller), size)
    return size
