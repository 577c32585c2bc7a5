"""Finding the compiled kernels: shipped in the wheel, else kept in the cache, else missing once with Numba.

A library is named after the sources it was made from, so an edited kernel is never mistaken for a built one.
What is damaged, of another architecture or above the processor is never mapped; the reason is kept, and told
if all fails.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import cpu, linker
from .cpu import Tier

HERE = Path(__file__).parent
SOURCES = (
    "aot",
    "append8",
    "attention",
    "attention8",
    "blocks",
    "cpu",
    "excess",
    "executor",
    "jit",
    "limits",
    "linear",
    "many",
    "ops",
    "panels",
    "pieces",
    "pointwise",
    "reference",
    "simd",
    "tables",
)
COMPILING = "about half a minute, once"


class KernelsUnavailable(RuntimeError):
    """No library for this processor and nothing to compile one with."""


@dataclass(frozen=True)
class Library:
    """The entry points (int64 in, int64 out) and where they came from."""

    tier: Tier
    origin: str
    step: Callable[[int], int]
    serve: Callable[[int, int, int], int]
    parked: Callable[[int], int]
    gather: Callable[[int], int]
    dots: Callable[[int, int], int]
    read: Callable[[int, int], int]
    keep: object  # what must outlive the entry points


# ---------------------------------------------------------------------------------------- names and places
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


def prebuilt_folder() -> Path:
    """Where a wheel carries its libraries."""
    return HERE / "native"


def cache_folder() -> Path:
    """FLATLM_CACHE, or the user's cache folder."""
    if folder := os.environ.get("FLATLM_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "flatlm"


# ------------------------------------------------------------------------------------------------- loading
def load(tier: Tier, progress: Callable[[str], None] | None = None) -> Library:
    """The kernels for a tier; compiles them if need be. Raises KernelsUnavailable with every reason."""
    if refusal := cpu.objection(tier):
        raise KernelsUnavailable(f"the {refusal}")
    reasons: list[str] = []
    for path, origin in _candidates(tier, reasons):
        try:
            return _open(path, tier, origin)
        except OSError as error:
            reasons.append(f"{path}: {error}")
    if missing := _no_compiler():
        reasons.append(missing)
        raise KernelsUnavailable(_message(tier, reasons))
    if progress:
        progress(f"compiling the {tier.name} kernels ({COMPILING}) …")
    try:
        return _open(build(tier, cache_folder()), tier, "compiled now")
    except (OSError, RuntimeError) as error:
        raise KernelsUnavailable(_message(tier, [*reasons, str(error)])) from error


def describe() -> dict[str, str]:
    """What `flatlm doctor` tells: features, tier, why no better one, and where its library comes from."""
    choice = cpu.choose()
    facts = {"features": " ".join(sorted(cpu.features())) or "unknown", "kernels": "none", "library": "none"}
    if tier := choice.tier:
        reasons: list[str] = []
        found = _candidates(tier, reasons)
        missing = "; ".join([*reasons, _no_compiler() or f"to be compiled with numba ({COMPILING})"])
        facts["kernels"] = f"{tier.name}: {tier.what}"
        facts["library"] = f"{found[0][1]}: {found[0][0]}" if found else missing
    return {**facts, "not chosen": "; ".join(choice.objections) or "nothing better exists"}


def _candidates(tier: Tier, reasons: list[str]) -> list[tuple[Path, str]]:
    """Existing libraries for the tier with their origin, best first; `reasons` gets why others are out."""
    name, found = library_name(tier), []
    for folder, origin in ((prebuilt_folder(), "prebuilt"), (cache_folder(), "cache")):
        for suffix in (".so", ".o"):
            path = folder / f"{name}{suffix}"
            if not path.is_file():
                continue
            if fault := linker.fault(path, cpu.machine()):
                reasons.append(f"{path} {fault}")
            else:
                found.append((path, origin))
    if not found and not reasons:
        others = sorted(prebuilt_folder().glob(f"{name.rpartition('-')[0]}-*"))
        reasons += [f"{path} was built from other sources" for path in others[:1]]
    return found


def _no_compiler() -> str | None:
    if importlib.util.find_spec("numba"):
        return None
    return (
        "numba is not installed to compile them: install a flatlm wheel that has them, or `pip install numba`"
    )


def _message(tier: Tier, reasons: list[str]) -> str:
    return f"no {tier.name} kernels for {platform_name()}: {'; '.join(reasons)}"


# ---------------------------------------------------------------------------------------------- building
def build(tier: Tier, folder: Path) -> Path:
    """Compile for this system and, where a linker is at hand, link; the file appears whole or not at all."""
    from .aot import SYSTEMS, compile_in_subprocess

    system = platform_name()
    if system not in SYSTEMS:
        raise RuntimeError(f"kernels are compiled for {', '.join(SYSTEMS)}, not for {system}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made, linked = Path(temporary) / "kernels.o", Path(temporary) / "kernels.so"
        compile_in_subprocess(tier, {system: made})
        if linker.link(made, linked, tier, system) is None:
            made = linked
        linker.seal(made)
        final = folder / f"{library_name(tier)}{made.suffix}"
        os.replace(made, final)
    return final


# ------------------------------------------------------------------------------------------- entry points
_SIGNATURES = {
    "flatlm_step": 1,
    "flatlm_serve": 3,
    "flatlm_parked": 1,
    "flatlm_gather": 1,
    "flatlm_dots": 2,
    "flatlm_read": 2,
}


def _open(path: Path, tier: Tier, origin: str) -> Library:
    """Map the file and bind its entry points. OSError if the system refuses it."""
    if path.suffix == ".o":
        return _open_object(path, tier, origin)
    library = ctypes.CDLL(str(path))
    try:
        addresses = {n: ctypes.cast(getattr(library, n), ctypes.c_void_p).value or 0 for n in _SIGNATURES}
    except AttributeError as error:
        raise OSError(str(error)) from error
    return _library(addresses, tier, origin, library)


def _open_object(path: Path, tier: Tier, origin: str) -> Library:
    """Without a linker: LLVM's in-memory loader (llvmlite is there, it compiled the object)."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(reloc="pic", codemodel="jitdefault")
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_path(str(path)))
    engine.finalize_object()
    return _library({n: engine.get_function_address(n) for n in _SIGNATURES}, tier, origin, engine)


def _library(addresses: dict[str, int], tier: Tier, origin: str, keep: object) -> Library:
    """ctypes calls release the GIL, which is what lets the team run."""
    word = ctypes.c_int64
    step, serve, parked, gather, dots, read = (
        ctypes.CFUNCTYPE(word, *[word] * count)(addresses[name]) for name, count in _SIGNATURES.items()
    )
    return Library(tier, origin, step, serve, parked, gather, dots, read, keep)
