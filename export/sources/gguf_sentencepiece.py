"""tokenizer.json of a SentencePiece vocabulary (tokenizer.ggml.model llama): pieces with scores, no merges.

SentencePiece joins the two neighbours whose piece has the best score. As merges: every piece that two others
make, the best first; what no piece spells is spelled in bytes, <0x0A>.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SPACE = "▁"  # stands for a blank


def merges(pieces: Mapping[str, int], scores: Sequence[float]) -> list[list[str]]:
    """Pairs of pieces, in the order in which they are joined."""
    found = []
    for piece, index in pieces.items():
        for at in range(1, len(piece)):
            left, right = piece[:at], piece[at:]
            if left in pieces and right in pieces:
                found.append((-scores[index], pieces[left], pieces[right], left, right))
    return [[left, right] for *_, left, right in sorted(found)]


def pipeline(prefix: bool) -> dict[str, Any]:
    """Normalizer and decoder; `prefix`: a text begins as if after a blank."""
    to_space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    from_space = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    start = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    end = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*start, to_space]},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [from_space, {"type": "ByteFallback"}, {"type": "Fuse"}, *end],
        },
    }
