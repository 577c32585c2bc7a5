"""MXFP4, as gpt-oss stores its experts: blocks of 32 numbers of 4 bits, each block with a power of two.

    NAME_blocks   uint8 [E, n, k/32, 16]    two numbers a byte, the first one in the low bits
    NAME_scales   uint8 [E, n, k/32]        the exponent, plus 127

stand for NAME [E, k, n], which is how the same weights are stored in bfloat16 (Open Compute Project,
Microscaling Formats v1.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flatlm.export.sources.safetensors_file import Place
from flatlm.runtime.errors import SourceError

METHOD = "mxfp4"  # of quantization_config
_BLOCKS, _SCALES = "_blocks", "_scales"
_BLOCK, _BYTES = 32, 16
_HALF = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = np.array([*_HALF, *(-value for value in _HALF)], np.float32)  # of the 4 bits: sign, 2 exponent, 1
_BIAS = 127


@dataclass(frozen=True, slots=True)
class Mxfp4:
    """Where such a tensor lies, in the place of a `Place`."""

    blocks: Place
    scales: Place

    @property
    def file(self) -> Path:
        return self.blocks.file

    @property
    def dtype(self) -> str:
        """Of what `stored` gives."""
        return "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        experts, rows, blocks, _ = self.blocks.shape
        return experts, _BLOCK * blocks, rows

    def stored(self) -> np.ndarray:
        """The numbers that it stands for."""
        return decoded(_bytes(self.blocks), _bytes(self.scales)).swapaxes(1, 2)


def decoded(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """uint8 [..., k/32, 16] and [..., k/32] → float32 [..., k]."""
    out = np.empty((*blocks.shape[:-1], _BYTES, 2), np.float32)
    out[..., 0], out[..., 1] = _VALUES[blocks & 15], _VALUES[blocks >> 4]
    whole = out.reshape(*blocks.shape[:-1], _BLOCK)
    np.ldexp(whole, scales.astype(np.int32)[..., None] - _BIAS, out=whole)
    return whole.reshape(*blocks.shape[:-2], -1)


def _bytes(place: Place) -> np.ndarray:
    try:
        return np.memmap(place.file, np.uint8, "r", place.offset, place.shape)
    except (OSError, ValueError) as error:
        raise SourceError(f"cannot read {place.file} ({error}); fetch it again") from error


def joined(tensors: Mapping[str, Place]) -> dict[str, Place | Mxfp4]:
    """The tensors of a checkpoint, blocks and scales as what they stand for.

    SourceError where one of the two is missing, or they do not belong together.
    """
    found: dict[str, Place | Mxfp4] = {}
    for name, place in tensors.items():
        if name.endswith(_SCALES) and f"{name.removesuffix(_SCALES)}{_BLOCKS}" in tensors:
            continue
        if not name.endswith(_BLOCKS):
            found[name] = place
            continue
        whole = name.removesuffix(_BLOCKS)
        scales = tensors.get(f"{whole}{_SCALES}")
        if scales is None or (place.dtype, scales.dtype) != ("U8", "U8"):
            raise SourceError(f"{place.file}: {name} needs {whole}{_SCALES}, both as U8")
        if len(place.shape) != 4 or place.shape[-1] != _BYTES or scales.shape != place.shape[:-1]:
            shapes = f"{list(place.shape)} and {list(scales.shape)}"
            raise SourceError(f"{place.file}: blocks and scales of {whole} are {shapes}, not of one matrix")
        found[whole] = Mxfp4(place, scales)
    return found
