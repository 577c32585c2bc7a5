"""The numbers of a decoder that its blocks need, whatever its config.json calls them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flatlm.export.rope import Rotary


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Sizes of a decoder. `rotaries` are by type of layer, or one under "" for all."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    num_heads: int
    kv_num_heads: int
    head_size: int
    context_length: int
    act: str  # of `Gated`
    epsilon: float
    tied: bool
    rotaries: Mapping[str, Rotary]

    def rotary(self, kind: str = "") -> Rotary:
        """How heads turn in layers of this type."""
        return self.rotaries[kind] if kind in self.rotaries else self.rotaries[""]

    def metadata(self) -> dict[str, str]:
        """What the artifact tells about the model's shape."""
        keys = "context_length vocab_size hidden_size layers num_heads kv_num_heads head_size architecture"
        return {key: str(getattr(self, key)) for key in keys.split()}
