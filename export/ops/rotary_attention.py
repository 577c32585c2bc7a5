"""RotaryAttention: rotary embedding, append to a float32 K/V cache, causal attention over all of it.

Its body is spelled out because onnxruntime's CPU and CUDA providers disagree on `Attention(is_causal)` when
there is a past (onnxruntime issue 29020), and to follow kernels_arm.reference to the single rounding.

Legend: B windows or batch, T tokens, t keys, h heads, g key/value heads, d head size, S draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from flatlm.export.onnx_text.exp import exp
from flatlm.export.onnx_text.heads import ROTATED
from flatlm.export.onnx_text.mask import MASK
from flatlm.export.probabilities import log_softmax
from flatlm.runtime.format.functions import ATTENTION, INT8_ATTENTION
from flatlm.runtime.format.graph import Graph, Node

from .function import Channels, Env, Function, Int8Cache, Operation

_QUERIES = 128  # queries of one attention block: keys after its end are skipped

_BODY = f"""<num_heads, kv_num_heads, head_size, scale>
    (qkv, cos, sin, past_key, past_value) => (y, present_key, present_value) {{
{ROTATED}
    present_key = Concat <axis = 2> (past_key, k)
    present_value = Concat <axis = 2> (past_value, v)
{MASK}
    group_shape = Concat <axis = 0> (keep_1, g_1, infer, d_1)
    grouped_q = Reshape (q, group_shape)
    keys = Transpose <perm = [0, 1, 3, 2]> (present_key)
    q_double = Cast <to = 11> (grouped_q)
    keys_double = Cast <to = 11> (keys)
    products_double = MatMul (q_double, keys_double)
    products = Cast <to = 1> (products_double)
    factor = Constant <value_float: float = @scale> ()
    grouped_scores = Mul (products, factor)
    grouped_shape = Shape (grouped_scores)
    scores_shape = Concat <axis = 0> (keep_1, h_1, T_1, t_1)
    scores = Reshape (grouped_scores, scores_shape)
    masked = Add (scores, mask)
    largest = ReduceMax <keepdims = 1> (masked, infer)
    below = Sub (masked, largest)
{exp("below", "weights")}
    weights_double = Cast <to = 11> (weights)
    total = ReduceSum <keepdims = 1> (weights_double, infer)
    one_double = Cast <to = 11> (exp_one)
    inverse_double = Div (one_double, total)
    inverse = Cast <to = 1> (inverse_double)
    grouped_weights = Reshape (weights_double, grouped_shape)
    values_double = Cast <to = 11> (present_value)
    grouped_double = MatMul (grouped_weights, values_double)
    grouped_out = Cast <to = 1> (grouped_double)
    out_shape = Concat <axis = 0> (keep_1, h_1, T_1, d_1)
    unscaled = Reshape (grouped_out, out_shape)
    out_heads = Mul (unscaled, inverse)
    out_tokens = Transpose <perm = [0, 2, 1, 3]> (out_heads)
    flat_shape = Concat <axis = 0> (keep_2, infer)
    y = Reshape (out_tokens, flat_shape)
}}"""


def sizes(node: Node) -> tuple[int, int, int]:
    """h, g, d."""
    h, g, d = (int(node.attrs[name]) for name in ("num_heads", "kv_num_heads", "head_size"))
    return h, g, d


def operation(graph: Graph, node: Node) -> Operation:
    return attend(node)


def attend(node: Node, stored: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> Operation:
    """`stored` is what the cache makes of q, k and v [..., d]."""
    h, g, d = sizes(node)
    scale = np.float32(node.attrs["scale"])

    def rotary_attention(qkv: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> tuple[np.ndarray, ...]:
        batch, length, _ = qkv.shape
        heads = qkv.reshape(batch, length, h + 2 * g, d)
        turned = rotate(heads[:, :, : h + g], cos, sin)
        q, k, v = map(stored, (turned[:, :, :h], turned[:, :, h:], heads[:, :, h + g :]))
        q = q.reshape(batch, length, g, h // g, d).transpose(0, 2, 3, 1, 4) * scale
        k, v = (part.transpose(0, 2, 1, 3) for part in (k, v))
        out = _causal_attention(q, np.ascontiguousarray(k), np.ascontiguousarray(v))
        return (out.transpose(0, 3, 1, 2, 4).reshape(batch, length, h * d), k, v)

    return rotary_attention


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Rotary embedding. x [B, T, heads, d], cos and sin [B, T, d/2]."""
    cos, sin = cos[:, :, None], sin[:, :, None]
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def _causal_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """q [B, g, h/g, T, d], k and v [B, g, T, d] → like q."""
    batch, groups, shared, length, size = q.shape
    out = np.empty(q.shape, np.float32)
    for start in range(0, length, _QUERIES):
        stop = min(start + _QUERIES, length)
        part = q[:, :, :, start:stop].reshape(batch, groups, -1, size)
        scores = part @ k[:, :, :stop].swapaxes(2, 3)
        view = scores.reshape(batch, groups, shared, stop - start, stop)
        hidden = np.triu(np.full((stop - start, stop - start), -np.inf, np.float32), 1)
        view[..., start:] += hidden
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=scores)
        total = scores.sum(-1, keepdims=True)
        result = (scores @ v[:, :, :stop]) / total
        out[:, :, :, start:stop] = result.reshape(batch, groups, shared, stop - start, size)
    return out


def backward(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """All scores at once: windows are short here."""
    h, g, d = sizes(node)
    qkv, cos, sin = (env[name] for name in node.inputs[:3])
    batch, length, _ = qkv.shape
    heads = qkv.reshape(batch, length, h + 2 * g, d)
    turned = rotate(heads[:, :, : h + g], cos, sin)
    scale = np.float32(node.attrs["scale"])
    q = turned[:, :, :h].reshape(batch, length, g, h // g, d).transpose(0, 2, 3, 1, 4)  # [B, g, h/g, T, d]
    k, v = (x.transpose(0, 2, 1, 3)[:, :, None] for x in (turned[:, :, h:], heads[:, :, h + g :]))
    p = q @ k.swapaxes(-1, -2) * scale
    p += np.triu(np.full((length, length), -np.inf, np.float32), 1)
    p = np.exp(log_softmax(p))
    y = y.reshape(-1, batch, length, g, h // g, d).transpose(0, 1, 3, 4, 2, 5)  # [S, B, g, h/g, T, d]
    scores = y @ v.swapaxes(-1, -2)
    scores -= (scores * p).sum(-1, keepdims=True)
    scores *= p * scale
    of_v = (p.swapaxes(-1, -2) @ y).sum(3)  # [S, B, g, T, d]
    of_q, of_k = scores @ k, (scores.swapaxes(-1, -2) @ q).sum(3)
    draws = len(y)
    of_q = of_q.transpose(0, 1, 4, 2, 3, 5).reshape(draws, batch, length, h, d)
    of_k, of_v = (x.transpose(0, 1, 3, 2, 4) for x in (of_k, of_v))
    back = np.concatenate([of_q, of_k], 3)
    back = np.stack([rotate(one, cos, -sin) for one in back])  # the inverse of a rotation
    return (np.concatenate([back, of_v], 3).reshape(draws, batch, length, -1),)


def body(node: Node) -> str:
    return _BODY


def origin(node: Node, channels: Channels) -> Channels:
    """It is linear in the rows of v, which the query heads of one key/value head share."""
    h, g, d = sizes(node)
    head, element = np.divmod(channels.index, d)
    return Channels(node.inputs[0], (h + g + head // (h // g)) * d + element, (h + 2 * g) * d)


def parts(node: Node, count: int) -> list[slice]:
    """q, k, v."""
    h, g, d = sizes(node)
    return [slice(0, h * d), slice(h * d, (h + g) * d), slice((h + g) * d, count)]


def over_int8(node: Node) -> Node:
    inputs = (*node.inputs[:3], *_with_scales(node.inputs[3:]))
    outputs = (node.outputs[0], *_with_scales(node.outputs[1:]))
    return Node(INT8_ATTENTION, inputs, outputs, node.attrs, node.name)


def _with_scales(names: Iterable[str]) -> list[str]:
    return [one for name in names for one in (name, f"{name}_scale")]


def reach(node: Node, qkv: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Largest |q| and |k| of each pair, after the rotation: qkv [B, T, (h + 2g)·d] → [2, g, d/2]."""
    h, g, d = sizes(node)
    turned = np.abs(rotate(qkv.reshape(*qkv.shape[:2], h + 2 * g, d)[:, :, : h + g], cos, sin)).max((0, 1))
    pairs = np.maximum(*np.split(turned, 2, axis=-1))
    return np.stack([pairs[:h].reshape(g, h // g, d // 2).max(1), pairs[h:]])


def factors(node: Node, s: np.ndarray) -> np.ndarray:
    """s [g, d/2], by which keys are divided → what each row of q, k, v is multiplied by, [(h + 2g)·d]."""
    h, g, d = sizes(node)
    both = np.concatenate([s, s], -1)  # [g, d]
    rows = [np.repeat(both, h // g, 0), 1 / both, np.ones((g, d))]
    return np.concatenate([part.reshape(-1) for part in rows]).astype(np.float32)


ROTARY_ATTENTION = Function(
    ATTENTION,
    operation,
    backward,
    body,
    origin=origin,
    parts=parts,
    int8_cache=Int8Cache(over_int8, reach, factors),
)
