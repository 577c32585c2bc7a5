"""Tiny random quantized graphs whose first layer mixes tokens by a convolution or a matrix."""

from __future__ import annotations

import numpy as np

from flatlm.runtime.format.graph import Graph, Node, Tensor
from tests.tiny_graphs import HIDDEN, Maker

MIXERS = ("conv", "delta", "gated")
TAPS, KEY_HEADS, KEY_SIZE, RECURRENT_HEADS, VALUE_SIZE = 4, 2, 20, 4, 36


def recurrent_graph(
    mixer: str, seed: int = 0, kv: str = "float32", activations: str = "static", context: int = 24
) -> Graph:
    """As `quantized_graph`, the first layer's mixer being one of MIXERS."""
    maker = RecurrentMaker(np.random.default_rng(seed), kv, activations == "token", set())
    maker.kind = mixer
    graph = maker.decoder()
    graph.metadata["context_length"] = str(context)
    return graph


class RecurrentMaker(Maker):
    """LFM2's short convolution, Qwen3.5's gated delta net, Mamba 2."""

    kind = MIXERS[0]

    def mixer(self, i: int, x: str, bits: int) -> str:
        if i:
            return super().mixer(i, x, bits)
        at = f"layers.{i}.{self.kind}"
        mix = {"conv": self.short_conv, "delta": self.delta, "gated": self.gated}[self.kind]
        mixed, width = mix(at, self.norm(f"{at}.norm", x), bits)
        out = self.linear(f"{at}.out", mixed, HIDDEN, width, 8)
        return self.node("Add", f"{at}.add", x, out)

    def cached(self, prefix: str, i: int) -> list[str]:
        if i:
            return super().cached(prefix, i)
        names = ["conv"] if self.kind == "conv" else ["conv", "state"]
        return [f"{prefix.partition('_')[0]}_{name}.{i}" for name in names]

    def short_conv(self, at: str, x: str, bits: int) -> tuple[str, int]:
        b, c, u = self.parts(at, self.linear(f"{at}.in", x, 3 * HIDDEN, HIDDEN, bits), [HIDDEN] * 3)
        y = self.conv(at, self.node("Mul", f"{at}.gated", b, u), HIDDEN)
        return self.node("Mul", f"{at}.mixed", c, y), HIDDEN

    def delta(self, at: str, x: str, bits: int) -> tuple[str, int]:
        keys, width = KEY_HEADS * KEY_SIZE, RECURRENT_HEADS * VALUE_SIZE
        sizes = [2 * keys + width, width, RECURRENT_HEADS, RECURRENT_HEADS]
        qkv, z, dt, beta = self.parts(at, self.linear(f"{at}.in", x, sum(sizes), HIDDEN, bits), sizes)
        qk, v = self.parts(f"{at}.qkv", self.conv(at, qkv, sizes[0], act="silu"), [2 * keys, width])
        scale = np.repeat(np.float32([1 / KEY_SIZE, KEY_SIZE**-0.5]), keys)
        q, k = self.parts(f"{at}.qk", self.grouped(f"{at}.qk_norm", qk, scale, KEY_SIZE), [keys, keys])
        y = self.linear_attention(at, [q, k, v, dt, beta], update_rule="gated_delta")
        weight = self.rng.random(width, np.float32) + 0.5
        normed = self.grouped(f"{at}.out_norm", y, weight, VALUE_SIZE)
        return self.node("OutputGate", f"{at}.mixed", normed, z, act="silu"), width

    def gated(self, at: str, x: str, bits: int) -> tuple[str, int]:
        keys, width = KEY_HEADS * KEY_SIZE, RECURRENT_HEADS * VALUE_SIZE
        sizes = [width, 2 * keys + width, RECURRENT_HEADS]
        z, xbc, dt = self.parts(at, self.linear(f"{at}.in", x, sum(sizes), HIDDEN, bits), sizes)
        conv = self.conv(at, xbc, sizes[1], act="silu")
        v, k, q = self.parts(f"{at}.xbc", conv, [width, keys, keys])
        y = self.linear_attention(at, [q, k, v, dt], update_rule="gated", least_step=0.01)
        weight = self.rng.random(width, np.float32) + 0.5
        return self.grouped(
            f"{at}.mixed", self.node("OutputGate", f"{at}.gate", y, z, act="silu"), weight, width // 2
        ), width

    def parts(self, at: str, x: str, sizes: list[int]) -> list[str]:
        names = [f"{at}.part_{i}" for i in range(len(sizes))]
        attrs = {"sizes": " ".join(map(str, sizes))}
        self.graph.nodes.append(Node("Parts", (x,), tuple(names), attrs, f"{at}.parts"))
        return names

    def conv(self, at: str, x: str, channels: int, **act: str) -> str:
        name, taps = f"{at}.conv", TAPS
        weight = self.rng.standard_normal((channels, taps)).astype(np.float32)
        bias = self.rng.standard_normal(channels).astype(np.float32)
        self.graph.constants |= {f"{name}.weight": Tensor.of(weight), f"{name}.bias": Tensor.of(bias)}
        inputs = (x, f"{name}.weight", f"{name}.bias", "past_conv.0")
        attrs = {"channels": channels, "taps": taps, **act}
        self.graph.nodes.append(Node("CausalConv", inputs, (name, "present_conv.0"), attrs, name))
        return name

    def grouped(self, name: str, x: str, weight: np.ndarray, size: int) -> str:
        self.graph.constants[f"{name}.weight"] = Tensor.of(weight)
        return self.node("GroupedNorm", name, x, f"{name}.weight", size=size, epsilon=1e-6)

    def linear_attention(self, at: str, streams: list[str], **attrs) -> str:
        name, heads = f"{at}.attend", RECURRENT_HEADS
        third = "beta" if attrs["update_rule"] == "gated_delta" else "skip"
        constants = {
            "dt_bias": self.rng.standard_normal(heads),
            "decay": -self.rng.random(heads),
            **({"skip": self.rng.standard_normal(heads)} if third == "skip" else {}),
        }
        self.graph.constants |= {
            f"{name}.{part}": Tensor.of(array.astype(np.float32)) for part, array in constants.items()
        }
        inputs = (*streams, *(f"{name}.{part}" for part in constants), "past_state.0")
        attrs |= {"num_heads": heads, "key_heads": KEY_HEADS, "key_size": KEY_SIZE, "value_size": VALUE_SIZE}
        self.graph.nodes.append(Node("LinearAttention", inputs, (name, "present_state.0"), attrs, name))
        return name
