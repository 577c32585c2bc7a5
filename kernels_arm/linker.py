"""Object files to shared libraries: no libc, 16 KiB pages (Android 15, macOS), a digest at the end.

The digest tells a damaged file before the system maps and runs it. A Mach-O file carries none: it ends with
its code signature, which macOS checks page by page.

The kernels call nothing: their addresses are integers, of which LLVM makes no memset or memcpy. Should one
ever appear, linking fails and names it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

from .cpu import Tier
from .files import read_regular

_ELF_MACHINE = {62: "x86_64", 183: "aarch64"}
_MACHO_MACHINE = {0x01000007: "x86_64", 0x0100000C: "aarch64"}
_DIGEST = 32  # bytes of a SHA-256


def link(made: Path, out: Path, tier: Tier, system: str) -> str | None:
    """Link one object into the library `out`. Returns None, or why it failed: no linker, or its complaint."""
    complaints = []
    for command in _linkers(made, out, tier, system):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return None
        complaints.append(f"{' '.join(command[:4])} …: {done.stderr.strip()[-1000:]}")
    return "\n".join(complaints) or "no linker: pip install ziglang"


def _linkers(made: Path, out: Path, tier: Tier, system: str) -> list[list[str]]:
    """The command lines that may do it, best first."""
    zig = [sys.executable, "-m", "ziglang"] if importlib.util.find_spec("ziglang") else None
    if system == "macos":
        flags = ["-shared", "-nostdlib", "-s", "-o", str(out), str(made)]
        found = [[*zig, "cc", "-target", f"{tier.machine}-macos.11.0", *flags]] if zig else []
        return found + ([["cc", *flags]] if sys.platform == "darwin" else [])
    flags = ["-shared", "-z", "defs", "-z", "max-page-size=16384", "-z", "noexecstack", "-s"]
    flags += ["-soname", f"flatlm-{system}-{tier.name}.so", "-o", str(out), str(made)]
    found = [[*zig, "ld.lld", *flags]] if zig else []
    return found + [[path, *flags] for name in ("ld.lld", "ld") if (path := shutil.which(name))]


def seal(path: Path) -> None:
    """Append the digest of the file's bytes, if it is an ELF file."""
    data = path.read_bytes()
    if data[:4] == b"\x7fELF":
        path.write_bytes(data + hashlib.sha256(data).digest())


def at_hand(tier: Tier, system: str) -> bool:
    """Whether there is anything to link with."""
    return bool(_linkers(Path(), Path(), tier, system))


def fault(path: Path, machine: str) -> str | None:
    """Why the file must not be loaded on this machine, judged by its bytes alone; None if it may."""
    try:
        return fault_of(read_regular(path), machine)
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def fault_of(data: bytes, machine: str) -> str | None:
    """The same of a file's content."""
    if data[:4] == b"\x7fELF":
        if hashlib.sha256(data[:-_DIGEST]).digest() != data[-_DIGEST:]:
            return "is damaged (its digest does not match)"
        found = _ELF_MACHINE.get(int.from_bytes(data[18:20], "little"))
    elif data[:4] == b"\xcf\xfa\xed\xfe":
        found = _MACHO_MACHINE.get(int.from_bytes(data[4:8], "little"))
    else:
        return "is not a library"
    return None if found == machine else f"is for {found or 'another processor'}, this is {machine}"
