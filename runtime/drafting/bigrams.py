"""The bigram table of an artifact: for every id, the one that most often follows it in the calibration text.

The file `bigrams.i32` is little-endian int32 [V], V the model's vocab_size; -1 where the text says nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flatlm.kernels_arm.files import read_regular
from flatlm.runtime.errors import FormatError, IntegrityError

BIGRAMS = "bigrams.i32"


def load_bigrams(folder: Path | str, vocab: int) -> np.ndarray | None:
    """int32 [vocab], or None where the artifact has no table. FormatError where it does not fit the model."""
    path = Path(folder) / BIGRAMS
    if not path.exists():
        return None
    content = _content(path)
    table = np.frombuffer(content if len(content) % 4 == 0 else b"", "<i4")
    if len(table) != vocab or not (table.min() >= -1 and table.max() < vocab):
        raise FormatError(
            f"{path} is no table of {vocab} ids from -1 to {vocab - 1}: export the model again, or delete it "
            "to draft without one"
        )
    return table.astype(np.int32)


def _content(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise IntegrityError(f"{path} cannot be read ({error.strerror}); copy or export it again") from error
