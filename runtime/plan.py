"""Lowering: the graph becomes a flat table of op records that one compiled function walks.

A value of the graph becomes a buffer, and what can be fused is: a Norm, SwiGLU or attention output that
feeds a FlatLinear is quantized as it is computed, and a residual Add becomes the product that adds in place.

    graph                                   records
    FlatEmbedding                           EMBED
    Norm → FlatLinear (qkv)                 QUANTIZE(norm)   PRODUCT
    RotaryAttention                         ROTATE  ATTEND   (ROTATE8, ATTEND8: int8 cache)
    FlatLinear (out) → Add                  QUANTIZE         PRODUCT(add)
    Norm → FlatLinear (gate, up)            QUANTIZE(norm)   PRODUCT
    SwiGLU → FlatLinear (down) → Add        QUANTIZE(swiglu) PRODUCT(add)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flatlm.kernels_arm import layout, lookups, ops, records, reference
from flatlm.kernels_arm.layout import padded
from flatlm.kernels_arm.library import Library
from flatlm.kernels_arm.records import held, record, zeros
from flatlm.runtime.cache import FloatCache, Int8Cache, KVCache
from flatlm.runtime.errors import FormatError
from flatlm.runtime.format.functions import ATTENTIONS, INT8_ATTENTION, LINEARS, TOKEN_LINEAR, named
from flatlm.runtime.format.graph import Graph, Node


@dataclass
class Plan:
    """Records, the buffers they point to, and what the runtime reads and writes each step."""

    ops: np.ndarray  # int64 [count, 24]
    names: list[str]  # the node of each record
    state: np.ndarray  # step words, int64
    ids: np.ndarray  # int64 [batch]
    spans: np.ndarray  # int64 [batch, 4], the step's rows as spans (kernels_arm/spans.py)
    rows: np.ndarray  # int64 [logit rows], the rows of a step whose logits are wanted
    logits: np.ndarray  # float32 [logit rows, vocab padded to 16]
    scratch: int  # bytes per thread
    cache: KVCache
    keep: list[np.ndarray]


def lower(
    graph: Graph, kernels: Library, *, context: int, batch: int, logit_rows: int, slots: int = 1
) -> Plan:
    """The plan for steps of up to `batch` tokens of `slots` sequences, `logit_rows` of them with logits."""
    return _Lowering(graph, kernels, context, batch, logit_rows, slots).run()


class _Lowering:
    """State of one pass over the nodes."""

    def __init__(self, graph: Graph, kernels: Library, context: int, batch: int, logit_rows: int, slots: int):
        self.graph, self.kernels, self.batch, self.logit_rows = graph, kernels, batch, logit_rows
        self.records: list[np.ndarray] = []
        self.names: list[str] = []
        self.keep: list[np.ndarray] = []
        self.buffers: dict[str, np.ndarray] = {}  # float32 [batch, padded columns] of a value
        self.pool: dict[int, list[np.ndarray]] = {}
        self.makers = {output: node for node in graph.nodes for output in node.outputs}
        self.uses = _last_uses(graph)
        self.users = graph.users()
        self.tables: dict[str, np.ndarray] = {}
        self.product_scratch = 0
        self.quantized: tuple = ()  # what stands in the buffers of digits
        layers = [n for n in graph.nodes if n.op in ATTENTIONS]
        if len({n.op for n in layers}) != 1:
            raise FormatError("the layers' K/V caches are of different types")
        self.layer = {node.name: i for i, node in enumerate(layers)}
        head = layers[0].attrs
        self.groups, self.size = int(head["kv_num_heads"]), int(head["head_size"])
        cache = Int8Cache if layers[0].op == INT8_ATTENTION else FloatCache
        self.cache = cache(len(layers), self.groups, self.size, context, slots)
        self.few: dict[str, int] = {}  # what int8 attention shares among layers
        products = (self._integers(node) for node in graph.nodes if node.op in LINEARS)
        self.digits = records.digit_buffers(batch, products, self.keep)

    def run(self) -> Plan:
        ids, rows = np.zeros(self.batch, np.int64), np.zeros(self.logit_rows, np.int64)
        spans, state = np.zeros((self.batch, 4), np.int64), np.zeros(ops.STEP_WORDS, np.int64)
        state[[ops.STEP_IDS, ops.STEP_TABLE, ops.STEP_ROWS]] = [a.ctypes.data for a in (ids, spans, rows)]
        for i, node in enumerate(self.graph.nodes):
            _LOWER[node.op](self, node)
            for name in {n for n in node.inputs if self.uses.get(n) == i and n in self.buffers}:
                self._release(name)
        logits = self.buffers["logits"]
        of_attention = ops.attention8_scratch if self.few else ops.attention_scratch
        scratch = max(self.product_scratch, of_attention(self.size, self.cache.context))
        table = records.table_of(self.records)
        return Plan(table, self.names, state, ids, spans, rows, logits, scratch, self.cache, self.keep)

    # ---- buffers
    def _rows(self, name: str, columns: int, rows: int | None = None) -> np.ndarray:
        """A buffer for value `name`, reused from the pool if one of the size is free."""
        width = padded(columns, layout.ROWS) + layout.ROWS  # a vector may be read past the end of a half
        free = self.pool.get(width) if rows is None else None
        self.buffers[name] = free.pop() if free else zeros(self.keep, (rows or self.batch, width))
        return self.buffers[name]

    def _release(self, name: str) -> None:
        buffer = self.buffers.pop(name)
        if not any(other is buffer for other in self.buffers.values()):
            self.pool.setdefault(buffer.shape[1], []).append(buffer)

    def _held(self, array: np.ndarray, dtype) -> int:
        return held(self.keep, array, dtype)

    def _add(self, name: str, row: np.ndarray) -> None:
        self.records.append(row)
        self.names.append(name)

    # ---- one method per function
    def rotary_table(self, node: Node) -> None:
        frequency = self.graph.array(node.inputs[1])
        for name, table in zip(
            node.outputs, reference.rotary_table(np.arange(self.cache.context), frequency), strict=True
        ):
            self.tables[name] = np.append(table, np.zeros(layout.ROWS, np.float32))  # read past a row's end
            self.keep.append(self.tables[name])

    def embedding(self, node: Node) -> None:
        _, weight, scale, delta, value = node.inputs
        bits = self.graph.bits(weight)
        columns = padded(int(node.attrs["columns"]), layout.COLUMNS)
        out = self._rows(node.outputs[0], columns)
        self._add(node.name, record(
            ops.EMBED, EMBED_WEIGHTS=self._weights(weight), EMBED_BITS=bits,
            EMBED_SCALE=self._held(self.graph.array(scale), np.float32), EMBED_STEPS=columns * bits // 32,
            EMBED_OUT=out.ctypes.data, EMBED_STRIDE=out.strides[0], **self._excess(node, delta, value),
        ))  # fmt: skip

    def fused(self, node: Node) -> None:
        """Norm and SwiGLU run inside the quantization of the FlatLinear they feed."""
        for user in self.users[node.outputs[0]]:
            if user.op not in LINEARS:
                raise FormatError(
                    f"node {node.name}: {node.op} must feed FlatLinear only, it feeds {user.op}"
                )
        source = node.inputs[0]
        if node.op == "Norm" and self.makers[source].op in ATTENTIONS:
            raise FormatError(f"node {node.name}: a Norm of attention has no kernel, use --backend numpy")
        self.uses[source] = max(
            self.uses.get(source, 0), *(self.graph.nodes.index(u) for u in self.users[node.outputs[0]])
        )

    def linear(self, node: Node) -> None:
        x, integers, last = node.inputs[0], self._integers(node), node.outputs[0] == "logits"
        weights = self._product_weights(node, integers)
        roles, sparse = named(node), weights.excess is not None
        made = (x, node.op, node.attrs["levels"], roles["limit"], roles.get("inverse_scale"))
        if self.quantized not in ((*made, True), (*made, sparse)):  # else by the other plane
            rows = self._quantized_rows(x)
            self._add(node.name, records.quantize_record(
                integers, rows, self.digits, self.keep, by_row=sparse, last=last
            ))  # fmt: skip
            self.quantized = (*made, sparse)  # with rows for the excess to be looked up in, or not
        out, residual = self._output(node, int(node.attrs["rows"]), last)
        self._add(node.name, records.product_record(
            integers, weights, out, self.digits, self.keep, add=residual, last=last
        ))  # fmt: skip
        self.product_scratch = max(self.product_scratch, integers.scratch)

    def _integers(self, node: Node) -> records.Integers:
        roles = named(node)
        scale = None if node.op == TOKEN_LINEAR else self.graph.array(roles["inverse_scale"]).reshape(-1)[0]
        return records.Integers(self.graph.array(roles["limit"]), int(node.attrs["levels"]), scale)

    def _product_weights(self, node: Node, integers: records.Integers) -> records.Weights:
        """The packed bytes where they are mapped, with the sparse excess as lookups."""
        weight, scale, bias = node.inputs[1:4]
        delta, value = (self.graph.array(name) for name in node.inputs[-2:])
        rows = int(node.attrs["rows"])
        excess = lookups.of_product(self.kernels, delta, value, rows, integers.groups, integers.limit)
        packed, bits = self.graph.constants[weight].data, self.graph.bits(weight)
        return records.Weights(packed, bits, self.graph.array(scale), self.graph.array(bias), excess)

    def _quantized_rows(self, x: str) -> records.Rows:
        """The rows of which value x is made as it is quantized."""
        maker = self.makers[x]
        if maker.op == "Norm":
            weight = self.graph.array(maker.inputs[1])
            return records.Rows(
                self.buffers[maker.inputs[0]], ops.NORM, float(maker.attrs["epsilon"]), weight
            )
        if maker.op == "SwiGLU":
            return records.Rows(self.buffers[maker.inputs[0]], ops.SWIGLU)
        return records.Rows(self.buffers[x])

    def _output(self, node: Node, rows: int, last: bool) -> tuple[np.ndarray, bool]:
        """Where a product writes: into the residual stream if all it feeds is an Add where that ends."""
        name = node.outputs[0]
        if last:
            return self._rows(name, rows, self.logit_rows), False
        users = self.users[name]
        if len(users) == 1 and users[0].op == "Add":
            add = users[0]
            stream = next(i for i in add.inputs if i != name)
            if stream in self.buffers and self._is_last_reader(add, stream, node):
                self.buffers[name] = self.buffers[stream]
                return self.buffers[stream], True
        return self._rows(name, rows), False

    def _is_last_reader(self, add: Node, stream: str, product: Node) -> bool:
        """Whether nothing but `add` reads `stream` once `product` has been added to it."""
        nodes = self.graph.nodes
        end = nodes.index(add)
        between = {name for node in nodes[nodes.index(product) + 1 : end] for name in node.inputs}
        fused = {self.makers[name].inputs[0] for name in between if self._is_fused(name)}
        return self.uses[stream] == end and stream not in between | fused

    def _is_fused(self, name: str) -> bool:
        return name in self.makers and _LOWER[self.makers[name].op] is _Lowering.fused

    def add(self, node: Node) -> None:
        first, second = node.inputs
        if self.buffers[first] is not self.buffers[second]:
            raise FormatError(
                f"node {node.name}: Add joins two values of which neither is a product's residual"
            )
        self.buffers[node.outputs[0]] = self.buffers[first]

    def attention(self, node: Node) -> None:
        heads, groups, size = (int(node.attrs[a]) for a in ("num_heads", "kv_num_heads", "head_size"))
        if (groups, size) != (self.groups, self.size):
            raise FormatError(f"node {node.name}: {groups} K/V heads of {size}, the first layer has others")
        qkv = self.buffers[node.inputs[0]]
        cos, sin = (self.tables[name].ctypes.data for name in node.inputs[1:3])
        layer = self.layer[node.name]
        keys, values = self.cache.keys[layer].ctypes.data, self.cache.values[layer].ctypes.data
        self._add(node.name, record(
            ops.ROTATE, R_QKV=qkv.ctypes.data, R_STRIDE=qkv.strides[0], R_HEADS=heads, R_GROUPS=groups,
            R_SIZE=size, R_COS=cos, R_SIN=sin, R_KEYS=keys, R_VALUES=values, R_CONTEXT=self.cache.context,
        ))  # fmt: skip
        out = self._rows(node.outputs[0], heads * size)
        scale = self._held(np.array([node.attrs["scale"]]), np.float32)
        self._add(node.name, record(
            ops.ATTEND, A_QKV=qkv.ctypes.data, A_STRIDE=qkv.strides[0], A_HEADS=heads, A_GROUPS=groups,
            A_SIZE=size, A_FLOATS=scale, A_KEYS=keys, A_VALUES=values, A_CONTEXT=self.cache.context,
            A_OUT=out.ctypes.data, A_OUT_STRIDE=out.strides[0],
        ))  # fmt: skip

    def attention_int8(self, node: Node) -> None:
        heads, groups, size = (int(node.attrs[a]) for a in ("num_heads", "kv_num_heads", "head_size"))
        if (groups, size) != (self.groups, self.size):
            raise FormatError(f"node {node.name}: {groups} K/V heads of {size}, the first layer has others")
        assert isinstance(self.cache, Int8Cache)
        qkv, layer = self.buffers[node.inputs[0]], self.layer[node.name]
        cos, sin = (self.tables[name].ctypes.data for name in node.inputs[1:3])
        cached = ("keys", "key_scales", "values", "value_scales")
        at = {f"I_{name.upper()}": getattr(self.cache, name)[layer].ctypes.data for name in cached}
        out = self._rows(node.outputs[0], heads * size)
        fields = {
            "I_QKV": qkv.ctypes.data, "I_STRIDE": qkv.strides[0], "I_HEADS": heads, "I_GROUPS": groups,
            "I_SIZE": size, "I_COS": cos, "I_SIN": sin,
            "I_FLOATS": self._held(np.array([node.attrs["scale"]]), np.float32),
            "I_CONTEXT": self.cache.context, "I_OUT": out.ctypes.data, "I_OUT_STRIDE": out.strides[0],
            **at, **self._shared(heads),
        }  # fmt: skip
        self._add(node.name, record(ops.ROTATE8, **fields))
        self._add(node.name, record(ops.ATTEND8, **fields))

    def _shared(self, heads: int) -> dict[str, int]:
        """Buffers of int8 attention that all layers use in turn: queries, parts of blocks, counters."""
        width, blocks = padded(self.size, layout.ROWS), self.cache.context // ops.KV_BLOCK
        sizes = {
            "I_QUERIES": self.batch * heads * (width // 4 + 4),
            "I_PARTS": ops.FEW_TOKENS * heads * blocks * (width + 16),
            "I_COUNTERS": 16 * self.groups,
        }
        self.few = self.few or {name: zeros(self.keep, (n,)).ctypes.data for name, n in sizes.items()}
        return self.few

    # ---- constants
    def _weights(self, name: str) -> int:
        """The packed bytes where they are mapped: never copied."""
        data = self.graph.constants[name].data
        self.keep.append(data)
        return data.ctypes.data

    def _excess(self, node: Node, delta: str, value: str) -> dict[str, int]:
        """The sparse excess of an embedding row by row; nothing for a node without any."""
        deltas, totals = self.graph.array(delta), self.graph.array(value)
        if not deltas.size:
            return {}
        rows, columns = (padded(int(node.attrs[a]), 16) for a in ("rows", "columns"))
        table = layout.decode_excess(deltas, totals, rows, columns)
        return {
            "EMBED_STARTS": self._held(table.starts, np.int32),
            "EMBED_COLUMNS": self._held(table.columns, np.uint16),
            "EMBED_EXCESS": self._held(table.excess, np.int8),
        }


_LOWER = {
    "RotaryTable": _Lowering.rotary_table,
    "FlatEmbedding": _Lowering.embedding,
    "Norm": _Lowering.fused,
    "SwiGLU": _Lowering.fused,
    **dict.fromkeys(LINEARS, _Lowering.linear),
    "Add": _Lowering.add,
    "RotaryAttention": _Lowering.attention,
    "RotaryAttentionInt8": _Lowering.attention_int8,
}


def _last_uses(graph: Graph) -> dict[str, int]:
    return {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
