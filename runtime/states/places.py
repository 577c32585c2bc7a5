"""Where the positions of a K/V cache stand: each at its own place, or, of a window, in a ring.

A ring holds the window before a step, the step, and some more: as much can be cut back. Its first places
stand once more behind the last, where a kernel reads a window as one run.
"""

from __future__ import annotations

from dataclasses import dataclass

from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.ops import MOST_STEP, SPAN

CUT = 1024  # positions that a ring can be cut back by, beside a step's
_RUN = SPAN + 32  # what a run has beyond a window: the rows of a span, and the rest of blocks at both ends


@dataclass(frozen=True, slots=True)
class Places:
    """ring: after so many positions places are used again; memory: all places, those that stand twice, too.

    reach: positions that a ring can be cut back by; 0: no ring, any number
    """

    ring: int
    memory: int
    reach: int = 0

    def cut_back(self, newest: int, length: int) -> int:
        """`length`, or 0 where the window before it is not there any more. newest: positions ever written."""
        return length if not self.reach or length >= newest - self.reach else 0


def places(context: int, window: int, block: int, *, runs: bool) -> Places:
    """Of `context` positions in blocks of `block`, of which a query sees `window` (0: all).

    runs: a window is read as one run of places.
    """
    whole = padded(context, block)
    run = padded(window + _RUN, block)
    ring = max(padded(window + MOST_STEP + CUT, block), run + block)  # a run never meets itself
    memory = ring + (run if runs else 0)
    return Places(ring, memory, ring - window) if window and memory < whole else Places(whole, whole)
