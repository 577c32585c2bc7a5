"""Finding the compiled kernels: shipped in the wheel, else kept in the cache, else missing once with Numba.

A library is named after the sources it was made from, so an edited kernel is never mistaken for a built one.
What is damaged, of another architecture or above the processor is never mapped, nor what another user could
have written; the reason is kept, and told if all fails.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import cpu, linker, mapping, places
from .cpu import Tier
from .files import foreign, foreign_path, open_regular
from .places import cache_folder as cache_folder

HERE = Path(__file__).parent
FIRST_SOURCE = "aot"  # compiles the rest
IMPORTED = re.compile(rb"^ *from \.(?:(\w+) import| import ([\w, ]+)$)", re.MULTILINE)
COMPILING = "about half a minute, once"
PREBUILT = "prebuilt"  # an origin, beside those of `places`
NONE = "none: "  # how the description of a library begins where there is none and will be none


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
@functools.cache
def sources() -> dict[str, bytes]:
    """The modules of this folder that the compiled kernels come from, by name: what compiles them, and what
    that imports, from wherever it does."""
    texts, waiting = dict[str, bytes](), [FIRST_SOURCE]
    while waiting:
        name = waiting.pop()
        if name not in texts:
            texts[name] = (HERE / f"{name}.py").read_bytes()
            for module, modules in IMPORTED.findall(texts[name]):
                waiting += [text.split()[0] for text in (module or modules).decode().split(",")]
    return dict(sorted(texts.items()))


def source_hash() -> str:
    """Identity of the kernels: a hash of their sources."""
    digest = hashlib.sha256()
    for text in sources().values():
        digest.update(text)
    return digest.hexdigest()[:16]


def platform_name() -> str:
    """Which of `aot.SYSTEMS` this is."""
    if hasattr(sys, "getandroidapilevel") or "ANDROID_ROOT" in os.environ:
        return "android"
    return {"darwin": "macos", "win32": "windows"}.get(sys.platform, "linux")


def library_name(tier: Tier, system: str | None = None) -> str:
    """A library's file name without its suffix: system, tier and hash of the sources."""
    return f"flatlm-{system or platform_name()}-{tier.name}-{source_hash()}"


def prebuilt_folder() -> Path:
    """Where a wheel carries its libraries."""
    return HERE / "native"


# ------------------------------------------------------------------------------------------------- loading
def load(tier: Tier, progress: Callable[[str], None] | None = None) -> Library:
    """The kernels for a tier; compiles them if need be. Raises KernelsUnavailable with every reason."""
    if refusal := cpu.objection(tier):
        raise KernelsUnavailable(f"the {refusal}")
    reasons: list[str] = []
    folder, origin_of_new = places.folders()[-1]
    obstacle = _obstacle(tier, folder)
    for path, origin in _candidates(tier, reasons):
        try:
            return _open(path, tier, origin)
        except OSError as error:
            reasons.append(f"{path}: {error}")
            if path.parent == folder:  # as it was made: another one would be no better
                obstacle = (
                    obstacle or "delete it to have it compiled anew, or set FLATLM_CACHE to another folder"
                )
    if obstacle:
        reasons.append(obstacle)
        raise KernelsUnavailable(_message(tier, reasons))
    if progress:
        progress(f"compiling the {tier.name} kernels ({COMPILING}){places.remark(folder, origin_of_new)} …")
    try:
        return _open(build(tier, folder), tier, "compiled now")
    except (OSError, RuntimeError) as error:
        raise KernelsUnavailable(_message(tier, [*reasons, str(error)])) from error


def describe() -> dict[str, str]:
    """What `flatlm doctor` tells: features, tier, why no better one, and where its library comes from."""
    choice = cpu.choose()
    facts = {"features": " ".join(sorted(cpu.features())) or "unknown", "kernels": "none", "library": "none"}
    if tier := choice.tier:
        reasons: list[str] = []
        candidates, (folder, origin) = _candidates(tier, reasons), places.folders()[-1]
        facts["kernels"] = f"{tier.name}: {tier.what}"
        if candidates:
            facts["library"] = f"{candidates[0][1]}: {candidates[0][0]}"
        elif obstacle := _obstacle(tier, folder):
            facts["library"] = NONE + "; ".join([*reasons, obstacle])
        else:
            to_come = f"to be compiled with numba ({COMPILING}){places.remark(folder, origin)}"
            facts["library"] = "; ".join([*reasons, to_come])
    return {**facts, "not chosen": "; ".join(choice.objections) or "nothing better exists"}


def _candidates(tier: Tier, reasons: list[str]) -> list[tuple[Path, str]]:
    """Existing libraries for the tier with their origin, best first; `reasons` gets why others are out."""
    name, usable = library_name(tier), []
    for folder, origin in ((prebuilt_folder(), PREBUILT), *places.folders()):
        for suffix in (".so", ".o"):
            path = folder / f"{name}{suffix}"
            if not os.path.isfile(path):
                continue
            if fault := _not_executable(path) or _foreign(path, origin) or linker.fault(path, cpu.machine()):
                reasons.append(f"{path} {fault}")
            else:
                usable.append((path, origin))
    if not usable and not reasons:
        others = sorted(prebuilt_folder().glob(f"{name.rpartition('-')[0]}-*"))
        reasons += [f"{path} was built from other sources" for path in others[:1]]
    return usable


def _foreign(path: Path, origin: str) -> str | None:
    """Why others could have written the library. Who can write a shipped one can write this program too."""
    if origin == PREBUILT:
        return None
    fault = foreign_path(path) or foreign_path(path.parent)
    return fault and f"is not taken: it or its folder {fault}"


def _not_executable(path: Path) -> str | None:
    """Objects are loaded by LLVM, from memory."""
    noexec = path.suffix == ".so" and places.no_execution(path)
    return "lies where nothing may be executed" if noexec else None


def _obstacle(tier: Tier, folder: Path) -> str | None:
    """Why nothing can be compiled into `folder`, or not be used then; None where nothing is known."""
    return _no_compiler() or places.objection(folder, linker.at_hand(tier, platform_name()))


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
    places.make_ready(folder)
    with tempfile.TemporaryDirectory(prefix=places.HALF_MADE, dir=folder) as temporary:
        made, linked = Path(temporary) / "kernels.o", Path(temporary) / "kernels.so"
        compile_in_subprocess(tier, {system: made})
        if linker.link(made, linked, tier, system) is None:
            made = linked
        linker.seal(made)
        made.chmod(made.stat().st_mode & ~0o022)
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
    """Map the file and bind its entry points: the very file that is judged here.

    OSError if the system refuses it, or if it is another one than `_candidates` saw.
    """
    with open_regular(path) as file:
        data = file.read()
        owner = None if origin == PREBUILT else foreign(os.fstat(file.fileno()))
        if fault := owner or linker.fault_of(data, cpu.machine()):
            raise OSError(fault)
        if path.suffix == ".o":
            return _open_object(data, tier, origin)
        library = mapping.load(file, path)
    try:
        addresses = {n: ctypes.cast(getattr(library, n), ctypes.c_void_p).value or 0 for n in _SIGNATURES}
    except AttributeError as error:
        raise OSError(str(error)) from error
    return _library(addresses, tier, origin, library)


def _open_object(data: bytes, tier: Tier, origin: str) -> Library:
    """Without a linker: LLVM's in-memory loader (llvmlite is there, it compiled the object)."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(reloc="pic", codemodel="jitdefault")
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(data))
    engine.finalize_object()
    return _library({n: engine.get_function_address(n) for n in _SIGNATURES}, tier, origin, engine)


def _library(addresses: dict[str, int], tier: Tier, origin: str, keep: object) -> Library:
    """ctypes calls release the GIL, which is what lets the team run."""
    word = ctypes.c_int64
    step, serve, parked, gather, dots, read = (
        ctypes.CFUNCTYPE(word, *[word] * count)(addresses[name]) for name, count in _SIGNATURES.items()
    )
    return Library(tier, origin, step, serve, parked, gather, dots, read, keep)
