"""Layers as data (export/layers.py) → the float graph of docs/format.md, a function for each block.

Weights are not read here: each constant knows its shape from the checkpoint's header and is loaded when used.

Legend: B batch, T tokens, n outputs, k inputs, h heads, g key/value heads, d head size, I intermediate size.
A value is named after the node that makes it, a constant `<node>.weight` or `<node>.bias`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from flatlm.export import names
from flatlm.export.config import DecoderConfig
from flatlm.export.constants import LazyConstants
from flatlm.export.layers import Attention, Gated, Layer
from flatlm.export.sources.source import Source, is_ignored
from flatlm.runtime.errors import SourceError, UnsupportedError
from flatlm.runtime.format.graph import Attribute, Graph, Node, Tensor


@dataclass
class Builder:
    """A graph in the making. Every node goes through `emit`, every weight through `stack`."""

    source: Source
    config: DecoderConfig
    nodes: list[Node] = field(default_factory=list)
    constants: LazyConstants = field(default_factory=LazyConstants)
    placed: set[str] = field(default_factory=set)  # the checkpoint's weights that found their place

    def emit(
        self, op: str, name: str, inputs: Sequence[str], outputs: Sequence[str] = (), **attrs: Attribute
    ) -> str:
        """Appends a node; returns its first output, named as the node unless `outputs` says otherwise."""
        node = Node(op, tuple(inputs), tuple(outputs) or (name,), attrs, name)
        self.nodes.append(node)
        return node.outputs[0]

    def stack(self, name: str, weights: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> str:
        """A constant: the checkpoint's `weights` one below the other, their shapes as the config implies."""
        for weight, shape in zip(weights, shapes, strict=True):
            if (found := self.source.shape(weight)) != shape:
                raise SourceError(
                    f"{self.source.name}: {weight} is {list(found)}, config.json implies {list(shape)}; "
                    "the two are not of the same model"
                )
        self.placed.update(weights)
        whole = (sum(shape[0] for shape in shapes), *shapes[0][1:])
        self.constants.define(
            name, whole, functools.partial(_read_stacked, self.source, tuple(weights), whole)
        )
        return name


def _read_stacked(source: Source, weights: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    if len(weights) == 1:
        return source.read(weights[0])
    out, at = np.empty(shape, np.float32), 0
    for weight in weights:
        part = source.read(weight)
        out[at : at + len(part)] = part
        at += len(part)
    return out


def rotary_table(b: Builder) -> tuple[str, str]:
    """position_ids → cos, sin [B, T, d/2]."""
    constant = "rotary.inverse_frequency"
    b.constants[constant] = Tensor.of(b.config.inverse_frequency)
    outputs = ("rotary.cos", "rotary.sin")
    b.emit("RotaryTable", "rotary", ("position_ids", constant), outputs)
    return outputs


def embedding(b: Builder) -> str:
    """input_ids → [B, T, hidden]."""
    shape = (b.config.vocab_size, b.config.hidden_size)
    weight = b.stack("embedding.weight", [f"{names.outer('embedding')}.weight"], [shape])
    return b.emit("Embedding", "embedding", ("input_ids", weight))


def norm(b: Builder, name: str, x: str, weight: str, op: str = "Norm", k: int = 0) -> str:
    """Root-mean-square norm with the checkpoint's `<weight>.weight` [k]; k: the hidden size unless given."""
    constant = b.stack(f"{name}.weight", [f"{weight}.weight"], [(k or b.config.hidden_size,)])
    return b.emit(op, name, (x, constant), epsilon=b.config.epsilon)


def linear(
    b: Builder, name: str, x: str, parts: Sequence[str], rows: Sequence[int], k: int, bias: bool
) -> str:
    """One matrix product for several linears of the checkpoint on one input, outputs side by side."""
    weight = b.stack(f"{name}.weight", [f"{part}.weight" for part in parts], [(n, k) for n in rows])
    if bias:
        b.stack(f"{name}.bias", [f"{part}.bias" for part in parts], [(n,) for n in rows])
    else:
        b.constants[f"{name}.bias"] = Tensor.of(np.zeros(sum(rows), np.float32))
    return b.emit("Linear", name, (x, weight, f"{name}.bias"))


def attention(b: Builder, i: int, x: str, rotary: tuple[str, str], mixer: Attention) -> str:
    """Attention of layer i with its norm and residual.

    x ─┬─ norm ─ qkv [B, T, (h + 2g)·d] ─ heads ─┬─ q ─ rotate_q ───────── attend [B, T, h·d] ─ out ─┬─ add
       │                                         ├─ k ─ rotate_k ─ append ─┘                         │
       │                                         └─ v ────────────────┘                              │
       └─────────────────────────────────────────────────────────────────────────────────────────────┘

    With `qk_norm`, q_norm and k_norm stand before rotate_q and rotate_k.
    """
    at, hidden, size = f"layers.{i}.attention", b.config.hidden_size, mixer.head_size
    wide, narrow = mixer.num_heads * size, mixer.kv_num_heads * size
    normed = norm(b, f"{at}.norm", x, names.within(i, "attention.norm"))
    parts = [names.within(i, f"attention.{part}") for part in "qkv"]
    qkv = linear(b, f"{at}.qkv", normed, parts, (wide, narrow, narrow), hidden, mixer.qkv_bias)
    q, k, v = (f"{at}.heads.{part}" for part in "qkv")
    sizes = {"num_heads": mixer.num_heads, "kv_num_heads": mixer.kv_num_heads, "head_size": size}
    b.emit("Heads", f"{at}.heads", (qkv,), (q, k, v), **sizes)
    if mixer.qk_norm:
        q, k = (
            norm(b, f"{at}.{part}_norm", x, names.within(i, f"attention.{part}_norm"), "HeadNorm", size)
            for part, x in (("q", q), ("k", k))
        )
    q, k = (b.emit("Rotate", f"{at}.rotate_{part}", (x, *rotary)) for part, x in (("q", q), ("k", k)))
    past, present = (
        tuple(f"{name}.{i}.{part}" for part in ("key", "value")) for name in ("past_key_values", "present")
    )
    b.emit("Append", f"{at}.append", (k, v, *past), present, state="float32")
    options = {"window": mixer.window} if mixer.window else {}
    attended = b.emit(
        "Attend", f"{at}.attend", (q, *present), (), scale=size**-0.5, state="float32", **options
    )
    out = [names.within(i, "attention.out")]
    return b.emit(
        "Add", f"{at}.add", (x, linear(b, f"{at}.out", attended, out, (hidden,), wide, mixer.out_bias))
    )


def gated(b: Builder, i: int, x: str, mlp: Gated) -> str:
    """Gated MLP of layer i with its norm and residual.

    x ─┬─ norm ─ gate_up [B, T, 2·I] ─ act [B, T, I] ─ down ─┬─ add
       └─────────────────────────────────────────────────────┘
    """
    at, hidden, wide = f"layers.{i}.mlp", b.config.hidden_size, mlp.intermediate_size
    normed = norm(b, f"{at}.norm", x, names.within(i, "mlp.norm"))
    parts = [names.within(i, f"mlp.{part}") for part in ("gate", "up")]
    gate_up = linear(b, f"{at}.gate_up", normed, parts, (wide, wide), hidden, mlp.bias)
    act = b.emit("Gated", f"{at}.act", (gate_up,), act=mlp.act)
    down = linear(b, f"{at}.down", act, [names.within(i, "mlp.down")], (hidden,), wide, mlp.bias)
    return b.emit("Add", f"{at}.add", (x, down))


def head(b: Builder, x: str) -> str:
    """[B, T, hidden] → logits [B, T, V]; tied models share the embedding's constant."""
    c, stored = b.config, f"{names.outer('head')}.weight"
    if c.tied:
        weight = "embedding.weight"
        b.placed.add(stored)  # where the checkpoint has it, it is the same matrix
    else:
        weight = b.stack("head.weight", [stored], [(c.vocab_size, c.hidden_size)])
    b.constants["head.bias"] = Tensor.of(np.zeros(c.vocab_size, np.float32))
    return b.emit("Linear", "head", (x, weight, "head.bias"), ("logits",))


def decoder(source: Source, config: DecoderConfig, layers: Sequence[Layer]) -> Graph:
    """Embedding, layers, norm, head.

    Raises SourceError for missing weights or wrong shapes, UnsupportedError for weights without a place.
    """
    b = Builder(source, config)
    rotary = rotary_table(b)
    x = embedding(b)
    for i, layer in enumerate(layers):
        x = attention(b, i, x, rotary, layer.mixer)
        x = gated(b, i, x, layer.mlp)
    head(b, norm(b, "norm", x, names.outer("norm")))
    return finish(b)


def finish(b: Builder) -> Graph:
    """The graph, once every weight of the checkpoint has its place."""
    left = [name for name in b.source.names() if name not in b.placed and not is_ignored(name)]
    if left:
        raise UnsupportedError(
            f"{b.source.name}: {len(left)} weights have no place in architecture {b.config.architecture!r}, "
            f"first {left[0]}; the model is a variant flatlm does not know"
        )
    cache = [f"{i}.{part}" for i in range(b.config.layers) for part in ("key", "value")]
    return Graph(
        nodes=b.nodes,
        constants=b.constants,
        inputs=["input_ids", "position_ids", *(f"past_key_values.{entry}" for entry in cache)],
        outputs=["logits", *(f"present.{entry}" for entry in cache)],
        metadata=b.config.metadata(),
    )
