"""LinearAttention: attention through a matrix for each head. At export there is no past.

Legend: B windows, T tokens, h heads, j key heads, k and v columns of a key and of a value, S draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flatlm.export.onnx_text import linear_attention as text
from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.ops.linear_attention import DELTA, NAME, Sizes, signature, sizes_of

from .function import Channels, Env, Function, Operation

_SEGMENT = 32  # tokens between two matrices that are kept on the way back


@dataclass(frozen=True, slots=True)
class _Gates:
    """Of all tokens, [B, T, h]: what the matrix is multiplied by, and the share of a token's update."""

    step: np.ndarray
    fade: np.ndarray
    share: np.ndarray


class _Call:
    """A node with its constants."""

    def __init__(self, graph: Graph, node: Node) -> None:
        self.sizes: Sizes = sizes_of(node)
        self.delta = node.attrs["update_rule"] == DELTA
        self.least = np.float32(node.attrs.get("least_step", 0.0))
        roles = zip(signature(node.attrs).inputs.items(), node.inputs, strict=True)
        constants = {role: graph.array(name) for (role, kind), name in roles if kind is not None}
        self.dt_bias, self.decay = constants["dt_bias"], constants["decay"]
        self.skip = constants.get("skip", np.zeros(self.sizes.heads, np.float32))

    def heads(self, x: np.ndarray) -> np.ndarray:
        """[B, T, j·k] → [B, T, h, k]."""
        apart = x.reshape(*x.shape[:2], self.sizes.key_heads, self.sizes.key_size)
        return np.repeat(apart, self.sizes.heads // self.sizes.key_heads, 2)

    def values(self, v: np.ndarray) -> np.ndarray:
        """[…, h·v] → […, h, v]."""
        return v.reshape(*v.shape[:-1], self.sizes.heads, self.sizes.value_size)

    def gates(self, dt: np.ndarray, beta: np.ndarray | None) -> _Gates:
        step = np.maximum(np.logaddexp(np.float32(0), dt + self.dt_bias), self.least)
        share = step if beta is None else _sigmoid(beta)
        return _Gates(step, np.exp(self.decay * step), share)

    def steps(
        self, state: np.ndarray, k: np.ndarray, v: np.ndarray, gates: _Gates, tokens: range
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """Token, matrix before it, what was missing of its value, matrix after it."""
        for t in tokens:
            faded = state * gates.fade[:, t, :, None, None]
            missing = v[:, t]
            if self.delta:
                missing = missing - np.einsum("bhk,bhkv->bhv", k[:, t], faded)
            u = missing * gates.share[:, t, :, None]
            after = faded + k[:, t, :, :, None] * u[:, :, None]
            yield t, state, missing, after
            state = after

    def first(self, batch: int) -> np.ndarray:
        return np.zeros((batch, self.sizes.heads, self.sizes.key_size, self.sizes.value_size), np.float32)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        share: np.ndarray = 1 / (1 + np.exp(-x))
    return share


def operation(graph: Graph, node: Node) -> Operation:
    call = _Call(graph, node)

    def attend(
        q: np.ndarray, k: np.ndarray, v: np.ndarray, dt: np.ndarray, beta: np.ndarray | None = None
    ) -> tuple[np.ndarray, ...]:
        q, k, v, gates = call.heads(q), call.heads(k), call.values(v), call.gates(dt, beta)
        y = np.empty(v.shape, np.float32)
        for t, _, _, after in call.steps(call.first(len(v)), k, v, gates, range(v.shape[1])):
            y[:, t] = np.einsum("bhk,bhkv->bhv", q[:, t], after)
        if not call.delta:
            y += v * call.skip[:, None]
        return (y.reshape(*y.shape[:2], -1),)

    return attend


def backward(
    graph: Graph, node: Node, env: Env, y: np.ndarray, *present: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Back through time. Matrices are kept every 32 tokens and made again in between."""
    call = _Call(graph, node)
    q, k, v, dt, *others = (env[name] for name in node.inputs if name in env)
    beta = others[0] if call.delta else None
    gates, slope = call.gates(dt, beta), _sigmoid(dt + call.dt_bias)
    slope = np.where(gates.step > call.least, slope, np.float32(0))
    q, k, v, towards = call.heads(q), call.heads(k), call.values(v), call.values(y)
    length = v.shape[1]
    starts = range(0, length, _SEGMENT)
    kept = [call.first(len(v))]
    for start in starts[:-1]:
        *_, (_, _, _, after) = call.steps(kept[-1], k, v, gates, range(start, start + _SEGMENT))
        kept.append(after)
    of_q, of_k = (np.zeros((len(y), *x.shape), np.float32) for x in (q, k))
    of_v, of_fade = np.zeros(towards.shape, np.float32), np.zeros((len(y), *dt.shape), np.float32)
    of_share = np.zeros_like(of_fade)
    ahead = np.zeros((len(y), *kept[0].shape), np.float32)  # of the matrix after a token
    for start, first in zip(reversed(starts), reversed(kept), strict=True):
        done = list(call.steps(first, k, v, gates, range(start, min(start + _SEGMENT, length))))
        for t, before, missing, after in reversed(done):
            f, b = gates.fade[:, t, :, None], gates.share[:, t, :, None]
            of_q[:, :, t] = np.einsum("bhkv,sbhv->sbhk", after, towards[:, :, t])
            ahead = ahead + q[:, t, :, :, None] * towards[:, :, t, :, None]
            of_u = np.einsum("bhk,sbhkv->sbhv", k[:, t], ahead)
            of_k[:, :, t] = np.einsum("sbhkv,bhv->sbhk", ahead, missing * b)
            of_share[:, :, t] = (of_u * missing).sum(-1)
            of_missing = of_u * b
            of_v[:, :, t] = of_missing
            if call.delta:
                faded = before * f[..., None]
                of_k[:, :, t] -= np.einsum("bhkv,sbhv->sbhk", faded, of_missing)
                ahead = ahead - k[:, t, :, :, None] * of_missing[:, :, :, None]
            of_fade[:, :, t] = (ahead * before).sum((-1, -2))
            ahead = ahead * f[..., None]
    of_step = of_fade * gates.fade * call.decay
    if not call.delta:
        of_v += towards * call.skip[:, None]
        of_step += of_share
    found = [_of_key_heads(call, x) for x in (of_q, of_k)]
    found += [of_v.reshape(y.shape), of_step * slope]
    return (*found, of_share * gates.share * (1 - gates.share)) if call.delta else tuple(found)


def _of_key_heads(call: _Call, x: np.ndarray) -> np.ndarray:
    """[S, B, T, h, k] → [S, B, T, j·k]: heads of one key head add up."""
    repeats = call.sizes.heads // call.sizes.key_heads
    summed: np.ndarray = x.reshape(*x.shape[:3], call.sizes.key_heads, repeats, -1).sum(-2)
    return summed.reshape(*x.shape[:3], -1)


def body(node: Node) -> str:
    delta, least = node.attrs["update_rule"] == DELTA, float(node.attrs.get("least_step", 0.0))
    return text.body(sizes_of(node), delta=delta, least=least, attributes=list(node.attrs))


def origin(graph: Graph, node: Node, channels: Channels) -> Channels:
    """It is linear in the values, and so in the columns of each head's matrix."""
    return Channels(node.inputs[2], channels.index, channels.width)


LINEAR_ATTENTION = Function(NAME, operation, backward, body, origin=origin)
