"""Clock and temperature, where Linux shows them under /sys, and the processor's name."""

from __future__ import annotations

import platform
from pathlib import Path

SYS = Path("/sys")
HIDDEN = "not shown by this system"


def clocks(root: Path = SYS) -> list[float]:
    """GHz of each core at this moment; empty where the system does not tell."""
    paths = sorted(root.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"))
    return [value / 1e6 for value in map(_number, paths) if value is not None]


def temperatures(root: Path = SYS) -> dict[str, float]:
    """°C by the name of the sensor; empty where the system does not tell."""
    found = {}
    for zone in sorted(root.glob("class/thermal/thermal_zone[0-9]*")):
        value = _number(zone / "temp")
        if value is not None:
            try:
                name = (zone / "type").read_text().strip()
            except OSError:
                name = zone.name
            found[name] = value / 1000
    return found


def processor(path: Path = Path("/proc/cpuinfo")) -> str:
    """The name a Linux kernel gives the processor, or a board; elsewhere what Python knows."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    names = (found.get(key, "") for key in ("model name", "Model", "Hardware"))
    return next((name for name in names if name), platform.processor() or platform.machine())


def facts() -> dict[str, str]:
    """Both in words."""
    ghz, degrees = clocks(), temperatures()
    return {
        "clock": f"{min(ghz):.2f} to {max(ghz):.2f} GHz" if ghz else HIDDEN,
        "temperature": ", ".join(f"{name} {value:.0f} °C" for name, value in degrees.items()) or HIDDEN,
    }


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
