"""The one decorator of all kernels: no exceptions, no Python, no GIL, C division."""

from __future__ import annotations

from numba import njit


def kernel(function):
    return njit(function, error_model="numpy", nogil=True, boundscheck=False, fastmath=False)


def inlined(function):
    """A kernel's part: LLVM inlines it anyway; the name says that it has no life of its own."""
    return njit(function, error_model="numpy", nogil=True, boundscheck=False, forceinline=True)
