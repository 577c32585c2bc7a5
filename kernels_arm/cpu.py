"""Which kernels this processor can run: a best-first table of tiers, and the objection to each better one.

Features are read (HWCAP on Linux and Android, sysctl on macOS, /proc/cpuinfo on x86 Linux), never tried: an
instruction the core lacks kills the process. `FLATLM_CPU=tier` forces a lower tier.
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
    """A set of instructions the kernels are compiled for. `cpu` and `attributes` are LLVM's names."""

    name: str
    machine: str  # x86_64 or aarch64
    needs: frozenset[str]
    cpu: str
    attributes: str
    what: str


TIERS = (
    Tier("i8mm", "aarch64", frozenset({"asimddp", "i8mm"}), "generic", "+v8.2a,+dotprod,+i8mm", "SDOT and SMMLA"),
    Tier("dotprod", "aarch64", frozenset({"asimddp"}), "generic", "+v8.2a,+dotprod", "SDOT"),
    Tier("neon", "aarch64", frozenset({"asimd"}), "generic", "", "SMULL and SADALP (ARMv8.0)"),
    Tier(
        "avx512vnni", "x86_64", frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}), "x86-64-v4",
        "+avx512vnni,-prefer-256-bit", "VPDPBUSD on 512 bits",
    ),  # fmt: skip
    Tier("avx2", "x86_64", frozenset({"avx2", "fma"}), "x86-64-v3", "", "VPMADDUBSW on 256 bits"),
)
BY_NAME = {tier.name: tier for tier in TIERS}

_HWCAP_BITS = {16: {1: "asimd", 20: "asimddp", 22: "sve"}, 26: {1: "sve2", 13: "i8mm", 14: "bf16"}}
_SYSCTL = {"hw.optional.arm.FEAT_DotProd": "asimddp", "hw.optional.arm.FEAT_I8MM": "i8mm"}


def machine() -> str:
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def features() -> frozenset[str]:
    """What the processor reports, in Linux's names."""
    if sys.platform == "darwin":
        return _sysctl_features()
    if machine() == "aarch64":
        getauxval = ctypes.CDLL(None).getauxval
        getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
        return frozenset(
            name
            for word, names in _HWCAP_BITS.items()
            for bit, name in names.items()
            if getauxval(word) >> bit & 1
        )
    return _cpuinfo_features()


def _sysctl_features() -> frozenset[str]:
    sysctl, found = ctypes.CDLL(None).sysctlbyname, {"asimd"} if machine() == "aarch64" else set()
    for key, name in _SYSCTL.items():
        value, size = ctypes.c_int(0), ctypes.c_size_t(4)
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


def choose(forced: str | None = None, have: frozenset[str] | None = None) -> Choice:
    """The best tier whose needs are met; `forced` (default: FLATLM_CPU) names the best one allowed."""
    forced = forced or os.environ.get("FLATLM_CPU") or None
    if forced and forced not in BY_NAME:
        raise ValueError(f"FLATLM_CPU={forced}: no such tier; one of {', '.join(BY_NAME)}")
    have = features() if have is None else have
    objections = []
    for tier in TIERS:
        missing = sorted(tier.needs - have)
        if tier.machine != machine():
            continue
        if missing:
            objections.append(f"{tier.name}: the processor lacks {', '.join(missing)}")
        elif forced and tier.name != forced:
            objections.append(f"{tier.name}: FLATLM_CPU={forced} asks for another")
        else:
            return Choice(tier, tuple(objections))
    return Choice(None, tuple(objections) or (f"no kernels for {machine()}",))
