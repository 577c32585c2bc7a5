"""How an instruction is made: the tier compiled for, LLVM's types, and the steps of which intrinsics consist.

Functions here take an IRBuilder and LLVM values and return LLVM values; addresses are int64 until they are
used. Nothing here knows Numba's types (simd.py) or is compiled on import.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir
from numba.core import cgutils

from .cpu import Tier

_TIER: Tier | None = None


def set_tier(tier: Tier) -> None:
    """Fix the instructions that dot products and `pause` use in this process, before anything is compiled."""
    global _TIER
    if _TIER is not None and tier != _TIER:
        raise RuntimeError(f"this process compiles for {_TIER.name}, not {tier.name}: use another process")
    _TIER = tier


def tier() -> Tier:
    """The tier that this process compiles for."""
    assert _TIER is not None, "call set_tier before compiling a kernel"
    return _TIER


# ------------------------------------------------------------------------------------------------ types
BIT, BYTE, SHORT, INT, LONG = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
FLOAT, DOUBLE = ir.FloatType(), ir.DoubleType()


def vector_of(element: ir.Type, count: int) -> ir.VectorType:
    """The type of `count` elements side by side."""
    return ir.VectorType(element, count)


BYTES16, BYTES64 = vector_of(BYTE, 16), vector_of(BYTE, 64)  # one register of NEON, one of AVX-512
SHORTS8, INTS4 = vector_of(SHORT, 8), vector_of(INT, 4)


def long(value: int) -> ir.Constant:
    """An int64."""
    return ir.Constant(LONG, value)


def flag(value: bool) -> ir.Constant:
    """A boolean."""
    return ir.Constant(BIT, int(value))


def constant(llvm: ir.VectorType, value) -> ir.Constant:
    """A vector whose every lane is `value`."""
    return ir.Constant(llvm, [value] * llvm.count)


# ----------------------------------------------------------------------------------------- calls and memory
def call(builder, name: str, result: ir.Type, args: Sequence):
    """Call the LLVM intrinsic `name`."""
    function_type = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)


def pointer_to(builder, address, llvm: ir.Type):
    """The address of a value of a type, as a pointer."""
    return builder.inttoptr(address, llvm.as_pointer())


def fixed_address(builder, address):
    """On ARM the address as one that LLVM does not take apart: what counts from it is loaded in pairs."""
    if tier().machine == "x86_64":
        return address
    pointer = pointer_to(builder, address, BYTE)
    pointer = call(builder, "llvm.launder.invariant.group.p0", pointer.type, [pointer])
    return builder.ptrtoint(pointer, LONG)


def load(builder, llvm: ir.Type, address, offset: int):
    """A value at address + offset (bytes), however it is aligned."""
    value = builder.load(pointer_to(builder, builder.add(address, long(offset)), llvm))
    value.align = 1
    return value


# ------------------------------------------------------------------------------------------------ lanes
def splat(builder, value, count: int):
    """A vector whose `count` lanes are the scalar `value`."""
    one = builder.insert_element(
        ir.Constant(vector_of(value.type, count), ir.Undefined), value, ir.Constant(INT, 0)
    )
    return pick(builder, one, [0] * count)


def shuffle(builder, a, b, lanes: Sequence[int]):
    """Lanes of a, followed by b's, in a new order."""
    return builder.shuffle_vector(a, b, ir.Constant(vector_of(INT, len(lanes)), list(lanes)))


def pick(builder, vector, lanes: Sequence[int]):
    """Lanes of one vector in a new order."""
    return shuffle(builder, vector, ir.Constant(vector.type, ir.Undefined), lanes)


def quarter(builder, vector, i: int):
    """The i-th quarter of a vector's lanes."""
    width = vector.type.count // 4
    return pick(builder, vector, range(i * width, (i + 1) * width))


def join(builder, parts: Sequence):
    """Concatenate vectors pairwise until one is left."""
    while len(parts) > 1:
        every = range(2 * parts[0].type.count)
        parts = [shuffle(builder, a, b, every) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def fold(emit_pair: Callable) -> Callable:
    """(builder, vector) → scalar: fold 16 lanes in halves, 8 + 8, 4 + 4, 2 + 2, 1 + 1."""

    def emit_one(builder, x):
        width = x.type.count
        while width > 1:
            width //= 2
            halves = [pick(builder, x, range(at, at + width)) for at in (0, width)]
            x = emit_pair(builder, *halves)
        return builder.extract_element(x, ir.Constant(INT, 0))

    return emit_one


def smallest(builder, count, sizes: Sequence[int]):
    """The smallest of the sizes that is no less than `count` (int64), else the last."""
    size = long(sizes[-1])
    for smaller in reversed(sizes[:-1]):
        fits = builder.icmp_signed("<=", count, long(smaller))
        size = builder.select(fits, long(smaller), size)
    return size
