"""Lowering: the graph becomes a flat table of op records that one compiled function walks.

A value of the graph becomes a buffer; fuse.py says which nodes become records together.

    graph                                              records
    FlatEmbedding                                      EMBED
    Norm → FlatLinear (qkv)                            QUANTIZE(norm)   PRODUCT
    Heads → Rotate, Rotate → Append → Attend           ROTATE  ATTEND   (ROTATE8, ATTEND8: int8 state)
    FlatLinear (head) → SoftCap                        PRODUCT  SOFT_CAP
    Norm → Add                                         NORM_ROWS(add)
    FlatLinear (out) → Add                             QUANTIZE         PRODUCT(add)
    Norm → FlatLinear (gate, up)                       QUANTIZE(norm)   PRODUCT
    Gated → FlatLinear (down) → Add                    QUANTIZE(gated)  PRODUCT(add)
    Activation → FlatLinear (down) → Add               QUANTIZE(acted)  PRODUCT(add)
    Norm, Gated, Activation, OutputGate, Add elsewhere  NORM_ROWS, GATE_ROWS, ACT_ROWS, GATE_ROWS, ADD_ROWS
    CausalConv, LinearAttention                        CONV, LINEAR_ATTENTION, and SETTLE at the end
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flatlm.kernels_arm import ops as machine
from flatlm.kernels_arm import records
from flatlm.kernels_arm.library import Library
from flatlm.runtime import ops
from flatlm.runtime.format.graph import Graph
from flatlm.runtime.format.values import Value
from flatlm.runtime.format.widths import values_of
from flatlm.runtime.fuse import fuse
from flatlm.runtime.lowering import Lowering
from flatlm.runtime.states import State
from flatlm.runtime.states.floors import Floors


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
    states: list[State]
    floors: Floors  # of those that sum up their past
    keep: list[np.ndarray]


def lower(
    graph: Graph,
    kernels: Library,
    *,
    context: int,
    batch: int,
    logit_rows: int,
    slots: int = 1,
    values: Mapping[str, Value] | None = None,
) -> Plan:
    """The plan for steps of up to `batch` tokens of `slots` sequences, `logit_rows` of them with logits.

    `values`: as `values_of` gives them, where that was asked for before.
    """
    values = values_of(graph) if values is None else values
    described = ops.states_of(graph, values)
    floors = Floors(slots)
    states = {name: state.allocate(context, slots, floors) for name, state in described.items()}
    products = {
        node.name: ops.PRODUCTS[node.op].integers(graph, node) for node in graph.nodes if ops.is_product(node)
    }
    lowering = Lowering(
        graph, values, states, products, kernels, context=context, batch=batch, logit_rows=logit_rows
    )
    groups = fuse(graph)
    last_uses = {name: i for i, group in enumerate(groups) for name in group.inputs}
    for i, group in enumerate(groups):
        ops.of(group.node).lower(lowering, group)
        for name in group.inputs:
            if last_uses[name] == i:
                lowering.release(name)
    if any(getattr(state, "floors", None) for state in states.values()):
        row = records.record(machine.SETTLE, S_FLOORS=floors.array.ctypes.data)
        lowering.add(graph.head, row)
    ids, rows, spans = (np.zeros(shape, np.int64) for shape in (batch, logit_rows, (batch, 4)))
    words = np.zeros(machine.STEP_WORDS, np.int64)
    words[machine.STEP_IDS], words[machine.STEP_TABLE] = ids.ctypes.data, spans.ctypes.data
    words[machine.STEP_ROWS] = rows.ctypes.data
    table, logits = records.table_of(lowering.records), lowering.array(graph.nodes[-1].outputs[0])
    return Plan(
        table, lowering.names, words, ids, spans, rows, logits, lowering.scratch, list(states.values()),
        floors, lowering.keep,
    )  # fmt: skip
