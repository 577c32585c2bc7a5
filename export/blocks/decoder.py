"""Layers as data (export/layers.py) → the float graph of docs/format.md.

Weights are not read here: each constant knows its shape from the checkpoint's header and is loaded when used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flatlm.export.layers import (
    Attention,
    Beside,
    Branch,
    Decoder,
    DeltaNet,
    Experts,
    Gated,
    Layer,
    Mamba2,
    Norm,
    Plain,
    ShortConv,
)
from flatlm.export.names import HEAD
from flatlm.export.ops.norm import normed
from flatlm.export.sources.source import is_ignored
from flatlm.export.weights import Affine, Weight
from flatlm.runtime.errors import UnsupportedError
from flatlm.runtime.format.graph import Graph

from .attention import attention
from .builder import Builder
from .experts import experts
from .mlp import gated, plain
from .recurrent import delta_net, mamba2, short_conv


def beside(b: Builder, x: str, body: Beside) -> str:
    """The sum of several bodies, each with places of its own name."""
    outputs = []
    for name, inner, scale in body.bodies:
        within = dataclasses.replace(b, branch=f"{name}.", scale=b.scale * scale)
        outputs.append((within, BODIES[type(inner)](within, x, inner)))
    (_, total), *others = outputs
    for within, y in others:
        total = within.emit("Add", "sum", (total, y))
    return total


# What builds a branch's body: (builder within the branch, the normed stream, the body) → what it adds.
BODIES: Mapping[type, Callable[[Builder, str, Any], str]] = {
    Attention: attention,
    Gated: gated,
    Experts: experts,
    ShortConv: short_conv,
    DeltaNet: delta_net,
    Mamba2: mamba2,
    Beside: beside,
    Plain: plain,
}


def build(b: Builder, decoder: Decoder) -> Graph:
    """The whole graph.

    Raises SourceError for missing weights or wrong shapes, UnsupportedError for weights without a place.
    """
    x = _embedding(b, decoder)
    for i, layer in enumerate(decoder.layers):
        x = _layer(b, i, x, layer)
    _head(b, x, decoder)
    _require_places(b)
    made, metadata = b.made, b.config.metadata()
    if decoder.context is not None and decoder.context < b.config.context_length:
        metadata["context_length"] = str(decoder.context)
        made.notes.append(f"{b.source.name}: exported for texts of up to {decoder.context} tokens")
    return Graph(
        nodes=made.nodes,
        constants=made.constants,
        inputs=["input_ids", "position_ids", *(past for past, _ in made.states)],
        outputs=["logits", *(present for _, present in made.states)],
        metadata=metadata,
    )


def _embedding(b: Builder, decoder: Decoder) -> str:
    """input_ids → [B, T, hidden]."""
    weight = b.weight("embedding", b.config.vocab_size, b.config.hidden_size)
    if decoder.embedding_norm:
        weight = _normed(b, weight, decoder.embedding_norm)
    options = {"scale": decoder.embedding_scale} if decoder.embedding_scale != 1 else {}
    inputs = ("input_ids", b.constant("embedding.weight", weight))
    x = b.emit("Embedding", "embedding", inputs, (), **options)
    if not decoder.positions:
        return x
    first, count = decoder.first_position, b.config.context_length
    table = b.stored("positions")
    if table.shape[0] < first + count or table.shape[1:] != (b.config.hidden_size,):
        raise table.misshaped(f"[{first + count} or more, {b.config.hidden_size}]")
    table = table.rows(slice(first, first + count))
    row = b.emit("Embedding", "positions", ("position_ids", b.constant("positions.weight", table)))
    return b.emit("Add", "positions.add", (x, row))


def _normed(b: Builder, table: Weight, norm: Norm) -> Weight:
    """Each row by its norm."""
    weight, bias = b.norm_weights("embedding_norm", norm)
    epsilon = b.config.epsilon

    def fold(rows: np.ndarray) -> np.ndarray:
        y: np.ndarray = normed(rows, np.float32(epsilon), norm.centered) * weight.load()
        return y if bias is None else y + bias.load()

    return table.mapped(fold)


def _layer(b: Builder, i: int, x: str, layer: Layer) -> str:
    """The stream after layer i."""
    start = x
    for branch in layer.branches:
        inner = dataclasses.replace(b, layer=i, branch=f"{branch.name}.")
        added = _branch(inner, start if layer.parallel else x, branch)
        x = inner.emit("Add", "add", (x, added))
    return x


def _branch(b: Builder, x: str, branch: Branch) -> str:
    """What a branch adds to the stream.

    x ─ norm ─ body ─ post_norm
    """
    body, shift = BODIES[type(branch.body)], None
    if branch.pre is not None:
        x, shift = b.norm("norm", x, branch.pre)
    scale = branch.scale if branch.post is None else 1.0
    y = body(dataclasses.replace(b, shift=shift, scale=scale), x, branch.body)
    if branch.post is None:
        return y
    assert not branch.post.bias, "what reads the stream cannot take in a bias"
    return dataclasses.replace(b, scale=branch.scale).norm("post_norm", y, branch.post)[0]


def _head(b: Builder, x: str, decoder: Decoder) -> None:
    """[B, T, hidden] → logits [B, T, V]; tied models share the embedding's constant."""
    tied, shape = b.config.tied, (b.config.vocab_size, b.config.hidden_size)
    shared = tied and decoder.embedding_norm is None
    x, shift = dataclasses.replace(b, scale=decoder.logits_scale).norm("norm", x, decoder.norm)
    bias = b.weight(HEAD, shape[0], kind=".bias") if decoder.head_bias else None
    head = Affine(b.weight("embedding" if tied else HEAD, *shape), bias).reading(shift)
    if tied:
        b.made.placed.add(f"{b.names.stored(HEAD)}.weight")  # where it is stored, it is the same matrix
    output = "logits" if not decoder.softcap else "uncapped_logits"
    b.linear("head", x, head, output=output, shared="embedding.weight" if shared else "")
    if decoder.softcap:
        b.emit("SoftCap", "softcap", (output,), ("logits",), softcap=decoder.softcap)


def _require_places(b: Builder) -> None:
    """UnsupportedError unless every weight of the checkpoint has its place, or is left out, with a note."""
    made, source = b.made, b.source
    left = [name for name in source.names() if name not in made.placed and not is_ignored(name)]
    if unknown := [name for name in left if not name.startswith(b.names.ignored)]:
        raise UnsupportedError(
            f"{source.name}: {len(unknown)} weights have no place in architecture "
            f"{b.config.architecture!r}, first {unknown[0]}; the model is a variant flatlm does not know"
        )
    if left:
        made.notes.append(f"{source.name}: {len(left)} weights of other parts are left out, first {left[0]}")
