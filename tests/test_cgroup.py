"""The limits of containers and services, v1 and v2, on made-up file systems."""

from __future__ import annotations

from pathlib import Path

import pytest

from flatlm.kernels_arm import cgroup, team
from flatlm.kernels_arm.team import Cores
from flatlm.runtime import memory

MIB = 1 << 20
V1_UNLIMITED = "9223372036854771712"


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def mount(kind: str, place: str, shown: str = "/", options: str = "rw") -> str:
    return f"31 23 0:28 {shown} {place} rw,relatime shared:9 - {kind} {kind} {options}"


def v2(root: Path, files: dict[str, str], group: str = "/", shown: str = "/") -> Path:
    """A machine with one hierarchy; `files` lie under /sys/fs/cgroup."""
    write(root, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    mounts = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mount("cgroup2", "/sys/fs/cgroup", shown)
    return write(root, {"proc/self/cgroup": f"0::{group}", "proc/self/mountinfo": mounts})


def v1(root: Path, files: dict[str, str], group: str = "/", shown: str = "/") -> Path:
    """A machine with a hierarchy for memory and one for two controllers; an empty v2 one beside them."""
    write(root, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    mounts = [
        mount("cgroup2", "/sys/fs/cgroup/unified"),
        mount("cgroup", "/sys/fs/cgroup/cpu,cpuacct", shown, "rw,cpu,cpuacct"),
        mount("cgroup", "/sys/fs/cgroup/memory", shown, "rw,memory"),
    ]
    groups = [f"5:memory:{group}", f"4:cpu,cpuacct:{group}", "0::/"]
    return write(root, {"proc/self/cgroup": "\n".join(groups), "proc/self/mountinfo": "\n".join(mounts)})


def memory2(limit: int | str, used: int, cache: int = 0) -> dict[str, str]:
    stat = f"anon 4\nactive_file {cache // 4}\ninactive_file {cache - cache // 4}\nslab_reclaimable 9"
    return {"memory.max": str(limit), "memory.current": str(used), "memory.stat": stat}


def memory1(limit: int | str, used: int, cache: int = 0) -> dict[str, str]:
    own = "inactive_file 1\nactive_file 1\n"  # of the group without those below it
    stat = own + f"total_inactive_file {cache // 2}\ntotal_active_file {cache - cache // 2}"
    return {"memory.limit_in_bytes": str(limit), "memory.usage_in_bytes": str(used), "memory.stat": stat}


def cpu1(quota: int, period: int = 100_000) -> dict[str, str]:
    return {"cpu.cfs_quota_us": str(quota), "cpu.cfs_period_us": str(period)}


def under(folder: str, files: dict[str, str]) -> dict[str, str]:
    return {f"{folder}/{name}": text for name, text in files.items()}


@pytest.mark.parametrize(("machine", "files"), [(v2, memory2), (v1, memory1)])
def test_page_cache_counts_as_free(tmp_path, machine, files):
    found = files(200 * MIB, 150 * MIB, 80 * MIB)
    machine(tmp_path, found if machine is v2 else under("memory", found))
    assert cgroup.memory_bytes(tmp_path) == 130 * MIB


@pytest.mark.parametrize(
    ("machine", "files", "unlimited", "top"),
    [(v2, memory2, "max", ""), (v1, memory1, V1_UNLIMITED, "memory/")],
)
def test_the_least_of_all_ancestors_counts(tmp_path, machine, files, unlimited, top):
    tree = {
        **under(f"{top}user/app/job", files(unlimited, 10)),
        **under(f"{top}user/app", files(500 * MIB, 100 * MIB)),
        **under(f"{top}user", files(450 * MIB, 150 * MIB)),
        **under(f"{top}other", files(MIB, MIB)),
    }
    machine(tmp_path, tree, "/user/app/job")
    assert cgroup.memory_bytes(tmp_path) == 300 * MIB


@pytest.mark.parametrize(("machine", "files", "top"), [(v2, memory2, "."), (v1, memory1, "memory")])
@pytest.mark.parametrize(
    ("group", "shown"),
    [("/docker/ab12", "/docker/ab12"), ("/", "/"), ("/docker/ab12", "/"), ("/../ab12", "/")],
    ids=["the host's path", "a namespace", "a group that is not shown", "outside the namespace"],
)
def test_a_container_sees_its_own_group_at_the_top_of_the_mount(tmp_path, machine, files, top, group, shown):
    machine(tmp_path, under(top, files(100 * MIB, 40 * MIB)), group, shown)
    assert cgroup.memory_bytes(tmp_path) == 60 * MIB


def test_more_used_than_allowed_leaves_nothing(tmp_path):
    assert cgroup.memory_bytes(v2(tmp_path, memory2(100, 200))) == 0


@pytest.mark.parametrize(
    ("machine", "files"),
    [
        (v2, {}),
        (v2, {**memory2("max", 5), "cpu.max": "max 100000"}),
        (v1, {**under("memory", memory1(V1_UNLIMITED, 5)), **under("cpu,cpuacct", cpu1(-1))}),
        (v1, {"cpu,cpuacct/cpu.cfs_quota_us": "", "memory/memory.limit_in_bytes": "none"}),
    ],
)
def test_without_a_limit_there_is_none(tmp_path, machine, files):
    machine(tmp_path, files)
    assert (cgroup.memory_bytes(tmp_path), cgroup.cpus(tmp_path)) == (None, None)
    assert cgroup.threads(8, tmp_path) == 8


def test_a_system_without_control_groups_has_no_limit(tmp_path):
    assert (cgroup.memory_bytes(tmp_path), cgroup.cpus(tmp_path)) == (None, None)
    write(tmp_path, {"proc/self/cgroup": "nonsense", "proc/self/mountinfo": "more of it"})
    assert (cgroup.memory_bytes(tmp_path), cgroup.cpus(tmp_path)) == (None, None)


@pytest.mark.parametrize(
    ("quota", "threads"), [(5_000, 1), (100_000, 1), (150_000, 2), (400_000, 4), (1_600_000, 8)]
)
@pytest.mark.parametrize("machine", [v1, v2])
def test_threads_are_as_many_as_there_is_time_for(tmp_path, machine, quota, threads):
    name, files = ("cpu,cpuacct/a", cpu1(quota)) if machine is v1 else ("a", {"cpu.max": f"{quota} 100000"})
    machine(tmp_path, under(name, files), "/a/b")
    assert cgroup.cpus(tmp_path) == quota / 100_000
    assert cgroup.threads(8, tmp_path) == threads


@pytest.mark.parametrize(
    ("machine_free", "group", "free", "told"),
    [
        (900, 100, 100, "100 MiB available in this control group, 900 on the machine"),
        (50, 100, 50, "50 MiB available"),
        (900, None, 900, "900 MiB available"),
        (None, 100, 100, "100 MiB available in this control group"),
        (None, None, None, "unknown"),
    ],
)
def test_available_memory_is_the_less_of_the_machines_and_the_groups(
    tmp_path, machine_free, group, free, told
):
    if machine_free is not None:
        write(tmp_path, {"proc/meminfo": f"MemFree: 1 kB\nMemAvailable: {machine_free * 1024} kB"})
    if group is not None:
        v2(tmp_path, memory2(group * MIB, 0))
    assert memory.available_bytes(tmp_path) == (free and free * MIB)
    assert memory.describe(tmp_path) == told


def test_doctor_tells_that_the_group_has_less_time_than_there_are_cores(monkeypatch):
    monkeypatch.setattr(team, "fast_cores", lambda: Cores(4, frozenset(), "all allowed cores"))
    monkeypatch.setattr(cgroup, "cpus", lambda root=cgroup.ROOT: 1.5)
    assert team.default_threads() == 2
    assert team.describe()["threads"] == "2: the control group has the time of 1.5, of 4 (all allowed cores)"
