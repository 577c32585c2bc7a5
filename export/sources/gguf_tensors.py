"""Tensors of GGUF files as float32, and when two of them are one matrix.

A matrix that is stored twice, as embedding and as head, is quantized twice. Two such copies differ by what
their types round, a fine-tuned head differs by more; where the types do not round, by anything at all.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np

from flatlm.export.parallel import each
from flatlm.export.sources.gguf_reader import Stored
from flatlm.runtime.errors import UnsupportedError

_ROWS = 256  # rows dequantized at once: the library's intermediate arrays stay small, all cores busy
_FLOATS = {"F32": "f4", "F16": "f2", "BF16": "u2"}  # stored without rounding to blocks

# A type of b bits a weight rounds rows by about 2.5 · 2^-b of their norm, the worst of 67,000 rows of SmolLM2
# and Qwen2.5-Coder in Q4_0, Q4_1, Q5_0 and Q8_0 by 3.6 · 2^-b. Unrelated rows differ by more than their norm.
_ROUNDING, _MOST = 4.5, 0.5
_SILENT = 1e-3  # of a mean row's norm: rows of unused tokens may be rounded to nothing


def dequantize(tensor: Stored, rows: slice = slice(None)) -> np.ndarray:
    """(rows of) a tensor as fresh float32. Raises UnsupportedError for types the gguf package cannot do."""
    if len(tensor.shape) < 2 or not math.prod(tensor.shape):
        return _convert(tensor, tensor.data).reshape(tensor.shape)
    data = tensor.data.reshape(tensor.shape[0], -1)[rows]
    out = np.empty((len(data), *tensor.shape[1:]), np.float32)

    def part(at: int) -> None:
        values = _convert(tensor, data[at : at + _ROWS])
        out[at : at + _ROWS] = values.reshape(len(values), *tensor.shape[1:])

    each(part, range(0, len(data), _ROWS))
    return out


def _convert(tensor: Stored, data: np.ndarray) -> np.ndarray:
    """Stored rows → fresh float32 rows."""
    if tensor.kind == "BF16":
        stored = np.ascontiguousarray(data).view(">u2" if tensor.big_endian else "<u2")
        return (stored.astype(np.uint32) << 16).view(np.float32)
    if tensor.kind in _FLOATS:
        return np.array(data, np.float32)
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize as convert

    try:
        with np.errstate(all="ignore"):  # what is not finite is told by whoever reads the weight
            return np.array(convert(data, GGMLQuantizationType[tensor.kind]), np.float32)
    except NotImplementedError as error:
        raise UnsupportedError(
            f"{tensor.name} is stored as {tensor.kind}, which the gguf package cannot dequantize"
        ) from error


def require_byte_order(file: str, tensor: Stored) -> None:
    """UnsupportedError for quantized tensors of big-endian files: within a block only some bytes turn."""
    if tensor.big_endian and tensor.kind not in _FLOATS:
        raise UnsupportedError(
            f"{file} is big-endian and {tensor.name} is stored as {tensor.kind}: of big-endian files flatlm "
            f"reads {', '.join(_FLOATS)}; convert it with gguf-convert-endian, or take a little-endian one"
        )


def unpermute(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from rotary pairs side by side (0, d/2, 1, d/2 + 1, …) to two halves."""
    return rows.reshape(heads, len(rows) // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def same_matrix(one: Stored, other: Stored) -> bool:
    """Whether two matrices are one, each row no further apart than their two types round."""
    if one.shape != other.shape or len(one.shape) != 2 or not math.prod(one.shape):
        return False
    share = math.hypot(_rounding(one), _rounding(other))
    for at in range(0, one.shape[0], 64 * _ROWS):
        a, b = (dequantize(tensor, slice(at, at + 64 * _ROWS)) for tensor in (one, other))
        if share == 0:
            if not np.array_equal(a, b):
                return False
            continue
        norms = np.linalg.norm(b, axis=1)
        if not (np.linalg.norm(a - b, axis=1) <= share * norms + _SILENT * norms.mean()).all():
            return False
    return True


def _rounding(tensor: Stored) -> float:
    """How far rounding to the tensor's type takes a row, as a share of its norm."""
    if tensor.kind in _FLOATS:
        return 0.0
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    weights, size = GGML_QUANT_SIZES[GGMLQuantizationType[tensor.kind]]
    share: float = _ROUNDING * 2.0 ** (-8 * size / weights)
    return min(share, _MOST)


def release(stored: np.ndarray) -> None:
    """The pages of the mapped file leave this process's memory; the system keeps them while it has room."""
    base: Any = stored
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
