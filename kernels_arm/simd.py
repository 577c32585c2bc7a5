"""SIMD vectors as Numba values: vector types of bytes, ints and floats, and the arithmetic on them.

Every vector is 512 bits wide in the source: one register with AVX-512, two with AVX2, four with NEON. LLVM
splits them; only dot products (dots.py) are written per tier. Addresses are int64. Nothing here is compiled
on import.

    bytes64   64 × int8       ints16   16 × int32       floats16   16 × float32      doubles8 (doubles.py)
    tile      a tuple of M vectors: M tokens × 16 outputs (tiles.py)

Floats never fuse multiply and add: the kernels equal `reference` bit for bit.
"""

from __future__ import annotations

import operator

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic, models, overload, register_model

from .llvm import (
    BYTE,
    BYTES16,
    BYTES64,
    FLOAT,
    INT,
    INTS4,
    LONG,
    SHORT,
    call,
    constant,
    fixed_address,
    fold,
    join,
    long,
    pointer_to,
    quarter,
    splat,
    tier,
    vector_of,
)


# ------------------------------------------------------------------------------------------------ types
class Vector(types.Type):
    """A Numba type whose values are LLVM vectors."""

    def __init__(self, name: str, llvm: ir.VectorType):
        self.llvm = llvm
        super().__init__(name)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, fe_type):
        super().__init__(manager, fe_type, fe_type.llvm)


bytes64 = Vector("bytes64", BYTES64)
ints16 = Vector("ints16", vector_of(INT, 16))
floats16 = Vector("floats16", vector_of(FLOAT, 16))


# ------------------------------------------------------------------------------------ loads and stores
@intrinsic
def fixed(typing, address):
    """`llvm.fixed_address` of an address."""
    return types.int64(types.int64), lambda context, builder, signature, args: fixed_address(builder, args[0])


def loader(result, llvm, align: int):
    """An intrinsic: the value of a Numba type, in LLVM's `llvm`, at an address."""

    @intrinsic
    def load(typing, address):
        def emit(context, builder, signature, args):
            value = builder.load(pointer_to(builder, args[0], llvm))
            value.align = align
            return value

        return result(types.int64), emit

    return load


def storer(operand, llvm, align: int):
    """An intrinsic that stores such a value: (address, value)."""

    @intrinsic
    def store(typing, address, value):
        def emit(context, builder, signature, args):
            builder.store(args[1], pointer_to(builder, args[0], llvm)).align = align
            return context.get_dummy_value()

        return types.void(types.int64, operand), emit

    return store


load_bytes = loader(bytes64, bytes64.llvm, 1)
load_ints = loader(ints16, ints16.llvm, 4)
load_floats = loader(floats16, floats16.llvm, 4)
store_bytes = storer(bytes64, bytes64.llvm, 1)
store_ints = storer(ints16, ints16.llvm, 4)
store_floats = storer(floats16, floats16.llvm, 4)

get_f32 = loader(types.float32, FLOAT, 4)
get_i64 = loader(types.int64, LONG, 8)
get_i32 = loader(types.int32, INT, 4)
get_i8 = loader(types.int8, BYTE, 1)
get_u8 = loader(types.uint8, BYTE, 1)
get_u16 = loader(types.uint16, SHORT, 2)
set_f32 = storer(types.float32, FLOAT, 4)
set_i32 = storer(types.int32, INT, 4)
set_i8 = storer(types.int8, BYTE, 1)
set_u16 = storer(types.uint16, SHORT, 2)
set_i64 = storer(types.int64, LONG, 8)


def _mask(builder, count):
    """<16 x i1> of the first `count` lanes."""
    lanes = ir.Constant(vector_of(INT, 16), list(range(16)))
    return builder.icmp_signed("<", lanes, splat(builder, builder.trunc(count, INT), 16))


@intrinsic
def store_floats_part(typing, address, value, count):
    """Store the first `count` lanes."""

    def emit(context, builder, signature, args):
        pointer = pointer_to(builder, args[0], floats16.llvm)
        mask = _mask(builder, args[2])
        name = "llvm.masked.store.v16f32.p0"
        call(builder, name, ir.VoidType(), [args[1], pointer, ir.Constant(INT, 4), mask])
        return context.get_dummy_value()

    return types.void(types.int64, floats16, types.int64), emit


@intrinsic
def load_low_bytes(typing, address):
    """16 int8 side by side as ints."""

    def emit(context, builder, signature, args):
        packed = builder.load(pointer_to(builder, args[0], BYTES16))
        packed.align = 1
        return builder.sext(packed, ints16.llvm)

    return ints16(types.int64), emit


@intrinsic
def store_low_bytes(typing, address, value):
    """Truncate 16 ints to bytes and store them side by side."""

    def emit(context, builder, signature, args):
        packed = builder.trunc(args[1], BYTES16)
        builder.store(packed, pointer_to(builder, args[0], packed.type)).align = 1
        return context.get_dummy_value()

    return types.void(types.int64, ints16), emit


@intrinsic
def store_steps(typing, address, value, stride):
    """Truncate 16 ints to bytes and store them as four groups of 4 bytes, `stride` bytes apart."""

    def emit(context, builder, signature, args):
        groups = builder.bitcast(builder.trunc(args[1], BYTES16), INTS4)
        for i in range(4):
            at = builder.add(args[0], builder.mul(args[2], long(i)))
            builder.store(
                builder.extract_element(groups, ir.Constant(INT, i)), pointer_to(builder, at, INT)
            ).align = 1
        return context.get_dummy_value()

    return types.void(types.int64, ints16, types.int64), emit


# ------------------------------------------------------------------------------------------ arithmetic
def unary(operand, result, emit_one):
    """An intrinsic of one operand, emitted by (builder, value) → value."""

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
                return call(builder, f"llvm.{name}.v16f32", args[0].type, args)
            return builder.select(builder.fcmp_ordered(predicate, *args), *args)

        return a(a, b), emit

    return pick


greater = _compare_select(">", "maxnum")  # the larger of each pair of lanes (no NaN)
smaller = _compare_select("<", "minnum")
round_even = unary(floats16, floats16, lambda b, x: call(b, "llvm.rint.v16f32", x.type, [x]))
to_ints = unary(floats16, ints16, lambda b, x: b.fptosi(x, ints16.llvm))


def _nearest(builder, x):
    """FCVTNS rounds and converts in one."""
    if tier().machine == "aarch64":
        name = "llvm.aarch64.neon.fcvtns.v4i32.v4f32"
        return join(builder, [call(builder, name, INTS4, [quarter(builder, x, i)]) for i in range(4)])
    return builder.fptosi(call(builder, "llvm.rint.v16f32", x.type, [x]), ints16.llvm)


nearest_ints = unary(floats16, ints16, _nearest)  # to the nearest, of two the even one
to_floats = unary(ints16, floats16, lambda b, x: b.sitofp(x, floats16.llvm))
power_of_two = unary(
    ints16,
    floats16,
    lambda b, n: b.bitcast(
        b.shl(b.add(n, constant(ints16.llvm, 127)), constant(ints16.llvm, 23)), floats16.llvm
    ),
)
low_nibbles = unary(bytes64, bytes64, lambda b, x: b.and_(x, constant(bytes64.llvm, 15)))
high_nibbles = unary(bytes64, bytes64, lambda b, x: b.lshr(x, constant(bytes64.llvm, 4)))
times_128 = unary(ints16, ints16, lambda b, x: b.shl(x, constant(ints16.llvm, 7)))
high_digits = unary(ints16, ints16, lambda b, x: b.ashr(x, constant(ints16.llvm, 7)))
low_digits = unary(ints16, ints16, lambda b, x: b.and_(x, constant(ints16.llvm, 127)))
minus_eight = unary(bytes64, bytes64, lambda b, x: b.sub(x, constant(bytes64.llvm, 8)))


@intrinsic
def splat_float(typing, value):
    """16 times a float32."""
    return floats16(types.float32), lambda c, builder, s, args: splat(builder, args[0], 16)


@intrinsic
def splat_int(typing, value):
    """16 times an int32."""
    return ints16(types.int32), lambda c, builder, s, args: splat(builder, args[0], 16)


@intrinsic
def lane_numbers(typing):
    """0 … 15."""
    return ints16(), lambda c, b, s, a: ir.Constant(ints16.llvm, list(range(16)))


@intrinsic
def zero_below(typing, value, x, bound):
    """`value` where x ≥ bound, else 0."""

    def emit(context, builder, signature, args):
        keep = builder.fcmp_ordered(">=", args[1], args[2])
        return builder.select(keep, args[0], constant(floats16.llvm, 0.0))

    return floats16(floats16, floats16, floats16), emit


@intrinsic
def keep_first(typing, value, count, other):
    """The first `count` lanes of value, the others from `other`."""

    def emit(context, builder, signature, args):
        return builder.select(_mask(builder, args[1]), args[0], args[2])

    return floats16(floats16, types.int64, floats16), emit


sum_ints = unary(ints16, types.int32, fold(lambda b, x, y: b.add(x, y)))
max_floats = unary(floats16, types.float32, fold(lambda b, x, y: b.select(b.fcmp_ordered(">", x, y), x, y)))
