"""A decoder's layers as data: what an architecture (export/archs) says, and export/blocks builds.

A layer is a row of branches around the residual stream, each `stream += post(body(pre(stream)))`. A field
here is an option of a block. What none can say, export/config.py refuses by name and value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flatlm.export.rope import Rotary


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal attention of rotated queries and keys over a K/V cache."""

    num_heads: int
    kv_num_heads: int
    head_size: int
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False  # of each head of queries and of keys, before they are rotated
    window: int = 0  # tokens that a query sees, its own included; 0: all before it
    rotary: Rotary | None = None  # None: the model's own, `DecoderConfig.rotary()`
    scale: float | None = None  # of the scores; None: head_size^-½


@dataclass(frozen=True, slots=True)
class Gated:
    """act(gate) · up, and down; all three or none have a bias."""

    act: str
    intermediate_size: int
    bias: bool = False


Body = Attention | Gated  # each has its builder in blocks/decoder.py


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm of the stream, by the function that does it. `bias` is stored beside its weight."""

    op: str = "Norm"
    plus_one: bool = False  # the checkpoint has its weight as the distance from one
    bias: bool = False  # folded into what reads the norm


@dataclass(frozen=True, slots=True)
class Branch:
    """stream += scale · post(body(pre(stream))). Its nodes and places are below `name`."""

    name: str
    body: Body
    pre: Norm | None = Norm()
    post: Norm | None = None
    scale: float = 1.0  # folded into the last weights of the branch


@dataclass(frozen=True, slots=True)
class Layer:
    """Branches one after the other, or, `parallel`, all reading the stream as it comes to the layer."""

    branches: tuple[Branch, ...]
    parallel: bool = False


@dataclass(frozen=True, slots=True)
class Decoder:
    """Embedding, layers, last norm and head."""

    layers: Sequence[Layer]
    norm: Norm = Norm()
    logits_scale: float = 1.0  # folded into the last norm


def pre_norm(mixer: Body, mlp: Body, scale: float = 1.0) -> Layer:
    """Llama's layer: a norm before each of attention and MLP."""
    return Layer((Branch("attention", mixer, scale=scale), Branch("mlp", mlp, scale=scale)))
