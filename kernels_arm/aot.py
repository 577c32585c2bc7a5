"""Ahead of time: the executor and all its kernels as object files for a tier, from any machine.

Numba types the Python, its LLVM IR gets the target's triple and features, and llvmlite's LLVM (which carries
every back end) emits the object; `linker` makes it a shared library without libc. Numba is told about the
target by replacing a few methods of its code generator, so this runs in a process of its own:

    python -m flatlm.kernels_arm.aot TIER linux=OUT.o [android=OUT2.o ...]

The systems of one call share Numba's work (6 of the 8 s on one core); LLVM runs once for each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from .cpu import BY_NAME, Tier

SYSTEMS = {"linux": "unknown-linux-gnu", "android": "unknown-linux-android24", "macos": "apple-macosx11"}


def triple_of(tier: Tier, system: str) -> str:
    """LLVM's name of the target."""
    return f"{tier.machine}-{SYSTEMS[system]}"


def compile_in_subprocess(tier: Tier, objects: dict[str, Path]) -> None:
    """Write one object file for each system. Raises RuntimeError with the compiler's words."""
    targets = [f"{system}={path}" for system, path in objects.items()]
    command = [sys.executable, "-m", "flatlm.kernels_arm.aot", tier.name, *targets]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if done.returncode:
        raise RuntimeError(f"compiling the {tier.name} kernels failed:\n{done.stderr[-4000:]}")


def entry_points():
    """(function, signature, exported name) of what a runtime calls."""
    from numba import types

    from . import excess, executor, limits

    word = types.int64
    return (
        (executor.step, word(word), "flatlm_step"),
        (executor.serve, word(word, word, word), "flatlm_serve"),
        (executor.parked, word(word), "flatlm_parked"),
        (excess.gather, word(word), "flatlm_gather"),
        (limits.dots, word(word, word), "flatlm_dots"),
        (limits.read, word(word, word), "flatlm_read"),
    )


def retarget_numba(tier: Tier, triple: str) -> None:
    """Make this process's Numba emit unoptimised code for another target: LLVM runs once, when all is linked.

    Numba 0.61 … 0.68 have these methods. Optimising each function on its way, as Numba does, took 12 s more.
    """
    from numba.core import codegen, cpu

    def init(self, llvm_module):
        self._tm_features, self._tm = tier.attributes, target_machine(tier, triple)
        self._engine, self._target_data = _NoEngine(), self._tm.target_data
        self._data_layout = str(self._target_data)
        self._loopvect, self._opt_level = False, 0

    def finalize(self):
        self._finalized = True

    generator, library, context = codegen.JITCPUCodegen, codegen.JITCodeLibrary, cpu.CPUContext
    generator._init = init
    generator._get_host_cpu_name = lambda self: tier.cpu
    generator._get_host_cpu_features = lambda self: tier.attributes
    generator.set_env = lambda self, name, env: None
    library.add_llvm_module = lambda self, module: self._final_module.link_in(module)
    library.finalize = finalize
    library.get_pointer_to_function = lambda self, name: 0
    for wrapper in ("create_cpython_wrapper", "create_cfunc_wrapper"):
        setattr(context, wrapper, lambda *args, **kwargs: None)


class _NoEngine:
    """Nothing compiled here is ever run here."""

    def is_symbol_defined(self, name):
        return False

    def __getattr__(self, name):
        return lambda *args, **kwargs: 0


def target_machine(tier: Tier, triple: str):
    """LLVM's code generator for a tier."""
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(triple)
    return target.create_target_machine(
        cpu=tier.cpu, features=tier.attributes, opt=3, reloc="pic", codemodel="default"
    )


def link_modules(entries):
    """One LLVM module holding every entry as a C function, everything else internal."""
    import llvmlite.binding as llvm
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target

    with global_compiler_lock:
        library = cpu_target.target_context.codegen().create_library("flatlm")
        module = library.create_ir_module("flatlm")
        waiting = [_export(module, *entry) for entry in entries]
        library.add_ir_module(module)
    linked, seen = library._final_module, set()
    while waiting:
        if (library := waiting.pop()) in seen:
            continue
        seen.add(library)
        waiting += library._linking_libraries
        for function in library._final_module.functions:
            if not function.is_declaration and function.linkage == llvm.Linkage.external:
                function.linkage = "linkonce_odr"
        linked.link_in(library._final_module, preserve=True)
    exported = {name for _, _, name in entries}
    for thing in (*linked.functions, *linked.global_variables):
        if not thing.is_declaration and thing.name not in exported:
            thing.linkage = "internal"
    return linked


def _export(module, function, signature, name: str):
    """Add the C function `name` to the module; returns Numba's library of what it calls."""
    from llvmlite import ir
    from numba.core.registry import cpu_target

    context = cpu_target.target_context
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
    return compiled.library


def optimize(module, tier: Tier, triple: str):
    """A copy of the linked module for one triple, optimised; and the machine that emits it."""
    from llvmlite.binding import newpassmanagers as passes

    machine, copy = target_machine(tier, triple), module.clone()
    copy.triple, copy.data_layout = triple, str(machine.target_data)
    builder = passes.create_pass_builder(machine, passes.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(copy, builder)
    return copy, machine


def emit_objects(tier: Tier, systems) -> dict[str, bytes]:
    """Compile in this process (once: it is of no other use afterwards). System → object file."""
    from . import llvm

    llvm.set_tier(tier)
    triples = {system: triple_of(tier, system) for system in systems}
    retarget_numba(tier, next(iter(triples.values())))
    linked = link_modules(entry_points())
    objects = {}
    for system, triple in triples.items():
        module, machine = optimize(linked, tier, triple)
        objects[system] = machine.emit_object(module)
    return objects


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile the kernels of a tier to object files.")
    parser.add_argument("tier", choices=sorted(BY_NAME))
    parser.add_argument("targets", nargs="+", metavar="SYSTEM=OUT.o", help=f"systems: {', '.join(SYSTEMS)}")
    args = parser.parse_args()
    paths = dict(target.split("=", 1) for target in args.targets)
    for system, data in emit_objects(BY_NAME[args.tier], paths).items():
        Path(paths[system]).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
