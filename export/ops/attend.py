"""Attend: causal softmax(q · keysᵀ · scale) · values over all positions of a K/V cache, or a window.

Legend: B windows, T tokens, h heads, g key/value heads, d head size, S draws.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from flatlm.export.onnx_text import attention
from flatlm.export.probabilities import log_softmax
from flatlm.kernels_arm.reference import Scores
from flatlm.runtime import ops
from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.ops.append import INT8
from flatlm.runtime.ops.attend import BY_HEAD, window
from flatlm.runtime.ops.attend import scores as scores_of

from .append import as_int8, is_int8, with_scales
from .function import Channels, Env, Function, Operation
from .heads import sizes_of

NAME = "Attend"

_QUERIES = 128  # queries of one block: keys after its end are skipped, those before its window, too

# Which keys a window of the function's attribute has: lines for `mask`
_ALLOWED = """
    window = Constant <value_int: int = @window> ()
    unseen_before = Sub (query_column, window)
    allowed = Greater (key_position, unseen_before)
"""


def operation(graph: Graph, node: Node) -> Operation:
    scale, seen, options = np.float32(node.attrs["scale"]), window(node), scores_of(graph, node)

    def attend(q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
        batch, h, length, d = q.shape
        g = keys.shape[1]
        q = q.reshape(batch, g, h // g, length, d) * scale
        out = _causal_attention(q, np.ascontiguousarray(keys), np.ascontiguousarray(values), seen, options)
        return (out.transpose(0, 3, 1, 2, 4).reshape(batch, length, h * d),)

    def attend_int8(
        q: np.ndarray, keys: np.ndarray, key_scale: np.ndarray, values: np.ndarray, value_scale: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        integers, q_scale = as_int8(q)
        return attend(integers * q_scale, keys * key_scale, values * value_scale)

    return attend_int8 if is_int8(node) else attend


def _hidden(first: int, queries: int, keys: int, seen: int) -> np.ndarray:
    """What is added to scores [queries, keys] of queries from position `first` on and keys from 0 on."""
    before = np.arange(first, first + queries)[:, None] - np.arange(keys)
    visible = (before >= 0) & (before < seen) if seen else before >= 0
    return np.where(visible, np.float32(0), np.float32(-np.inf))


def _adjust(scores: np.ndarray, first: int, start: int, options: Scores) -> None:
    """In place softcap and slopes, of scores [B, g, h/g, queries from `first` on, keys from `start` on]."""
    groups, shared, queries, keys = scores.shape[1:]
    if cap := options.softcap:
        scores /= np.float32(cap)
        np.tanh(scores, out=scores)
        scores *= np.float32(cap)
    if options.slopes is not None:
        distance = np.arange(start, start + keys) - np.arange(first, first + queries)[:, None]
        scores += options.slopes.reshape(groups, shared, 1, 1) * distance.astype(np.float32)


def _sinks(options: Scores, groups: int, shared: int) -> np.ndarray | None:
    """[g, h/g, 1, 1]"""
    return None if options.sinks is None else options.sinks.reshape(groups, shared, 1, 1)


def _causal_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: int, options: Scores) -> np.ndarray:
    """q [B, g, h/g, T, d], k and v [B, g, T, d] → like q. seen: the window."""
    batch, groups, shared, length, size = q.shape
    out, sinks = np.empty(q.shape, np.float32), _sinks(options, groups, shared)
    for start in range(0, length, _QUERIES):
        stop = min(start + _QUERIES, length)
        part = q[:, :, :, start:stop].reshape(batch, groups, -1, size)
        first = max(0, start + 1 - seen) if seen else 0
        scores = part @ k[:, :, first:stop].swapaxes(2, 3)
        view = scores.reshape(batch, groups, shared, stop - start, stop - first)
        at = first if seen else start  # before it, all queries see all keys
        _adjust(view, start, first, options)
        view[..., at - first :] += _hidden(start - at, stop - start, stop - at, seen)
        largest = scores.max(-1, keepdims=True)
        if sinks is not None:
            own = np.broadcast_to(sinks, (*view.shape[:-1], 1)).reshape(largest.shape)
            largest = np.maximum(largest, own)
        scores -= largest
        np.exp(scores, out=scores)
        total = scores.sum(-1, keepdims=True)
        if sinks is not None:
            total += np.exp(own - largest)
        result = (scores @ v[:, :, first:stop]) / total
        out[:, :, :, start:stop] = result.reshape(batch, groups, shared, stop - start, size)
    return out


def _softmax(scores: np.ndarray, sinks: np.ndarray | None) -> np.ndarray:
    """Over the last axis; with sinks less than one in all."""
    if sinks is None:
        weights: np.ndarray = np.exp(log_softmax(scores))
        return weights
    largest = np.maximum(scores.max(-1, keepdims=True), sinks)
    weights = np.exp(scores - largest)
    weights /= weights.sum(-1, keepdims=True) + np.exp(sinks - largest)
    return weights


def backward(graph: Graph, node: Node, env: Env, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of a float32 cache; all scores at once: windows are short here."""
    q, k, v = (env[name] for name in node.inputs[:3])
    batch, h, length, d = q.shape
    g, draws = k.shape[1], len(y)
    scale, options = np.float32(node.attrs["scale"]), scores_of(graph, node)
    q = q.reshape(batch, g, h // g, length, d)
    k, v = k[:, :, None], v[:, :, None]
    p = q @ k.swapaxes(-1, -2) * scale
    slope = scale * (1 - np.square(np.tanh(p / np.float32(cap)))) if (cap := options.softcap) else scale
    _adjust(p, 0, 0, options)
    p += _hidden(0, length, length, window(node))
    p = _softmax(p, _sinks(options, g, h // g))
    y = y.reshape(-1, batch, length, g, h // g, d).transpose(0, 1, 3, 4, 2, 5)  # [S, B, g, h/g, T, d]
    scores = y @ v.swapaxes(-1, -2)
    scores -= (scores * p).sum(-1, keepdims=True)
    scores *= p * slope
    of_v = (p.swapaxes(-1, -2) @ y).sum(3)  # [S, B, g, T, d]
    of_q, of_k = scores @ k, (scores.swapaxes(-1, -2) @ q).sum(3)
    return of_q.reshape(draws, batch, h, length, d), of_k, of_v


def body(node: Node) -> str:
    options = [name for name in ("window", "softcap", *BY_HEAD) if name in node.attrs]
    by_head = [name for name in BY_HEAD if name in options]
    return attention.body(is_int8(node), options, by_head, _ALLOWED if window(node) else "")


def origin(graph: Graph, node: Node, channels: Channels) -> Channels:
    """It is linear in the values, which the query heads of one key/value head share."""
    values = ops.named(node)["present_value"]
    h, d = sizes_of(graph, node.inputs[0])
    g, _ = sizes_of(graph, values)
    head, element = np.divmod(channels.index, d)
    return Channels(values, head // (h // g) * d + element, g * d, channels.power)


def over_int8(node: Node) -> Node:
    q, keys, values, *by_head = node.inputs
    inputs = (q, *with_scales((keys, values)), *by_head)
    return replace(node, inputs=inputs, attrs={**node.attrs, "state": INT8})


ATTEND = Function(NAME, operation, backward, body, origin=origin, over_int8=over_int8)
