"""Vectors of 8 float64: the sums of norms, scores and weighted values.

Products of float32 are exact in float64, so fused multiply-add changes no bit here.

    doubles8   8 × float64      tile   a tuple of doubles8, one a query row
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.extending import intrinsic

from .llvm import DOUBLE, FLOAT, call, constant, fold, long, pick, pointer_to, splat, tier, vector_of
from .simd import Vector, floats16, storer, unary

doubles8 = Vector("doubles8", vector_of(DOUBLE, 8))


def _half(first: int):
    @intrinsic
    def widen(typing, vector):
        def emit(context, builder, signature, args):
            return builder.fpext(pick(builder, args[0], range(first, first + 8)), doubles8.llvm)

        return doubles8(floats16), emit

    return widen


low_doubles, high_doubles = _half(0), _half(8)
sum_doubles = unary(doubles8, types.float64, fold(lambda b, x, y: b.fadd(x, y)))
sqrt_f64 = unary(types.float64, types.float64, lambda b, x: call(b, "llvm.sqrt.f64", x.type, [x]))


@intrinsic
def no_doubles(typing):
    """8 zeros."""
    return doubles8(), lambda c, b, s, a: constant(doubles8.llvm, 0.0)


@intrinsic
def add_doubles(typing, a, b):
    """a + b, lane by lane."""
    return doubles8(doubles8, doubles8), lambda c, builder, s, args: builder.fadd(*args)


def _fused(builder, a, b, c):
    return call(builder, "llvm.fma.v8f64", c.type, [a, b, c])


@intrinsic
def add_squares(typing, total, x):
    """total + x², exactly rounded."""
    return doubles8(doubles8, doubles8), lambda c, builder, s, a: _fused(builder, a[1], a[1], a[0])


@intrinsic
def load_doubles(typing, address):
    """8 float32 as float64."""

    def emit(context, builder, signature, args):
        floats = builder.load(pointer_to(builder, args[0], vector_of(FLOAT, 8)))
        floats.align = 4
        return builder.fpext(floats, doubles8.llvm)

    return doubles8(types.int64), emit


@intrinsic
def store_as_doubles(typing, address, vector):
    """16 float32 as float64, 128 bytes."""

    def emit(context, builder, signature, args):
        wide = builder.fpext(args[1], vector_of(DOUBLE, 16))
        builder.store(wide, pointer_to(builder, args[0], wide.type)).align = 8
        return context.get_dummy_value()

    return types.void(types.int64, floats16), emit


set_f64 = storer(types.float64, DOUBLE, 8)


@intrinsic(prefer_literal=True)
def zero_doubles(typing, count):
    """A tile of `count` (a compile-time constant) zero vectors of float64."""
    tile = types.UniTuple(doubles8, count.literal_value)

    def emit(context, builder, signature, args):
        return context.make_tuple(builder, tile, [constant(doubles8.llvm, 0.0)] * tile.count)

    return tile(count), emit


@intrinsic
def add_products(typing, tile, vector, address, stride):
    """tile[i] += vector · float64 at address + i · stride: the step of scores and of weighted values."""

    def emit(context, builder, signature, args):
        rows = cgutils.unpack_tuple(builder, args[0], tile.count)
        for i, row in enumerate(rows):
            at = builder.add(args[2], builder.mul(args[3], long(i)))
            factor = splat(builder, builder.load(pointer_to(builder, at, DOUBLE)), 8)
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
                at = builder.add(address, builder.mul(step, long(j)))
                floats = builder.load(pointer_to(builder, at, vector_of(FLOAT, 8)))
                floats.align = 4
                vector = builder.fpext(floats, doubles8.llvm)
                for i, place in enumerate(places[len(rows) * j : len(rows) * (j + 1)]):
                    rows[i] = _fused(builder, factor(place), vector, rows[i])
            return context.make_tuple(builder, tile, rows)

        return tile(tile, types.int64, types.int64, types.int64), emit

    return add


def _by_lane(builder, address):
    pairs = dict[int, ir.Value]()

    def factor(place: int):
        at, lane = place // 16 * 16, place // 8 % 2
        if at not in pairs:
            pair = vector_of(DOUBLE, 2)
            pairs[at] = builder.load(pointer_to(builder, builder.add(address, long(at)), pair))
            pairs[at].align = 8
        return pick(builder, pairs[at], [lane] * 8)

    return factor


def _repeated(builder, address):
    def factor(place: int):
        at = pointer_to(builder, builder.add(address, long(place)), DOUBLE)
        return splat(builder, builder.load(at), 8)

    return factor


add_two_scores, add_two_values = _two_products(0), _two_products(128)


@intrinsic
def store_tile_as_floats(typing, address, stride, tile):
    """Round row i of a float64 tile to float32 and store it at address + i · stride (bytes)."""

    def emit(context, builder, signature, args):
        for i, row in enumerate(cgutils.unpack_tuple(builder, args[2], tile.count)):
            at = builder.add(args[0], builder.mul(args[1], long(i)))
            floats = builder.fptrunc(row, vector_of(FLOAT, 8))
            builder.store(floats, pointer_to(builder, at, floats.type)).align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, tile), emit
