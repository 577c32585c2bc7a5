"""Independent work over the cores: a thread an item, one BLAS thread each.

numpy's own loops run on one core, and between them a threaded BLAS waits; whole items side by side keep all
cores busy (SmolLM2 `w8a8` on 2 cores: 5 minutes became 2). Results do not depend on the number of cores.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import ThreadpoolController

from flatlm.kernels_arm import cgroup

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """`function` of every item, in the items' order. Not to be nested: the threads are one pool."""
    with _blas().limit(limits=1, user_api="blas"):
        return list(_pool().map(function, items))


@functools.cache
def _pool() -> ThreadPoolExecutor:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(cgroup.threads(cores))


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()
