"""A decoder's layers as data: what an architecture (export/archs) says, and export/blocks builds.

A layer is a row of branches around the residual stream, each `stream += post(body(pre(stream)))`. A field
here is an option of a block. What none can say, export/config.py refuses by name and value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flatlm.export.rope import Rotary


@dataclass(frozen=True, slots=True)
class QkNorm:
    """A norm of queries and of keys.

    scope: of each "head", of each with a weight of its "own", or of "all" as one row
    plus_one, centered: as of `Norm`
    weighted: whether the checkpoint has weights
    last: it stands after the rotation, not before
    apart: weights of each head's own are stored apart, norms.0, norms.1 …
    """

    scope: str = "head"
    plus_one: bool = False
    centered: bool = False
    weighted: bool = True
    last: bool = False
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal attention over a K/V cache."""

    num_heads: int
    kv_num_heads: int
    head_size: int
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: QkNorm | None = None
    window: int = 0  # tokens that a query sees, its own included; 0: all before it
    gate: str = (
        ""  # what is attended is multiplied by the sigmoid of a gate for each of its "columns" or "heads"
    )
    rotary: Rotary | None = None  # None: the model's own, `DecoderConfig.rotary()`
    turned: bool = True  # False: queries and keys have no positions in them
    scale: float | None = None  # of the scores; None: head_size^-½
    softcap: float = 0.0  # scores become cap · tanh(score / cap); 0: they do not
    slopes: tuple[float, ...] = ()  # of each head: its scores fall by that for each token of distance (ALiBi)
    sinks: bool = False  # each head has a score that no key has, and that takes its share


@dataclass(frozen=True, slots=True)
class Gated:
    """act(gate) · up, and down; all three or none have a bias."""

    act: str
    intermediate_size: int
    bias: bool = False
    gate_scale: float = 1.0  # of what act is applied to; folded


@dataclass(frozen=True, slots=True)
class Plain:
    """act(up), and down; both or none have a bias."""

    act: str
    intermediate_size: int
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Experts:
    """A router, and the sum of the gated MLPs that it chooses for each token, `kept` of `experts`.

    kind, normalize, scale, floor, groups, keep: how it chooses, as docs/format.md has them of Route
    select: whether numbers are added for the choice alone
    shared: intermediate size of an MLP that all tokens go to, 0: none; `shared_gate`: times a sigmoid
    clamp: alpha and limit of ClampedGate, in the place of `act`
    """

    act: str
    experts: int
    kept: int
    intermediate_size: int
    kind: str = "softmax"
    normalize: bool = True
    scale: float = 1.0
    floor: float = 0.0
    groups: int = 1
    keep: int = 1
    select: bool = False
    router_bias: bool = False
    bias: bool = False  # of the experts
    shared: int = 0
    shared_gate: bool = False
    clamp: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class ShortConv:
    """b, c, u of one product: c · conv(b · u), a causal convolution of `taps`, and a product out of that."""

    taps: int
    bias: bool = False  # of convolution and products


@dataclass(frozen=True, slots=True)
class DeltaNet:
    """Linear attention by the gated delta rule, after a convolution; a norm of each head, gated by silu.

    fused: queries, keys, values and gates of a key head lie together in the checkpoint
    """

    heads: int
    key_heads: int
    key_size: int
    value_size: int
    taps: int
    fused: bool = False


@dataclass(frozen=True, slots=True)
class Mamba2:
    """Linear attention by the gated rule, after a convolution; gated by silu, with a norm or none.

    groups: keys and queries (B and C) that heads share, and groups of columns of the norm
    norm_first: the norm is before the gate, not after it
    factors: of the rows of z, x, B, C, dt; scale_in: of all of them, but not of their biases
    """

    heads: int
    head_size: int
    state_size: int
    groups: int
    taps: int
    conv_bias: bool = True
    bias: bool = False  # of the products
    norm: bool = True
    norm_first: bool = False
    least_step: float = 0.0
    factors: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0)
    scale_in: float = 1.0


@dataclass(frozen=True, slots=True)
class Beside:
    """Bodies that read the same normed stream, by name, each times a number; they add up."""

    bodies: tuple[tuple[str, Mixer, float], ...]


Mixer = Attention | ShortConv | DeltaNet | Mamba2
Body = Mixer | Beside | Gated | Plain | Experts  # each has its builder in blocks/decoder.py


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm of the stream. `bias` is stored beside its weight; `place` is where both are, if elsewhere."""

    centered: bool = False  # of the stream less its mean: a layer norm
    plus_one: bool = False  # the checkpoint has its weight as the distance from one
    weighted: bool = True  # whether the checkpoint has a weight
    bias: bool = False  # folded into what reads the norm
    place: str = ""


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
    """Embedding, layers, last norm and head.

    embedding_scale: what rows of the embedding are multiplied by, not those of a head that shares it
    logits_scale: of the head's outputs; folded into the last norm
    context: tokens beyond which the model is not what is said here; None: as many as config.json says
    positions: rows of a table of positions are added to those of the embedding; those before `first_position`
        are never read
    embedding_norm: folded into the embedding; a head that shares the matrix then has its own
    head_bias: whether the checkpoint has one
    softcap: logits become cap · tanh(logit / cap); 0: they do not
    """

    layers: Sequence[Layer]
    norm: Norm = Norm()
    embedding_scale: float = 1.0
    logits_scale: float = 1.0
    context: int | None = None
    positions: bool = False
    first_position: int = 0
    embedding_norm: Norm | None = None
    head_bias: bool = False
    softcap: float = 0.0


def pre_norm(mixer: Body, mlp: Body, scale: float = 1.0) -> Layer:
    """Llama's layer: a norm before each of attention and MLP."""
    return Layer((Branch("attention", mixer, scale=scale), Branch("mlp", mlp, scale=scale)))
