"""SIMD vectors as Numba values: four vector types, the arithmetic on them, and a few integer instructions.

Every vector is 512 bits wide in the source: one register with AVX-512, two with AVX2, four with NEON. LLVM
splits them; only dot products are written per tier. Addresses are int64. Nothing here is compiled on import.

    bytes64   64 × int8       ints16   16 × int32       floats16   16 × float32      doubles8   8 × float64
    tile      a tuple of M vectors: M tokens × 16 outputs

Floats never fuse multiply and add: the kernels equal `reference` bit for bit.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic, models, overload, register_model

from .cpu import Tier

_TIER: Tier | None = None


def set_tier(tier: Tier) -> None:
    """Fix the instructions that dot products and `pause` use in this process, before anything is compiled."""
    global _TIER
    if _TIER is not None and tier != _TIER:
        raise RuntimeError(f"this process compiles for {_TIER.name}, not {tier.name}: use another process")
    _TIER = tier


def tier() -> Tier:
    assert _TIER is not None, "call set_tier before compiling a kernel"
    return _TIER


# ------------------------------------------------------------------------------------------------ types
_BYTE, _SHORT, _INT, _LONG, _FLOAT = (
    ir.IntType(8),
    ir.IntType(16),
    ir.IntType(32),
    ir.IntType(64),
    ir.FloatType(),
)


def _vector(element: ir.Type, count: int) -> ir.VectorType:
    return ir.VectorType(element, count)


_DOUBLE = ir.DoubleType()


class Vector(types.Type):
    def __init__(self, name: str, llvm: ir.VectorType):
        self.llvm = llvm
        super().__init__(name)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, fe_type.llvm)


bytes64 = Vector("bytes64", _vector(_BYTE, 64))
ints16 = Vector("ints16", _vector(_INT, 16))
floats16 = Vector("floats16", _vector(_FLOAT, 16))
doubles8 = Vector("doubles8", _vector(_DOUBLE, 8))


def _constant(llvm: ir.VectorType, value) -> ir.Constant:
    return ir.Constant(llvm, [value] * llvm.count)


def _splat(builder, value, count: int):
    one = builder.insert_element(
        ir.Constant(_vector(value.type, count), ir.Undefined), value, ir.Constant(_INT, 0)
    )
    return builder.shuffle_vector(
        one, ir.Constant(one.type, ir.Undefined), _constant(_vector(_INT, count), 0)
    )


def _call(builder, name: str, result, args):
    """Call the LLVM intrinsic `name`."""
    function_type = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)


def _suffix(llvm) -> str:
    if isinstance(llvm, ir.VectorType):
        return f"v{llvm.count}{_suffix(llvm.element)}"
    return "f32" if isinstance(llvm, ir.FloatType) else f"i{llvm.width}"


# ------------------------------------------------------------------------------------ loads and stores
def _address(builder, value, llvm):
    return builder.inttoptr(value, llvm.as_pointer())


def _fixed(builder, address):
    """On ARM the address as one that LLVM does not take apart: what counts from it is loaded in pairs."""
    if tier().machine == "x86_64":
        return address
    pointer = _address(builder, address, _BYTE)
    pointer = _call(builder, "llvm.launder.invariant.group.p0", pointer.type, [pointer])
    return builder.ptrtoint(pointer, _LONG)


@intrinsic
def fixed(typing, address):
    return types.int64(types.int64), lambda context, builder, signature, args: _fixed(builder, args[0])


def _loader(result, llvm, align: int):
    @intrinsic
    def load(typing, address):
        def emit(context, builder, signature, args):
            value = builder.load(_address(builder, args[0], llvm))
            value.align = align
            return value

        return result(types.int64), emit

    return load


def _storer(operand, llvm, align: int):
    @intrinsic
    def store(typing, address, value):
        def emit(context, builder, signature, args):
            builder.store(args[1], _address(builder, args[0], llvm)).align = align
            return context.get_dummy_value()

        return types.void(types.int64, operand), emit

    return store


load_bytes = _loader(bytes64, bytes64.llvm, 1)
load_ints = _loader(ints16, ints16.llvm, 4)
load_floats = _loader(floats16, floats16.llvm, 4)
store_bytes = _storer(bytes64, bytes64.llvm, 1)
store_ints = _storer(ints16, ints16.llvm, 4)
store_floats = _storer(floats16, floats16.llvm, 4)

get_f32 = _loader(types.float32, _FLOAT, 4)
get_i64 = _loader(types.int64, _LONG, 8)
get_i32 = _loader(types.int32, _INT, 4)
get_i8 = _loader(types.int8, _BYTE, 1)
get_u8 = _loader(types.uint8, _BYTE, 1)
get_u16 = _loader(types.uint16, _SHORT, 2)
set_f32 = _storer(types.float32, _FLOAT, 4)
set_i32 = _storer(types.int32, _INT, 4)
set_i8 = _storer(types.int8, _BYTE, 1)
set_u16 = _storer(types.uint16, _SHORT, 2)
set_i64 = _storer(types.int64, _LONG, 8)


def _mask(builder, count):
    """<16 x i1> of the first `count` lanes."""
    lanes = ir.Constant(_vector(_INT, 16), list(range(16)))
    return builder.icmp_signed("<", lanes, _splat(builder, builder.trunc(count, _INT), 16))


@intrinsic
def store_floats_part(typing, address, value, count):
    """Store the first `count` lanes."""

    def emit(context, builder, signature, args):
        pointer = _address(builder, args[0], floats16.llvm)
        mask = _mask(builder, args[2])
        name = "llvm.masked.store.v16f32.p0"
        _call(builder, name, ir.VoidType(), [args[1], pointer, ir.Constant(_INT, 4), mask])
        return context.get_dummy_value()

    return types.void(types.int64, floats16, types.int64), emit


@intrinsic
def store_low_bytes(typing, address, value):
    """Truncate 16 ints to bytes and store them side by side."""

    def emit(context, builder, signature, args):
        packed = builder.trunc(args[1], _vector(_BYTE, 16))
        builder.store(packed, _address(builder, args[0], packed.type)).align = 1
        return context.get_dummy_value()

    return types.void(types.int64, ints16), emit


@intrinsic
def store_steps(typing, address, value, stride):
    """Truncate 16 ints to bytes and store them as four groups of 4 bytes, `stride` bytes apart."""

    def emit(context, builder, signature, args):
        groups = builder.bitcast(builder.trunc(args[1], _vector(_BYTE, 16)), _vector(_INT, 4))
        for i in range(4):
            at = builder.add(args[0], builder.mul(args[2], ir.Constant(_LONG, i)))
            builder.store(
                builder.extract_element(groups, ir.Constant(_INT, i)), _address(builder, at, _INT)
            ).align = 1
        return context.get_dummy_value()

    return types.void(types.int64, ints16, types.int64), emit


# ------------------------------------------------------------------------------------------ arithmetic
def _unary(operand, result, emit_one):
    @intrinsic
    def operation(typing, a):
        return result(operand), lambda context, builder, signature, args: emit_one(builder, args[0])

    return operation


def _overloaded(python_operator, by_type):
    """Let `a <operator> b` work on two vectors of the same type."""

    @intrinsic
    def operation(typing, a, b):
        emit_one = by_type[a]
        return a(a, b), lambda context, builder, signature, args: emit_one(builder, *args)

    @overload(python_operator)
    def dispatch(a, b):
        if a in by_type and a == b:
            return lambda a, b: operation(a, b)
        return None  # Numba asks the next overload


_overloaded(operator.add, {floats16: lambda b, x, y: b.fadd(x, y), ints16: lambda b, x, y: b.add(x, y)})
_overloaded(operator.sub, {floats16: lambda b, x, y: b.fsub(x, y), ints16: lambda b, x, y: b.sub(x, y)})
_overloaded(operator.mul, {floats16: lambda b, x, y: b.fmul(x, y), ints16: lambda b, x, y: b.mul(x, y)})
_overloaded(operator.truediv, {floats16: lambda b, x, y: b.fdiv(x, y)})


def _compare_select(predicate: str, name: str):
    @intrinsic
    def pick(typing, a, b):
        def emit(context, builder, signature, args):
            if tier().machine == "aarch64":  # FMAXNM, FMINNM; x86 has the comparison's own
                return _call(builder, f"llvm.{name}.v16f32", args[0].type, args)
            return builder.select(builder.fcmp_ordered(predicate, *args), *args)

        return a(a, b), emit

    return pick


greater = _compare_select(">", "maxnum")  # the larger of each pair of lanes (no NaN)
smaller = _compare_select("<", "minnum")
round_even = _unary(floats16, floats16, lambda b, x: _call(b, "llvm.rint.v16f32", x.type, [x]))
to_ints = _unary(floats16, ints16, lambda b, x: b.fptosi(x, ints16.llvm))


def _nearest(builder, x):
    """FCVTNS rounds and converts in one."""
    if tier().machine == "aarch64":
        name = "llvm.aarch64.neon.fcvtns.v4i32.v4f32"
        return _join(
            builder, [_call(builder, name, _vector(_INT, 4), [_quarter(builder, x, i)]) for i in range(4)]
        )
    return builder.fptosi(_call(builder, "llvm.rint.v16f32", x.type, [x]), ints16.llvm)


nearest_ints = _unary(floats16, ints16, _nearest)  # to the nearest, of two the even one
to_floats = _unary(ints16, floats16, lambda b, x: b.sitofp(x, floats16.llvm))
power_of_two = _unary(
    ints16,
    floats16,
    lambda b, n: b.bitcast(
        b.shl(b.add(n, _constant(ints16.llvm, 127)), _constant(ints16.llvm, 23)), floats16.llvm
    ),
)
low_nibbles = _unary(bytes64, bytes64, lambda b, x: b.and_(x, _constant(bytes64.llvm, 15)))
high_nibbles = _unary(bytes64, bytes64, lambda b, x: b.lshr(x, _constant(bytes64.llvm, 4)))
times_128 = _unary(ints16, ints16, lambda b, x: b.shl(x, _constant(ints16.llvm, 7)))
high_digits = _unary(ints16, ints16, lambda b, x: b.ashr(x, _constant(ints16.llvm, 7)))
low_digits = _unary(ints16, ints16, lambda b, x: b.and_(x, _constant(ints16.llvm, 127)))
minus_eight = _unary(bytes64, bytes64, lambda b, x: b.sub(x, _constant(bytes64.llvm, 8)))


@intrinsic
def splat_float(typing, value):
    return floats16(types.float32), lambda c, builder, s, args: _splat(builder, args[0], 16)


@intrinsic
def splat_int(typing, value):
    return ints16(types.int32), lambda c, builder, s, args: _splat(builder, args[0], 16)


@intrinsic
def zero_below(typing, value, x, bound):
    """`value` where x ≥ bound, else 0."""

    def emit(context, builder, signature, args):
        keep = builder.fcmp_ordered(">=", args[1], args[2])
        return builder.select(keep, args[0], _constant(floats16.llvm, 0.0))

    return floats16(floats16, floats16, floats16), emit


@intrinsic
def keep_first(typing, value, count, other):
    """The first `count` lanes of value, the others from `other`."""

    def emit(context, builder, signature, args):
        return builder.select(_mask(builder, args[1]), args[0], args[2])

    return floats16(floats16, types.int64, floats16), emit


def _fold(emit_pair):
    """Fold 16 lanes in halves: 8 + 8, 4 + 4, 2 + 2, 1 + 1."""

    def emit_one(builder, x):
        width = x.type.count
        while width > 1:
            width //= 2
            undefined = ir.Constant(x.type, ir.Undefined)
            halves = [
                builder.shuffle_vector(
                    x, undefined, ir.Constant(_vector(_INT, width), list(range(at, at + width)))
                )
                for at in (0, width)
            ]
            x = emit_pair(builder, *halves)
        return builder.extract_element(x, ir.Constant(_INT, 0))

    return emit_one


sum_ints = _unary(ints16, types.int32, _fold(lambda b, x, y: b.add(x, y)))
max_floats = _unary(floats16, types.float32, _fold(lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y)))
round_f32 = _unary(types.float32, types.float32, lambda b, x: _call(b, "llvm.rint.f32", x.type, [x]))


# ---------------------------------------------------------------------------------------------- doubles
# Products of float32 are exact in float64, so fused multiply-add changes no bit here.
def _half(first: int):
    @intrinsic
    def widen(typing, vector):
        def emit(context, builder, signature, args):
            pick = ir.Constant(_vector(_INT, 8), list(range(first, first + 8)))
            half = builder.shuffle_vector(args[0], ir.Constant(floats16.llvm, ir.Undefined), pick)
            return builder.fpext(half, doubles8.llvm)

        return doubles8(floats16), emit

    return widen


low_doubles, high_doubles = _half(0), _half(8)
sum_doubles = _unary(doubles8, types.float64, _fold(lambda b, x, y: b.fadd(x, y)))
sqrt_f64 = _unary(types.float64, types.float64, lambda b, x: _call(b, "llvm.sqrt.f64", x.type, [x]))


@intrinsic
def no_doubles(typing):
    return doubles8(), lambda c, b, s, a: _constant(doubles8.llvm, 0.0)


@intrinsic
def add_doubles(typing, a, b):
    return doubles8(doubles8, doubles8), lambda c, builder, s, args: builder.fadd(*args)


def _fused(builder, a, b, c):
    return _call(builder, "llvm.fma.v8f64", c.type, [a, b, c])


@intrinsic
def add_squares(typing, total, x):
    """total + x², exactly rounded."""
    return doubles8(doubles8, doubles8), lambda c, builder, s, a: _fused(builder, a[1], a[1], a[0])


@intrinsic
def load_doubles(typing, address):
    """8 float32 as float64."""

    def emit(context, builder, signature, args):
        floats = builder.load(_address(builder, args[0], _vector(_FLOAT, 8)))
        floats.align = 4
        return builder.fpext(floats, doubles8.llvm)

    return doubles8(types.int64), emit


@intrinsic
def store_as_doubles(typing, address, vector):
    """16 float32 as float64, 128 bytes."""

    def emit(context, builder, signature, args):
        wide = builder.fpext(args[1], _vector(_DOUBLE, 16))
        builder.store(wide, _address(builder, args[0], wide.type)).align = 8
        return context.get_dummy_value()

    return types.void(types.int64, floats16), emit


set_f64 = _storer(types.float64, _DOUBLE, 8)


@intrinsic(prefer_literal=True)
def zero_doubles(typing, count):
    """A tile of `count` (a compile-time constant) zero vectors of float64."""
    tile = types.UniTuple(doubles8, count.literal_value)

    def emit(context, builder, signature, args):
        return context.make_tuple(builder, tile, [_constant(doubles8.llvm, 0.0)] * tile.count)

    return tile(count), emit


@intrinsic
def add_products(typing, tile, vector, address, stride):
    """tile[i] += vector · float64 at address + i · stride: the step of scores and of weighted values."""

    def emit(context, builder, signature, args):
        rows = cgutils.unpack_tuple(builder, args[0], tile.count)
        for i, row in enumerate(rows):
            at = builder.add(args[2], builder.mul(args[3], ir.Constant(_LONG, i)))
            factor = _splat(builder, builder.load(_address(builder, at, _DOUBLE)), 8)
            rows[i] = _fused(builder, factor, args[1], row)
        return context.make_tuple(builder, tile, rows)

    return tile(tile, doubles8, types.int64, types.int64), emit


def _two_products(stride: int):
    """add(tile, address, step, factors): tile[i] += Σ_j factor [i, j] · 8 float32 at address + step · j.

    Factors are float64, row i's two at factors + i · stride, or, where that is 0, all first ones and then all
    second ones side by side. NEON takes them by lane, two a load.
    """

    @intrinsic
    def add(typing, tile, address, step, factors):
        def emit(context, builder, signature, args):
            rows, (_, address, step, factors) = cgutils.unpack_tuple(builder, args[0], tile.count), args
            places = [(i * stride + 8 * j if stride else 8 * (j * len(rows) + i)) for j in (0, 1)
                      for i in range(len(rows))]  # fmt: skip
            factor = (
                _by_lane(builder, factors) if tier().machine == "aarch64" else _repeated(builder, factors)
            )
            for j in (0, 1):
                at = builder.add(address, builder.mul(step, ir.Constant(_LONG, j)))
                floats = builder.load(_address(builder, at, _vector(_FLOAT, 8)))
                floats.align = 4
                vector = builder.fpext(floats, doubles8.llvm)
                for i, place in enumerate(places[len(rows) * j : len(rows) * (j + 1)]):
                    rows[i] = _fused(builder, factor(place), vector, rows[i])
            return context.make_tuple(builder, tile, rows)

        return tile(tile, types.int64, types.int64, types.int64), emit

    return add


def _by_lane(builder, address):
    pairs: dict[int, ir.Value] = {}

    def factor(place: int):
        at, lane = place // 16 * 16, place // 8 % 2
        if at not in pairs:
            pair = _vector(_DOUBLE, 2)
            pairs[at] = builder.load(_address(builder, builder.add(address, ir.Constant(_LONG, at)), pair))
            pairs[at].align = 8
        lanes = ir.Constant(_vector(_INT, 8), [lane] * 8)
        return builder.shuffle_vector(pairs[at], ir.Constant(pairs[at].type, ir.Undefined), lanes)

    return factor


def _repeated(builder, address):
    def factor(place: int):
        at = _address(builder, builder.add(address, ir.Constant(_LONG, place)), _DOUBLE)
        return _splat(builder, builder.load(at), 8)

    return factor


add_two_scores, add_two_values = _two_products(0), _two_products(128)


@intrinsic
def store_tile_as_floats(typing, address, stride, tile):
    """Round row i of a float64 tile to float32 and store it at address + i · stride (bytes)."""

    def emit(context, builder, signature, args):
        for i, row in enumerate(cgutils.unpack_tuple(builder, args[2], tile.count)):
            at = builder.add(args[0], builder.mul(args[1], ir.Constant(_LONG, i)))
            floats = builder.fptrunc(row, _vector(_FLOAT, 8))
            builder.store(floats, _address(builder, at, floats.type)).align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, tile), emit


# ------------------------------------------------------------------------------------------------ tiles
@intrinsic(prefer_literal=True)
def zero_ints(typing, count):
    """A tile of `count` (a compile-time constant) zero vectors of int32."""
    tile = types.UniTuple(ints16, count.literal_value)

    def emit(context, builder, signature, args):
        return context.make_tuple(builder, tile, [_constant(ints16.llvm, 0)] * tile.count)

    return tile(count), emit


@intrinsic
def plus_128_times(typing, tile, high):
    """tile + 128 · high."""

    def emit(context, builder, signature, args):
        seven = _constant(ints16.llvm, 7)
        pairs = zip(*(cgutils.unpack_tuple(builder, arg, tile.count) for arg in args), strict=True)
        rows = [builder.add(row, builder.shl(more, seven)) for row, more in pairs]
        return context.make_tuple(builder, tile, rows)

    return tile(tile, tile), emit


@intrinsic
def store_tile(typing, address, stride, tile):
    """Store row i of the tile at address + i · stride (bytes)."""

    def emit(context, builder, signature, args):
        for i, row in enumerate(cgutils.unpack_tuple(builder, args[2], tile.count)):
            at = builder.add(args[0], builder.mul(args[1], ir.Constant(_LONG, i)))
            builder.store(row, _address(builder, at, row.type)).align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, tile), emit


@intrinsic
def add_tile(typing, address, stride, tile):
    """Add row i of the tile to the 16 ints at address + i · stride (bytes)."""

    def emit(context, builder, signature, args):
        for i, row in enumerate(cgutils.unpack_tuple(builder, args[2], tile.count)):
            at = builder.add(args[0], builder.mul(args[1], ir.Constant(_LONG, i)))
            before = builder.load(at := _address(builder, at, row.type))
            before.align = 4
            builder.store(builder.add(before, row), at).align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, tile), emit


# -------------------------------------------------------------------------------------- the dot product
def _quarter(builder, vector, i: int):
    """Bytes or ints i-th quarter of a 512-bit vector."""
    width = vector.type.count // 4
    pick = ir.Constant(_vector(_INT, width), list(range(i * width, (i + 1) * width)))
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), pick)


def _join(builder, parts):
    """Concatenate vectors pairwise until one is left."""
    while len(parts) > 1:
        width = parts[0].type.count
        every = ir.Constant(_vector(_INT, 2 * width), list(range(2 * width)))
        parts = [builder.shuffle_vector(a, b, every) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _dot_vnni(builder, acc, weights, x, bits: int):
    return _call(builder, "llvm.x86.avx512.vpdpbusd.512", acc.type, [acc, weights, x])


def _dot_avx2(builder, acc, weights, x, bits: int):
    """VPMADDUBSW wants an unsigned side: nibbles are; for int8 the sign of x moves to the weight."""
    half = _vector(_BYTE, 32)
    parts = []
    for i in range(2):
        pick = ir.Constant(_vector(_INT, 32), list(range(32 * i, 32 * i + 32)))
        w = builder.shuffle_vector(weights, ir.Constant(weights.type, ir.Undefined), pick)
        v = builder.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), pick)
        if bits == 8:
            w = _call(builder, "llvm.x86.avx2.psign.b", half, [w, v])
            v = _call(builder, "llvm.abs.v32i8", half, [v, ir.Constant(ir.IntType(1), 0)])
            w, v = v, w
        pairs = _call(builder, "llvm.x86.avx2.pmadd.ub.sw", _vector(_SHORT, 16), [w, v])
        ones = _constant(pairs.type, 1)
        parts.append(_call(builder, "llvm.x86.avx2.pmadd.wd", _vector(_INT, 8), [pairs, ones]))
    return builder.add(acc, _join(builder, parts))


def _dot_quad(builder, acc, w, x):
    """4 rows of 4 columns: SDOT, or SMULL, SMULL2, ADDP, SADALP, whose pairs fit int16 (2 · 127 · 127)."""
    ints4, shorts8 = _vector(_INT, 4), _vector(_SHORT, 8)
    if tier().name != "neon":
        return _call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", ints4, [acc, w, x])
    products = []
    for at in (0, 8):
        pick = ir.Constant(_vector(_INT, 8), list(range(at, at + 8)))
        half = [builder.shuffle_vector(s, ir.Constant(s.type, ir.Undefined), pick) for s in (w, x)]
        products.append(_call(builder, "llvm.aarch64.neon.smull.v8i16", shorts8, half))
    pairs = _call(builder, "llvm.aarch64.neon.addp.v8i16", shorts8, products)
    return builder.add(acc, _call(builder, "llvm.aarch64.neon.saddlp.v4i32.v8i16", ints4, [pairs]))


def _dot_quads(builder, acc, weights, x, bits: int):
    operands = ([_quarter(builder, v, i) for v in (acc, weights, x)] for i in range(4))
    return _join(builder, [_dot_quad(builder, *three) for three in operands])


_DOT = {
    "avx512vnni": _dot_vnni,
    "avx2": _dot_avx2,
    "dotprod": _dot_quads,
    "i8mm": _dot_quads,
    "neon": _dot_quads,
}


def _wants_unsigned() -> bool:
    """VPDPBUSD multiplies unsigned by signed: int8 weights are offset by 128 as they are loaded."""
    return tier().name == "avx512vnni"


@intrinsic
def int8_offset(typing):
    """What was added to int8 weights before they were multiplied."""
    return types.int64(), lambda c, b, s, a: ir.Constant(_LONG, 128 if _wants_unsigned() else 0)


# ---------------------------------------------------------------------------------- threads and the rest
@intrinsic
def atomic_load(typing, address):
    def emit(context, builder, signature, args):
        return builder.load_atomic(_address(builder, args[0], _LONG), "acquire", 8)

    return types.int64(types.int64), emit


@intrinsic
def atomic_store(typing, address, value):
    def emit(context, builder, signature, args):
        builder.store_atomic(args[1], _address(builder, args[0], _LONG), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def atomic_add(typing, address, value):
    """Add and return the old value."""

    def emit(context, builder, signature, args):
        return builder.atomic_rmw("add", _address(builder, args[0], _LONG), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), emit


@intrinsic
def compare_exchange(typing, address, expected, new):
    """Store `new` if the word is `expected`; returns whether it was."""

    def emit(context, builder, signature, args):
        pointer = _address(builder, args[0], _LONG)
        result = builder.cmpxchg(pointer, args[1], args[2], "acq_rel", "acquire")
        return builder.extract_value(result, 1)

    return types.boolean(types.int64, types.int64, types.int64), emit


@intrinsic
def fence(typing):
    def emit(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def pause(typing):
    """Tell the core that this is a spin loop."""

    def emit(context, builder, signature, args):
        if tier().machine == "x86_64":
            _call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        else:
            _call(builder, "llvm.aarch64.hint", ir.VoidType(), [ir.Constant(_INT, 1)])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def ticks(typing):
    """A clock that runs steadily and is the same on all cores: TSC, or the generic timer of ARM."""

    def emit(context, builder, signature, args):
        # the steady counter is cntvct_el0, where the cycle counter is the system's alone
        counter = "cycle" if tier().machine == "x86_64" else "steady"
        return _call(builder, f"llvm.read{counter}counter", _LONG, [])

    return types.int64(), emit


@intrinsic
def call_address(typing, address):
    """Call the C function `int f(void)` at the address (sched_yield)."""

    def emit(context, builder, signature, args):
        builder.call(builder.inttoptr(args[0], ir.FunctionType(_INT, []).as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), emit
