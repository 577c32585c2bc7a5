"""Which kernels this processor can run: a best-first table of tiers, and the objection to each better one.

Features are read (HWCAP on Linux and Android, sysctl on macOS, /proc/cpuinfo on x86 Linux), never tried: an
instruction the core lacks kills the process. Linux's HWCAP is already the intersection over unequal cores.
`FLATLM_CPU=tier` forces a lower tier; a higher one is refused.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Tier:
    """A set of instructions the kernels are compiled for. `cpu` and `attributes` are LLVM's names.

    `needs`, in Linux's names, covers all that the compiler may use, not only what the kernels ask for.
    """

    name: str
    machine: str  # x86_64 or aarch64
    needs: frozenset[str]
    cpu: str
    attributes: str
    what: str


_DOTPROD = frozenset({"asimddp", "atomics"})
_V3 = frozenset({"abm", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"})  # x86-64-v3 beyond what AVX2 implies
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

# The cores are those whose schedules LLVM knows best; with `generic`, large tiles spill. What they have over
# and above the needs of the tier is taken away again.
_V80 = "-aes,-crc,-sha2"
_V82 = f"{_V80},-fullfp16,-rcpc,-rdm,-ssbs"

TIERS = (
    Tier("i8mm", "aarch64", _DOTPROD | {"i8mm"}, "neoverse-n1", f"{_V82},+i8mm", "SMMLA"),
    Tier("dotprod", "aarch64", _DOTPROD, "neoverse-n1", _V82, "SDOT"),
    Tier("neon", "aarch64", frozenset({"asimd"}), "cortex-a72", _V80, "SMULL and SADALP (ARMv8.0)"),
    Tier(
        "avx512vnni", "x86_64", _V4 | {"avx512_vnni", "avx512vbmi"}, "x86-64-v4",
        "+avx512vnni,+avx512vbmi,-prefer-256-bit",
        "VPDPBUSD and VPERMI2B on 512 bits",
    ),
    Tier("avx2", "x86_64", _V3, "x86-64-v3", "", "VPMADDUBSW on 256 bits"),
)  # fmt: skip
BY_NAME = {tier.name: tier for tier in TIERS}

# getauxval(16) is AT_HWCAP, getauxval(26) AT_HWCAP2; bits from Linux's arch/arm64/include/uapi/asm/hwcap.h
_HWCAP_BITS = {
    16: {1: "asimd", 8: "atomics", 20: "asimddp", 22: "sve"},
    26: {1: "sve2", 13: "i8mm", 14: "bf16"},
}
_SYSCTL = {
    "hw.optional.arm.FEAT_LSE": "atomics",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
}


def machine() -> str:
    """What this process runs as: x86_64, aarch64, or a name that has no kernels."""
    name = platform.machine().lower()
    name = {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)
    return name if sys.maxsize > 2**32 else f"{name} (32-bit Python)"  # a Pi may run these on a 64-bit kernel


def features() -> frozenset[str]:
    """What the processor reports, in Linux's names."""
    if sys.platform == "darwin":
        return _sysctl_features()
    if machine() == "aarch64":
        return _hwcap_features()
    return _cpuinfo_features()


def _hwcap_features() -> frozenset[str]:
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
    words = {word: getauxval(word) for word in _HWCAP_BITS}
    return frozenset(
        n for word, names in _HWCAP_BITS.items() for bit, n in names.items() if words[word] >> bit & 1
    )


def _sysctl_features() -> frozenset[str]:
    sysctl, found = ctypes.CDLL(None).sysctlbyname, {"asimd"} if machine() == "aarch64" else set()
    for key, name in _SYSCTL.items():
        value, size = ctypes.c_int64(0), ctypes.c_size_t(8)
        if sysctl(key.encode(), ctypes.byref(value), ctypes.byref(size), None, 0) == 0 and value.value:
            found.add(name)
    return frozenset(found)


def _cpuinfo_features() -> frozenset[str]:
    """The intersection over all listed processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = [frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")]
    return frozenset.intersection(*flags) if flags else frozenset()


@dataclass(frozen=True, slots=True)
class Choice:
    """The tier in use (None: no kernels for this processor) and why no better one was taken."""

    tier: Tier | None
    objections: tuple[str, ...]


def objection(tier: Tier, have: frozenset[str] | None = None, on: str | None = None) -> str | None:
    """Why the processor cannot run the tier; None if it can."""
    have, on = features() if have is None else have, on or machine()
    if tier.machine != on:
        return f"{tier.name}: for {tier.machine}, this is {on}"
    missing = sorted(tier.needs - have)
    return f"{tier.name}: the processor lacks {', '.join(missing)}" if missing else None


def choose(forced: str | None = None, have: frozenset[str] | None = None, on: str | None = None) -> Choice:
    """The best tier that can run, or `forced` (default: FLATLM_CPU) if that one can.

    `have` and `on` stand for another processor's features and machine.
    """
    forced = forced or os.environ.get("FLATLM_CPU") or None
    have, on = features() if have is None else have, on or machine()
    able = [tier for tier in TIERS if objection(tier, have, on) is None]
    names = ", ".join(tier.name for tier in able) or "none"
    if forced and forced not in BY_NAME:
        return Choice(None, (f"FLATLM_CPU={forced}: no such tier; this processor runs {names}",))
    if forced and (refusal := objection(BY_NAME[forced], have, on)):
        return Choice(None, (f"FLATLM_CPU={forced} is refused ({refusal}); this processor runs {names}",))
    better = [tier for tier in TIERS if tier.machine == on]
    if not able:
        return Choice(None, tuple(objection(t, have, on) or "" for t in better) or (f"no kernels for {on}",))
    chosen = BY_NAME[forced] if forced else able[0]
    return Choice(chosen, tuple(
        objection(tier, have, on) or f"{tier.name}: FLATLM_CPU={forced} asks for {forced}"
        for tier in better[: better.index(chosen)]
    ))  # fmt: skip
