"""Ahead of time: the executor and all its kernels as one object file for a tier, from any machine.

Numba types the Python, its LLVM IR gets the target's triple and features, and llvmlite's LLVM (which carries
every back end) emits the object. A linker makes it a shared library without libc. Numba is told about the target by
replacing a few methods of its code generator, so this runs in a process of its own:

    python -m kernels_arm.aot TIER OUT.o [--triple aarch64-linux-android24]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from .cpu import BY_NAME, Tier

TRIPLES = {"x86_64": "x86_64-unknown-linux-gnu", "aarch64": "aarch64-unknown-linux-gnu"}


def compile_in_subprocess(tier: Tier, out: Path, triple: str | None = None) -> None:
    """Write the object file `out` for a tier. Raises RuntimeError with the compiler's words."""
    command = [sys.executable, "-m", "kernels_arm.aot", tier.name, str(out)]
    command += ["--triple", triple] if triple else []
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    if done.returncode:
        raise RuntimeError(f"compiling the {tier.name} kernels failed:\n{done.stderr[-4000:]}")


def entry_points():
    """(function, signature, exported name) of what a runtime calls."""
    from numba import types

    from . import executor

    word = types.int64
    return (
        (executor.step, word(word), "flatlm_step"),
        (executor.serve, word(word, word, word), "flatlm_serve"),
        (executor.parked, word(word), "flatlm_parked"),
    )


def _retarget_numba(tier: Tier, triple: str) -> None:
    """Make this process's Numba emit code for another target (numba 0.60 … 0.68 have these methods)."""
    import llvmlite.binding as llvm
    from llvmlite import ir
    from numba.core import cgutils, codegen

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()

    class NoEngine:
        """Nothing compiled here is ever run here."""

        def is_symbol_defined(self, name):
            return False

        def __getattr__(self, name):
            return lambda *args, **kwargs: 0

    def init(self, llvm_module):
        target = llvm.Target.from_triple(triple)
        self._tm_features = tier.attributes
        self._tm = target.create_target_machine(
            cpu=tier.cpu, features=tier.attributes, opt=3, reloc="pic", codemodel="default"
        )
        self._engine, self._target_data = NoEngine(), self._tm.target_data
        self._data_layout = str(self._target_data)
        self._loopvect, self._opt_level = True, 3

    def empty_module(self, name):
        module = ir.Module(cgutils.normalize_ir_text(name))
        module.triple = triple
        if self._data_layout:  # not yet known while Numba sets itself up
            module.data_layout = self._data_layout
        return module

    target = codegen.JITCPUCodegen
    target._init, target._create_empty_module = init, empty_module
    target._scan_and_fix_unresolved_refs = lambda self, module: None
    target._get_host_cpu_name = lambda self: tier.cpu
    target._get_host_cpu_features = lambda self: tier.attributes
    target.set_env = lambda self, name, env: None
    codegen.JITCodeLibrary.get_pointer_to_function = lambda self, name: (self._ensure_finalized(), 0)[1]


def _link_modules(entries):
    """One LLVM module holding every entry as a C function, everything else internal."""
    from llvmlite import ir
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target

    with global_compiler_lock:
        context = cpu_target.target_context
        library = context.codegen().create_library("flatlm")
        module = library.create_ir_module("flatlm")
        for function, signature, name in entries:
            function.compile(signature.args)
            compiled = function.overloads[signature.args]
            described = compiled.fndesc
            arguments = [context.get_value_type(a) for a in described.argtypes]
            result = context.get_value_type(described.restype)
            exported = ir.Function(module, ir.FunctionType(result, arguments), name)
            builder = ir.IRBuilder(exported.append_basic_block())
            callee = context.declare_function(module, described)
            _, value = context.call_conv.call_function(
                builder, callee, described.restype, described.argtypes, list(exported.args)
            )
            builder.ret(value)
            library.add_linking_library(compiled.library)
        library.add_ir_module(module)
        library.finalize()
        return library._final_module, context.codegen()._tm


def emit_object(tier: Tier, triple: str) -> bytes:
    """Compile in this process (once: it is of no other use afterwards)."""
    from llvmlite.binding import newpassmanagers as passes

    from . import simd

    simd.set_tier(tier)
    _retarget_numba(tier, triple)
    entries = entry_points()
    module, machine = _link_modules(entries)
    exported = {name for _, _, name in entries}
    for thing in (*module.functions, *module.global_variables):
        if not thing.is_declaration and thing.name not in exported:
            thing.linkage = "internal"
    builder = passes.create_pass_builder(machine, passes.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(module, builder)
    return machine.emit_object(module)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the kernels of a tier to an object file.")
    parser.add_argument("tier", choices=sorted(BY_NAME))
    parser.add_argument("out", type=Path)
    parser.add_argument("--triple")
    args = parser.parse_args()
    tier = BY_NAME[args.tier]
    args.out.write_bytes(emit_object(tier, args.triple or TRIPLES[tier.machine]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
