"""What threads need of each other and of the processor: atomic words, a fence, a pause, a clock, a call.

Addresses are int64 and words int64, aligned to 8 bytes.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types
from numba.core.extending import intrinsic

from .llvm import INT, LONG, call, pointer_to, tier


@intrinsic
def atomic_load(typing, address):
    """The word; what its writer wrote before is seen, too (acquire)."""

    def emit(context, builder, signature, args):
        return builder.load_atomic(pointer_to(builder, args[0], LONG), "acquire", 8)

    return types.int64(types.int64), emit


@intrinsic
def atomic_store(typing, address, value):
    """Store a word, in one order for all threads."""

    def emit(context, builder, signature, args):
        builder.store_atomic(args[1], pointer_to(builder, args[0], LONG), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def atomic_add(typing, address, value):
    """Add and return the old value."""

    def emit(context, builder, signature, args):
        return builder.atomic_rmw("add", pointer_to(builder, args[0], LONG), args[1], "acq_rel")

    return types.int64(types.int64, types.int64), emit


@intrinsic
def compare_exchange(typing, address, expected, new):
    """Store `new` if the word is `expected`; returns whether it was."""

    def emit(context, builder, signature, args):
        pointer = pointer_to(builder, args[0], LONG)
        result = builder.cmpxchg(pointer, args[1], args[2], "acq_rel", "acquire")
        return builder.extract_value(result, 1)

    return types.boolean(types.int64, types.int64, types.int64), emit


@intrinsic
def fence(typing):
    """Nothing is moved over it, neither loads nor stores."""

    def emit(context, builder, signature, args):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def pause(typing):
    """Tell the core that this is a spin loop."""

    def emit(context, builder, signature, args):
        if tier().machine == "x86_64":
            call(builder, "llvm.x86.sse2.pause", ir.VoidType(), [])
        else:
            call(builder, "llvm.aarch64.hint", ir.VoidType(), [ir.Constant(INT, 1)])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def ticks(typing):
    """A clock that runs steadily and is the same on all cores: TSC, or the generic timer of ARM."""

    def emit(context, builder, signature, args):
        # the steady counter is cntvct_el0, where the cycle counter is the system's alone
        counter = "cycle" if tier().machine == "x86_64" else "steady"
        return call(builder, f"llvm.read{counter}counter", LONG, [])

    return types.int64(), emit


@intrinsic
def call_address(typing, address):
    """Call the C function `int f(void)` at the address (sched_yield)."""

    def emit(context, builder, signature, args):
        builder.call(builder.inttoptr(args[0], ir.FunctionType(INT, []).as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), emit
