"""Ahead-of-time code: what a multiply-accumulate costs on ARM, and that a library stands on its own."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flatlm.kernels_arm import aot, cpu, linker
from flatlm.kernels_arm.cpu import BY_NAME

pytest.importorskip("numba", reason="compiling needs numba")

ROOT = Path(__file__).parent.parent
TABLE = Path(__file__).parent / "asm_table.json"
TOLERANCE = 1.03  # a figure may grow by 3 %

# A kernel of its own, for each system given: what every library goes through, in a second.
TWICE = """
import sys
from pathlib import Path
from numba import types
from flatlm.kernels_arm import aot, simd
from kernels_arm import aot, llvm, simd
from flatlm.kernels_arm.cpu import BY_NAME
from flatlm.kernels_arm.jit import kernel

@kernel
def twice(at, n):
    for i in range(n):
        simd.set_i32(at + 4 * i, simd.get_i32(at + 4 * i) * 2)
    return n

tier, out = BY_NAME[sys.argv[1]], Path(sys.argv[2])
word = types.int64
llvm.set_tier(tier)
aot.retarget_numba(tier, aot.triple_of(tier, "linux"))
linked = aot.link_modules([(twice, word(word, word), "twice")])
for system in sys.argv[3:]:
    module, machine = aot.optimize(linked, tier, aot.triple_of(tier, system))
    (out / f"{system}.o").write_bytes(machine.emit_object(module))
"""


@pytest.fixture(scope="module")
def measured():
    """Figures of every gated kernel for the three tiers of ARM, as compiled now."""
    command = [sys.executable, str(ROOT / "scripts" / "asm.py"), "--table"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


@pytest.mark.parametrize("tier", ["neon", "dotprod", "i8mm"])
def test_the_inner_loops_cost_no_more_than_the_committed_table_says(tier, measured):
    expected = json.loads(TABLE.read_text())[tier]
    hint = "if this is meant: python scripts/asm.py --table > tests/asm_table.json"
    assert measured[tier].keys() == expected.keys(), hint
    grown = {
        f"{kernel}.{figure}": (limit, measured[tier][kernel][figure])
        for kernel, figures in expected.items()
        for figure, limit in figures.items()
        if measured[tier][kernel][figure] > limit * TOLERANCE
    }
    assert grown == {}, hint


def compile_twice(tier: str, folder: Path, *systems: str) -> None:
    subprocess.run([sys.executable, "-c", TWICE, tier, str(folder), *systems], check=True, cwd=ROOT)


@pytest.mark.skipif(not importlib.util.find_spec("ziglang"), reason="cross-linking needs ziglang")
def test_a_library_for_any_arm_system_links_without_libc(tmp_path):
    compile_twice("neon", tmp_path, "linux", "android", "macos")
    for system in ("linux", "android", "macos"):
        out = tmp_path / f"{system}.so"
        assert linker.link(tmp_path / f"{system}.o", out, BY_NAME["neon"], system) is None
        linker.seal(out)
        assert linker.fault(out, "aarch64") is None
        assert b"libc" not in out.read_bytes()


@pytest.mark.skipif(not importlib.util.find_spec("ziglang"), reason="cross-linking needs ziglang")
def test_an_undefined_symbol_is_named_by_the_linker(tmp_path):
    import llvmlite.binding as llvm

    triple = aot.triple_of(BY_NAME["neon"], "android")
    module = llvm.parse_assembly("declare void @puts()\ndefine void @f() {\n call void @puts()\n ret void\n}")
    (tmp_path / "f.o").write_bytes(aot.target_machine(BY_NAME["neon"], triple).emit_object(module))
    complaint = linker.link(tmp_path / "f.o", tmp_path / "f.so", BY_NAME["neon"], "android")
    assert "undefined symbol: puts" in str(complaint)


@pytest.mark.skipif(
    cpu.machine() != "x86_64" or sys.platform != "linux", reason="runs what it linked for x86"
)
def test_a_sealed_library_runs(tmp_path):
    compile_twice("avx2", tmp_path, "linux")
    out = tmp_path / "linux.so"
    assert linker.link(tmp_path / "linux.o", out, BY_NAME["avx2"], "linux") is None
    linker.seal(out)
    twice = ctypes.CDLL(str(out)).twice
    twice.argtypes = [ctypes.c_int64, ctypes.c_int64]
    data = np.arange(100, dtype=np.int32)
    twice(data.ctypes.data, 99)
    assert data.tolist() == [*range(0, 198, 2), 99]
