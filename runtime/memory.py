"""Does it fit? Asked before anything is allocated: a phone kills what takes too much, without a word.

And what was freed goes back to the system.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

from flatlm.kernels_arm import cgroup
from flatlm.runtime import ops
from flatlm.runtime.errors import ResourceError
from flatlm.runtime.format.graph import Graph
from flatlm.runtime.format.values import Value
from flatlm.runtime.format.widths import values_of
from flatlm.runtime.reading import reading


def available_bytes(root: Path = cgroup.ROOT) -> int | None:
    """What this process can get without swapping or being killed; None where the system does not say.

    `root`: of the file system that is asked.
    """
    known = [size for size in (_machine_bytes(root), cgroup.memory_bytes(root)) if size is not None]
    return min(known, default=None)


def describe(root: Path = cgroup.ROOT) -> str:
    """What `flatlm doctor` tells: the available memory, and whose limit that is."""
    free, machine = available_bytes(root), _machine_bytes(root)
    if free is None:
        return "unknown"
    text = f"{free / 2**20:.0f} MiB available"
    if free == machine:
        return text
    return f"{text} in this control group" + (f", {machine / 2**20:.0f} on the machine" if machine else "")


def _machine_bytes(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def require_memory(
    graph: Graph, context: int, slots: int = 1, values: Mapping[str, Value] | None = None
) -> None:
    """ResourceError where weights and full K/V caches of `slots` sequences exceed the available memory.

    Of experts only those of a token count; where the others do not fit beside it all there is a warning.
    `values`: as `widths.values_of` gives them, where that was asked for before.
    """
    available, read = available_bytes(), reading(graph)
    weights = read.resident
    cache = slots * cache_bytes(graph, context, values)
    if available is None:
        return
    if weights + cache > available:
        raise ResourceError(
            f"the model needs {_mb(weights + cache)} (weights {_mb(weights)}, K/V cache {_mb(cache)} at a "
            f"context of {context} tokens{f' for {slots} sequences' if slots > 1 else ''}), {_mb(available)} "
            f"are free: use a smaller {'--batch, ' if slots > 1 else ''}--ctx or model"
        )
    if read.all + cache > available:
        room = max(0, available - cache - (read.all - read.experts))
        warnings.warn(
            f"of {_mb(read.experts)} of experts {_mb(room)} fit into the free memory: others are read from "
            "the disk whenever tokens go to them",
            stacklevel=2,
        )


def cache_bytes(graph: Graph, context: int, values: Mapping[str, Value] | None = None) -> int:
    """Of one sequence."""
    states = ops.states_of(graph, values_of(graph) if values is None else values)
    return sum(state.bytes(context) for state in states.values())


def sequence_text(graph: Graph) -> str:
    """What a sequence takes, in words: states that are there from its first token on, caches that grow."""
    if not graph.nodes:
        return "nothing"
    tokens = 1 << 12  # a multiple of every block
    values = values_of(graph)
    fixed = cache_bytes(graph, 0, values)
    each = (cache_bytes(graph, tokens, values) - fixed) / tokens
    parts = [f"{fixed / 1e6:,.1f} MB"] if fixed else []
    parts += [f"{each / 1e3:,.1f} KB for each token"] if each else []
    return " and ".join(parts)


def give_back() -> None:
    """What the C library keeps of freed memory goes back to the system, in about 2 ms.

    Only glibc has the call: its threads' heaps keep what they once took.
    """
    if sys.platform != "win32" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
