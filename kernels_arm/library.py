"""Finding the compiled kernels: shipped in the wheel, else kept in the cache, else compiled once with Numba.

A library is named after the sources it was made from, so an edited kernel is never mistaken for a built one.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .cpu import Tier

HERE = Path(__file__).parent
SOURCES = ("aot", "attention", "cpu", "executor", "jit", "linear", "ops", "pointwise", "reference", "simd")


class KernelsUnavailable(RuntimeError):
    """No library for this processor and nothing to compile one with."""


@dataclass(frozen=True)
class Library:
    """The three entry points (int64 in, int64 out) and where they came from."""

    tier: Tier
    origin: str
    step: Callable[[int], int]
    serve: Callable[[int, int, int], int]
    parked: Callable[[int], int]
    keep: object  # what must outlive the entry points


def source_hash() -> str:
    """Identity of the kernels: a hash of their sources."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((HERE / f"{name}.py").read_bytes())
    return digest.hexdigest()[:16]


def platform_name() -> str:
    if hasattr(sys, "getandroidapilevel") or "ANDROID_ROOT" in os.environ:
        return "android"
    return {"darwin": "macos", "win32": "windows"}.get(sys.platform, "linux")


def library_name(tier: Tier, system: str | None = None) -> str:
    return f"flatlm-{system or platform_name()}-{tier.name}-{source_hash()}"


def cache_folder() -> Path:
    """FLATLM_CACHE, or the user's cache folder."""
    if folder := os.environ.get("FLATLM_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "flatlm"


def find(tier: Tier) -> tuple[Path, str] | None:
    """The library's file and its origin, if it exists already."""
    name = library_name(tier)
    for folder, origin in ((HERE / "native", "prebuilt"), (cache_folder(), "cache")):
        for suffix in (".so", ".o"):
            if (path := folder / f"{name}{suffix}").is_file():
                return path, origin
    return None


def load(tier: Tier, progress: Callable[[str], None] | None = None) -> Library:
    """The kernels for a tier; compiles them if need be (about 20 s, once). Raises KernelsUnavailable."""
    found = find(tier)
    if found is None:
        if importlib.util.find_spec("numba") is None:
            raise KernelsUnavailable(
                f"no built kernels for {platform_name()}/{tier.name} and numba is not installed to compile them: "
                "install a flatlm wheel that carries them, or `pip install numba`"
            )
        if progress:
            progress(f"compiling the {tier.name} kernels, once (about 20 s) …")
        found = build(tier, cache_folder()), "compiled now"
    path, origin = found
    return _load_object(path, tier, origin) if path.suffix == ".o" else _load_shared(path, tier, origin)


def build(tier: Tier, folder: Path) -> Path:
    """Compile and, where a linker is at hand, link; the file appears whole or not at all."""
    from .aot import compile_in_subprocess

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = Path(temporary) / "kernels.o"
        compile_in_subprocess(tier, made)
        linked = link(made, Path(temporary) / "kernels.so", tier)
        made = linked or made
        final = folder / f"{library_name(tier)}{made.suffix}"
        os.replace(made, final)
    return final


def link(made: Path, out: Path, tier: Tier) -> Path | None:
    """Link one object into a shared library; None if no linker for the target is installed."""
    flags = ["-shared", "-z", "max-page-size=16384", "-z", "noexecstack", "-o", str(out), str(made)]
    candidates = []
    if importlib.util.find_spec("ziglang"):
        candidates.append([sys.executable, "-m", "ziglang", "ld.lld"])
    candidates += [[path] for name in ("ld.lld", "ld") if (path := shutil.which(name))]
    for linker in candidates:
        if subprocess.run([*linker, *flags], capture_output=True).returncode == 0:
            return out
    return None


def _load_shared(path: Path, tier: Tier, origin: str) -> Library:
    library = ctypes.CDLL(str(path))
    return _library({n: _address(library, n) for n in _SIGNATURES}, tier, origin, library)


def _address(library: ctypes.CDLL, name: str) -> int:
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0


def _load_object(path: Path, tier: Tier, origin: str) -> Library:
    """Without a linker: LLVM's in-memory loader (llvmlite is there, it compiled the object)."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(reloc="pic", codemodel="jitdefault")
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_path(str(path)))
    engine.finalize_object()
    return _library({n: engine.get_function_address(n) for n in _SIGNATURES}, tier, origin, engine)


_SIGNATURES = {"flatlm_step": 1, "flatlm_serve": 3, "flatlm_parked": 1}


def _library(addresses: dict[str, int], tier: Tier, origin: str, keep: object) -> Library:
    """ctypes calls release the GIL, which is what lets the team run."""
    words = {n: ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * count) for n, count in _SIGNATURES.items()}
    step, serve, parked = (words[n](addresses[n]) for n in _SIGNATURES)
    return Library(tier, origin, step, serve, parked, keep)
