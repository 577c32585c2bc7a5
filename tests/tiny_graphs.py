"""Tiny random quantized graphs, made in memory: one of every function, odd sizes, both packings."""

from __future__ import annotations

import numpy as np

from flatlm.kernels_arm import expert_layout, layout, ops
from flatlm.runtime.format.graph import Graph, Node, Tensor

VOCABULARY, HIDDEN, INTERMEDIATE, LAYERS, CONTEXT = 53, 20, 37, 2, 24
HEADS, KV_HEADS, HEAD_SIZE = 6, 2, 4
EXPERTS, KEPT, GROUPED = 6, 2, {"groups": 3, "keep": 2}
ROUTES = {
    "experts": {"kind": "softmax", "normalize": 1},
    "sigmoid_experts": {"kind": "sigmoid", "normalize": 1, "floor": 1e-20, "scale": 1.5, **GROUPED},
    "topk_experts": {"kind": "topk_softmax"},
}
OF_ATTENTION = {"qk_norm", "own", "all", "norm_last", "no_rotation", "window", "softcap", "sinks", "slopes"}
OPTIONS = {"norms", "centered", "plain", "output_gate", "head_gate", "positions", "logit_cap"}
OPTIONS |= {*ops.PLAIN_ACTS, *OF_ATTENTION, *ROUTES}
WINDOW = 5  # of the first layer


def quantized_graph(seed: int = 0, kv: str = "float32", activations: str = "static", *options: str) -> Graph:
    """A decoder of two layers; embedding and head share one weight. kv: the cache, float32 or int8.

    activations: "static", or "token": a step per token but in the second layer. Options:

        norms       more of them, of the embedding, of activations and of what each block adds, which no
                    product can take in
        qk_norm     a norm of each head of queries and of keys
        an activation    in the place of silu
        plain       the activation of one product, not of a gate
        output_gate, head_gate      of attention's output, a gate for each column or for each head
        window      a query of the first layer sees so many positions
        experts     the second layer's MLP are experts, the first's beside others that all tokens go to; also
                    sigmoid_experts (of groups, with other numbers for the choice) and topk_experts
        own, all    of qk_norm: a weight for each head, or one norm of all heads
        norm_last   qk_norm after the rotation
        no_rotation of the second layer
        softcap, slopes, sinks      of attention; logit_cap: of the logits
        centered    all norms
        positions   a row for each position is added to the embedding
    """
    assert {*options} <= OPTIONS
    return Maker(np.random.default_rng(seed), kv, activations == "token", {*options}).decoder()


def matrix(rng: np.random.Generator, rows: int, columns: int, bits: int, excess: int = 0) -> np.ndarray:
    """Random integer weights [rows, columns], `excess` of them outside −8…7 if bits is 4."""
    weights = rng.integers(-8, 8, (rows, columns)) if bits == 4 else rng.integers(-127, 128, (rows, columns))
    where = rng.choice(weights.size, excess, replace=False)
    weights.reshape(-1)[where] = rng.choice([-119, -9, 8, 119], excess)
    return weights


def packed(weights: np.ndarray, bits: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Weight tensor, excess_delta, excess_value."""
    shape = layout.packed_shape(*weights.shape, bits)
    if bits == 8:
        data = layout.pack(weights, 8).reshape(shape)
        return Tensor.of(data), np.zeros(0, np.uint8), np.zeros(0, np.int8)
    return Tensor("uint4", shape, layout.pack(weights, 4).reshape(-1)), *layout.encode_excess(weights)


def flattening(
    rng: np.random.Generator, columns: int, levels: int, wide: float = 0.2
) -> dict[str, np.ndarray]:
    """limit, where that share of the channels has two or three pieces."""
    pieces = np.where(rng.random(columns) < wide, rng.integers(2, 4, columns), 1)
    return {"limit": np.float32(pieces * levels)}


class Maker:
    """Makes such a graph."""

    def __init__(self, rng: np.random.Generator, kv: str, by_token: bool, options: set[str]) -> None:
        self.rng, self.kv, self.by_token, self.options, self.graph = rng, kv, by_token, options, Graph()

    def decoder(self) -> Graph:
        graph = self.graph
        frequency = (1e4 ** (-np.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)).astype(np.float32)
        graph.constants["rotary.inverse_frequency"] = Tensor.of(frequency)
        self.weight("embedding", VOCABULARY, HIDDEN, 4)
        graph.nodes.append(
            Node("RotaryTable", ("position_ids", "rotary.inverse_frequency"), ("cos", "sin"), {}, "rotary")
        )
        names = [f"embedding.{part}" for part in ("weight", "scale", "excess_delta", "excess_value")]
        attrs = {"rows": VOCABULARY, "columns": HIDDEN, "offset": 8}
        x = self.normed(self.node("FlatEmbedding", "embedding", "input_ids", *names, **attrs))
        if "positions" in self.options:
            self.weight("positions", CONTEXT + 3, HIDDEN, 8)
            names = [name.replace("embedding", "positions") for name in names]
            attrs = {"rows": CONTEXT + 3, "columns": HIDDEN, "offset": 0}
            row = self.node("FlatEmbedding", "positions", "position_ids", *names, **attrs)
            x = self.node("Add", "positions.add", x, row)
        for i in range(LAYERS):
            x = self.layer(i, x)
        normed = self.norm("norm", x)
        capped = "logit_cap" in self.options
        output = "uncapped" if capped else "logits"
        self.linear("head", normed, VOCABULARY, HIDDEN, 4, weight="embedding", output=output)
        if capped:
            graph.nodes.append(Node("SoftCap", (output,), ("logits",), {"softcap": 2.0}, "softcap"))
        graph.inputs = ["input_ids", "position_ids"]
        graph.inputs += [name for i in range(LAYERS) for name in self.cached("past_key_values", i)]
        graph.outputs = ["logits"]
        graph.outputs += [name for i in range(LAYERS) for name in self.cached("present", i)]
        graph.metadata = {"vocab_size": str(VOCABULARY), "context_length": str(CONTEXT)}
        return graph

    def layer(self, i: int, x: str) -> str:
        bits = (4, 8)[i % 2]
        x = self.mixer(i, x, bits)
        at = f"layers.{i}.mlp"
        normed = self.norm(f"{at}.norm", x)
        for option in self.options & {*ROUTES}:
            more = self.normed(self.experts(at, normed, (4, 8)[i], option))
            x = self.node("Add", f"{at}.experts_add", x, more)
            if i == 1:
                return x
        plain = "plain" in self.options
        made, op = (INTERMEDIATE, "Activation") if plain else (2 * INTERMEDIATE, "Gated")
        gate_up = self.linear(f"{at}.gate_up", normed, made, HIDDEN, bits, levels=7)
        name = next((act for act in ops.PLAIN_ACTS if act in self.options), "silu")
        numbers = dict(zip(ops.ACT_NUMBERS.get(name, ()), (0.8, 1.3, 0.5), strict=False))
        act = self.normed(self.node(op, f"{at}.act", gate_up, act=name, **numbers), INTERMEDIATE)
        down = self.linear(f"{at}.down", act, HIDDEN, INTERMEDIATE, 4)
        return self.node("Add", f"{at}.add", x, self.normed(down))

    def mixer(self, i: int, x: str, bits: int) -> str:
        at, width = f"layers.{i}.attention", HEADS * HEAD_SIZE
        rows = (HEADS + 2 * KV_HEADS) * HEAD_SIZE
        qkv = self.linear(f"{at}.qkv", self.norm(f"{at}.norm", x), rows, HIDDEN, bits)
        self.attention(i, at, qkv)
        out = self.linear(f"{at}.out", self.output_gate(at, f"{at}.attend"), HIDDEN, width, 8)
        return self.node("Add", f"{at}.add", x, self.normed(out))

    def experts(self, at: str, normed: str, bits: int, option: str) -> str:
        """What the experts add: odd sizes, with more than one digit where a channel's limit says so."""
        router = self.linear(f"{at}.router", normed, EXPERTS, HIDDEN, 8)
        names = (f"{at}.route.choice", f"{at}.route.shares")
        attrs, inputs = {"experts": EXPERTS, "kept": KEPT, **ROUTES[option]}, (router,)
        if "groups" in attrs:
            select = self.rng.standard_normal(EXPERTS).astype(np.float32)
            self.graph.constants[f"{at}.route.select"] = Tensor.of(select)
            attrs, inputs = {**attrs, "selected": 1}, (router, f"{at}.route.select")
        self.graph.nodes.append(Node("Route", inputs, names, attrs, f"{at}.route"))
        up = self.of_experts(f"{at}.experts.gate_up", normed, names[0], 2 * 19, HIDDEN, bits, 0.2)
        clamp = {"alpha": 1.7, "limit": 0.75} if option == "topk_experts" else {}
        op, attrs = ("ClampedGate", clamp) if clamp else ("Gated", {"act": "silu"})
        act = self.node(op, f"{at}.experts.act", up, **attrs)
        down = self.of_experts(f"{at}.experts.down", act, names[0], HIDDEN, 19, 12 - bits, 1.0)
        return self.node("ExpertSum", f"{at}.experts.sum", down, *names)

    def of_experts(
        self, name: str, x: str, choice: str, rows: int, columns: int, bits: int, wide: float
    ) -> str:
        excess = rows // 2 if bits == 4 else 0
        matrices = (matrix(self.rng, rows, columns, bits, excess) for _ in range(EXPERTS))
        packed = expert_layout.pack(matrices, bits)
        shape = expert_layout.packed_shape(EXPERTS, rows, columns, bits)
        step = (0.3 if bits == 4 else 0.03) / np.sqrt(columns)
        weight = Tensor("uint4", shape, packed.packed.reshape(-1)) if bits == 4 else None
        constants = {
            "weight": weight or Tensor.of(packed.packed.reshape(shape)),
            "scale": Tensor.of((self.rng.random((EXPERTS, rows)) * step).astype(np.float32)),
            "bias": Tensor.of(self.rng.standard_normal((EXPERTS, rows)).astype(np.float32) * np.float32(0.1)),
            "limit": Tensor.of(flattening(self.rng, columns, 127, wide)["limit"]),
            "excess_start": Tensor.of(packed.starts),
            "excess_delta": Tensor.of(packed.delta),
            "excess_value": Tensor.of(packed.value),
        }
        self.graph.constants |= {f"{name}.{part}": tensor for part, tensor in constants.items()}
        attrs = {"rows": rows, "columns": columns, "offset": layout.offset_of(bits), "levels": 127}
        inputs = (f"{name}.{part}" for part in constants)
        return self.node("FlatExperts", name, x, next(inputs), choice, *inputs, experts=EXPERTS, **attrs)

    def cached(self, prefix: str, i: int) -> list[str]:
        """The parts of a layer's cache, before or after the step."""
        parts = ("key", "key_scale", "value", "value_scale") if self.kv == "int8" else ("key", "value")
        return [f"{prefix}.{i}.{part}" for part in parts]

    def attention(self, i: int, at: str, qkv: str) -> None:
        past, present = self.cached("past_key_values", i), self.cached("present", i)
        sizes = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "head_size": HEAD_SIZE}
        q, k, v = (f"{at}.heads.{part}" for part in "qkv")
        self.graph.nodes.append(Node("Heads", (qkv,), (q, k, v), sizes, f"{at}.heads"))
        last = "norm_last" in self.options
        q, k = (x if last else self.head_norm(x, x) for x in (q, k))
        if "no_rotation" not in self.options or i == 0:
            q, k = (self.node("Rotate", f"{at}.rotate_{x[-1]}", x, "cos", "sin") for x in (q, k))
        q, k = (self.head_norm(f"{at}.heads.{p}", x) if last else x for p, x in (("q", q), ("k", k)))
        state = {"state": self.kv}
        self.graph.nodes.append(Node("Append", (k, v, *past), tuple(present), state, f"{at}.append"))
        options: dict = {"window": WINDOW} if "window" in self.options and i == 0 else {}
        options |= {"softcap": 0.5} if "softcap" in self.options else {}
        by_head = [name for name in ("sinks", "slopes") if name in self.options]
        for name in by_head:
            values = self.rng.standard_normal(HEADS).astype(np.float32)
            self.graph.constants[f"{at}.{name}"] = Tensor.of(
                np.abs(values) / 9 if name == "slopes" else values
            )
        options |= dict.fromkeys(by_head, 1) | state
        constants = [f"{at}.{name}" for name in by_head]
        self.node("Attend", f"{at}.attend", q, *present, *constants, scale=HEAD_SIZE**-0.5, **options)

    def output_gate(self, at: str, x: str) -> str:
        """x by a gate, if there is one, that the attention's norm feeds."""
        gates = {"output_gate": HEADS * HEAD_SIZE, "head_gate": HEADS}
        for gate in self.options & {*gates}:
            made = self.linear(f"{at}.gate", f"{at}.norm", gates[gate], HIDDEN, 8)
            x = self.node("OutputGate", f"{at}.gated", x, made, act="sigmoid")
        return x

    def node(self, op: str, name: str, *inputs: str, **attrs) -> str:
        self.graph.nodes.append(Node(op, inputs, (name,), attrs, name))
        return name

    def norm(self, name: str, x: str, columns: int = HIDDEN) -> str:
        self.graph.constants[f"{name}.weight"] = Tensor.of(self.rng.random(columns, np.float32) + 0.5)
        return self.node("Norm", name, x, f"{name}.weight", epsilon=1e-5, **self.centered)

    @property
    def centered(self) -> dict[str, int]:
        return {"centered": 1} if "centered" in self.options else {}

    def head_norm(self, heads: str, x: str) -> str:
        """x, of what `Heads` calls `heads`, by its norm, if there is one."""
        if "qk_norm" not in self.options:
            return x
        name = heads.replace("heads.", "norm_")
        scope = next((scope for scope in ("own", "all") if scope in self.options), "head")
        number = 1 if scope == "head" else HEADS if heads.endswith("q") else KV_HEADS
        weight = self.rng.random(number * HEAD_SIZE, np.float32) + 0.5
        self.graph.constants[f"{name}.weight"] = Tensor.of(weight)
        more = self.centered | ({} if scope == "head" else {"scope": scope})
        return self.node("HeadNorm", name, x, f"{name}.weight", epsilon=1e-5, **more)

    def normed(self, x: str, columns: int = HIDDEN) -> str:
        """One of the additional norms."""
        return self.norm(f"{x}.norm", x, columns) if "norms" in self.options else x

    def weight(self, name: str, rows: int, columns: int, bits: int) -> None:
        integers = matrix(self.rng, rows, columns, bits, excess=rows // 8 if bits == 4 else 0)
        tensor, delta, value = packed(integers, bits)
        step = (0.3 if bits == 4 else 0.03) / np.sqrt(columns)
        scale = (self.rng.random(rows) * step).astype(np.float32)
        self.graph.constants |= {
            f"{name}.weight": tensor,
            f"{name}.scale": Tensor.of(scale),
            f"{name}.excess_delta": Tensor.of(delta),
            f"{name}.excess_value": Tensor.of(value),
        }

    def linear(
        self,
        name: str,
        x: str,
        rows: int,
        columns: int,
        bits: int,
        *,
        levels: int = 127,
        weight: str = "",
        output: str = "",
    ) -> str:
        if not weight:
            weight = name
            self.weight(name, rows, columns, bits)
        by_token = self.by_token and not name.startswith("layers.1.")
        steps = np.float32(levels / 2.0)  # the inputs of a tiny random model are about one
        scale = self.graph.array(f"{weight}.scale")
        constants = {
            "scale": scale if by_token else scale / steps,
            "bias": self.rng.standard_normal(rows).astype(np.float32) * np.float32(0.1),
            **({} if by_token else {"inverse_scale": np.array(steps)}),
            **flattening(self.rng, columns, levels),
        }
        self.graph.constants |= {f"{name}.{part}": Tensor.of(array) for part, array in constants.items()}
        own = (f"{name}.{part}" for part in constants)
        inputs = (x, f"{weight}.weight", *own, f"{weight}.excess_delta", f"{weight}.excess_value")
        attrs = {"rows": rows, "columns": columns, "offset": layout.offset_of(bits), "levels": levels}
        op = "FlatLinearToken" if by_token else "FlatLinear"
        self.graph.nodes.append(Node(op, inputs, (output or name,), attrs, name))
        return output or name
