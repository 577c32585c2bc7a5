"""A decoder's layers as data: what an architecture (export/archs) says, and export/blocks.py builds.

A field here is an option of a block. What none can say, export/config.py refuses by name and value.
"""

from __future__ import annotations

from dataclasses import dataclass


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


@dataclass(frozen=True, slots=True)
class Gated:
    """act(gate) · up, and down; all three or none have a bias."""

    act: str
    intermediate_size: int
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Layer:
    """A mixer of tokens and an MLP, each with a root-mean-square norm before it and a residual around it."""

    mixer: Attention
    mlp: Gated
