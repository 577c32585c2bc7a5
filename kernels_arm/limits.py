"""The compiled loops of `probes`: one that only reads, one that only multiplies."""

from __future__ import annotations

from numba.core import cgutils, types
from numba.core.extending import intrinsic

from .dots import dot, smmla
from .jit import kernel
from .llvm import BYTES64, constant, join, load, long, pointer_to, quarter, tier
from .simd import ints16, load_ints, splat_int, sum_ints

# Independent sums of 64 multiply-accumulates, as many as hide the latency and fit the registers.
_CHAINS = {"avx512vnni": 12, "avx2": 4, "neon": 3, "dotprod": 6, "i8mm": 6}


def _multiply(builder, acc, weights, x):
    """One vector of sums; returns it. SMMLA does twice the work of SDOT."""
    if tier().name != "i8mm":
        return dot(builder, acc, weights, x, 4)
    quads = [[quarter(builder, v, i) for v in (acc, weights, x)] for i in range(4)]
    return join(builder, [smmla(builder, *four) for four in quads])


@intrinsic
def chains(typing):
    """A tile of zeros, one vector for each independent sum."""
    count = _CHAINS[tier().name]
    return types.UniTuple(ints16, count)(), lambda context, builder, signature, args: context.make_tuple(
        builder, signature.return_type, [constant(ints16.llvm, 0)] * count
    )


@intrinsic
def multiplications(typing):
    """Multiply-accumulates of one `multiply`."""
    each = 128 if tier().name == "i8mm" else 64
    count = each * _CHAINS[tier().name]
    return types.int64(), lambda c, b, s, a: long(count)


@intrinsic
def multiply(typing, tile, address):
    """tile[i] += weights · x[i]; the weights are loaded anew, so that no product can be kept from before."""

    def emit(context, builder, signature, args):
        rows = cgutils.unpack_tuple(builder, args[0], tile.count)
        weights = builder.load(pointer_to(builder, args[1], BYTES64))
        weights.align, weights.volatile = 1, True
        for i, row in enumerate(rows):
            x = load(builder, BYTES64, args[1], 64 * (1 + i % 4))
            rows[i] = _multiply(builder, row, weights, x)
        return context.make_tuple(builder, tile, rows)

    return tile(tile, types.int64), emit


@kernel
def dots(address, count):
    """`count` rounds on the 320 bytes at the address; returns how many multiply-accumulates that were."""
    tile = chains()
    for _ in range(count):
        tile = multiply(tile, address)
    total = splat_int(0)
    for i in range(len(tile)):
        total = total + tile[i]
    return count * multiplications() + (sum_ints(total) & 1)


@kernel
def read(address, size):
    """Read `size` bytes, a multiple of 512; returns a sum that no one needs."""
    a, b, c, d = splat_int(0), splat_int(0), splat_int(0), splat_int(0)
    e, f, g, h = splat_int(0), splat_int(0), splat_int(0), splat_int(0)
    for at in range(address, address + size, 512):
        a, b = a + load_ints(at), b + load_ints(at + 64)
        c, d = c + load_ints(at + 128), d + load_ints(at + 192)
        e, f = e + load_ints(at + 256), f + load_ints(at + 320)
        g, h = g + load_ints(at + 384), h + load_ints(at + 448)
    return int(sum_ints(a + b + c + d + e + f + g + h))
