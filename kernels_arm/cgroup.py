"""What Linux's control groups leave of the machine: the limits of a container or a service, v1 and v2.

The machine's own figures (/proc/meminfo, the processors) do not know them. A limit holds for a group with all
groups below it, so every ancestor is asked and the least counts. What cannot be read sets no limit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")  # of the file system that is asked; tests make up others
_UNLIMITED = 1 << 60  # v1 has no word for it: its largest number, rounded to pages
_MEMORY = (  # limit, used, and of that the page cache, by its keys in memory.stat: v2 and v1
    ("memory.max", "memory.current", ("active_file", "inactive_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
)
_MOUNT = re.compile(r"^\S+ \S+ \S+ (\S+) (\S+) .*- (cgroup2?) \S+ (\S+)$", re.MULTILINE)  # see proc(5)
_GROUP = re.compile(r"^\d+:([^:\n]*):(.*)$", re.MULTILINE)  # see cgroups(7)


def memory_bytes(root: Path = ROOT) -> int | None:
    """What may be allocated before the system kills for it: limit − used + page cache, which is given back.

    None where no limit is set.
    """
    return min((left for group in _groups("memory", root) for left in _left(group)), default=None)


def cpus(root: Path = ROOT) -> float | None:
    """The time that may be used, in processors: quota / period; None where no limit is set."""
    return min((share for group in _groups("cpu", root) for share in _shares(group)), default=None)


def threads(cores: int, root: Path = ROOT) -> int:
    """Of threads on so many cores those that there is time for, at least one: others would only wait."""
    share = cpus(root)
    return cores if share is None else max(1, min(cores, math.ceil(share)))


def _left(group: Path) -> Iterator[int]:
    for limit, used, cache in _MEMORY:
        most, now = _numbers(group / limit), _numbers(group / used)
        if most and now and most[0] < _UNLIMITED:
            stat = dict(re.findall(r"^(\w+) (\d+)$", _text(group / "memory.stat"), re.MULTILINE))
            yield max(0, most[0] - now[0] + sum(int(stat.get(name, 0)) for name in cache))


def _shares(group: Path) -> Iterator[float]:
    v1 = [*_numbers(group / "cpu.cfs_quota_us"), *_numbers(group / "cpu.cfs_period_us")]
    for numbers in (_numbers(group / "cpu.max"), v1):
        if len(numbers) == 2 and min(numbers) > 0:  # v2 says `max` for no quota, v1 −1
            yield numbers[0] / numbers[1]


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's groups and of their ancestors, where the controller may be."""
    mounts = {}
    for shown, place, kind, options in _MOUNT.findall(_text(root / "proc/self/mountinfo")):
        if kind == "cgroup2" or controller in options.split(","):
            mounts[kind] = PurePosixPath(shown), root / place.lstrip("/")
    for controllers, path in _GROUP.findall(_text(root / "proc/self/cgroup")):
        kind = "cgroup" if controller in controllers.split(",") else "cgroup2" if not controllers else ""
        if kind not in mounts:
            continue
        shown, top = mounts[kind]
        group = PurePosixPath(path)
        # A container's mount shows the host's tree, a part of it, or only its own group.
        known = ".." not in group.parts and group.is_relative_to(shown)
        inside = group.relative_to(shown) if known else PurePosixPath()
        yield from (top / below for below in (inside, *inside.parents))


def _numbers(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"-?\d+", _text(path))]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
