"""What the weights of a decoder are called, by their place: in Hugging Face's checkpoints and in GGUF files.

A place in a layer is a node's name there, where the linears that a node fuses have places of their own. An
architecture whose checkpoints have other names says which (`NAMES.but`); where its weights lie otherwise than
the graph has them (several in one, transposed), a name has folds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flatlm.export.decoder_config import DecoderConfig
from flatlm.export.weights import Weight

HEAD = "head"
EXPERT = "{expert}"  # in the name of what each expert has: its number
Fold = Callable[[Weight, DecoderConfig], Weight]  # what is stored → what the place wants


@dataclass(frozen=True, slots=True)
class Name:
    """Of a place, without .weight or .bias and, in a layer, without the layer.

    folds: from what Hugging Face's checkpoints store to what the place wants, in their order
    gguf_folds: the same for GGUF files where they store it otherwise; None: as Hugging Face
    whole: of what each expert has, how checkpoints that store all experts as one have it
    gguf_kind: what stands after the name in GGUF files where Hugging Face has nothing after it
    bare: Hugging Face's checkpoints store the weight without .weight and the bias with _bias after the name
    """

    hf: str
    gguf: str
    folds: tuple[Fold, ...] = ()
    gguf_folds: tuple[Fold, ...] | None = None
    bare: bool = False
    whole: Name | None = None
    gguf_kind: str = ".weight"


@dataclass(frozen=True, slots=True)
class Names:
    """Of all places of an architecture.

    root, layers: what stands before Hugging Face's names (not before the head's), and in a layer after that
    ignored: how names begin that have no place here; the export leaves such weights out and says so
    """

    outer: Mapping[str, Name]
    layer: Mapping[str, Name]
    root: str = "model."
    layers: str = "layers"
    ignored: tuple[str, ...] = ()

    def stored(self, place: str, layer: int | None = None, gguf: bool = False) -> str:
        """What a source calls a place: Hugging Face's name, with all that stands before it.

        In a GGUF file that stores the place otherwise (`gguf_folds`) it keeps its name of there.
        """
        name = (self.outer if layer is None else self.layer)[place]
        ours = name.gguf if gguf and name.gguf_folds is not None else name.hf
        if layer is not None:
            return f"{self.root}{self.layers}.{layer}.{ours}"
        return ours if place == HEAD else f"{self.root}{ours}"

    def kind(self, place: str, layer: int | None, kind: str, gguf: bool) -> str:
        """How a source spells .weight and .bias of a place."""
        name = (self.outer if layer is None else self.layer)[place]
        if gguf:
            return kind or name.gguf_kind
        return {".weight": "", ".bias": "_bias"}.get(kind, kind) if name.bare else kind

    def folds(self, place: str, layer: int | None, gguf: bool) -> tuple[Fold, ...]:
        """From what a source stores to what the place wants."""
        name = (self.outer if layer is None else self.layer)[place]
        return name.gguf_folds if gguf and name.gguf_folds is not None else name.folds

    def of_gguf(self, name: str) -> str | None:
        """blk.3.attn_q.weight → model.layers.3.self_attn.q_proj.weight; None for what has no place."""
        stem, _, kind = name.rpartition(".")
        block, _, rest = stem.partition(".")
        index, _, part = rest.partition(".")
        layer = int(index) if block == "blk" and index.isdecimal() else None
        table, part = (self.outer, stem) if layer is None else (self.layer, part)
        place = next((place for place, name in table.items() if name.gguf == part), None)
        return place and f"{self.stored(place, layer, gguf=True)}.{kind}"

    def but(
        self,
        outer: Mapping[str, Name] | None = None,
        layer: Mapping[str, Name] | None = None,
        **others: Any,
    ) -> Names:
        """These names with others in some places; `others` are fields of their own."""
        outer, layer = {**self.outer, **(outer or {})}, {**self.layer, **(layer or {})}
        return dataclasses.replace(self, outer=outer, layer=layer, **others)


# How weights begin that see or hear, in checkpoints whose text half is read.
OTHER_HALVES = tuple(
    f"{root}{name}."
    for root in ("", "model.")
    for name in (
        "vision_tower",
        "multi_modal_projector",
        "visual",
        "audio_tower",
        "embed_vision",
        "embed_audio",
    )
)
NAMES = Names(
    outer={
        "embedding": Name("embed_tokens", "token_embd"),
        "norm": Name("norm", "output_norm"),
        "head": Name("lm_head", "output"),
    },
    layer={
        "attention.norm": Name("input_layernorm", "attn_norm"),
        "attention.q": Name("self_attn.q_proj", "attn_q"),
        "attention.k": Name("self_attn.k_proj", "attn_k"),
        "attention.v": Name("self_attn.v_proj", "attn_v"),
        "attention.q_norm": Name("self_attn.q_norm", "attn_q_norm"),
        "attention.k_norm": Name("self_attn.k_norm", "attn_k_norm"),
        "attention.out": Name("self_attn.o_proj", "attn_output"),
        "mlp.norm": Name("post_attention_layernorm", "ffn_norm"),
        "mlp.gate": Name("mlp.gate_proj", "ffn_gate"),
        "mlp.up": Name("mlp.up_proj", "ffn_up"),
        "mlp.down": Name("mlp.down_proj", "ffn_down"),
    },
)
