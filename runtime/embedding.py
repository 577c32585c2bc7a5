"""Texts as vectors: what the last norm gives for their tokens, the mean of it or that of the last token.

The model's head is replaced by one that passes its input on, a product with the identity: so a vector is what
the head sees, in its integers, and the same bits on every backend that computes them itself. A model that was
made to write has no more in its states than it needs for that: for search, one trained for it is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from flatlm.kernels_arm import layout
from flatlm.kernels_arm.team import aligned
from flatlm.runtime import ops
from flatlm.runtime.backends import Segment, check_prompt
from flatlm.runtime.errors import BackendError, UsageError
from flatlm.runtime.format.graph import Graph, Tensor

if TYPE_CHECKING:
    from flatlm.runtime.backends import Backend

POOLINGS = ("mean", "last")
ABLE = ("native", "numpy")  # backends that compute the graph that they are given, and not a file


def headless(graph: Graph) -> Graph:
    """The model whose logits are its last hidden state, float32 [columns of the head]."""
    node = graph.head
    if not ops.is_product(node):
        raise BackendError("vectors need a quantized model: export it first")
    roles, columns = ops.named(node), int(node.attrs["columns"])
    step = (
        1.0 / float(graph.array(roles["inverse_scale"]).reshape(-1)[0]) if "inverse_scale" in roles else 1.0
    )
    identity = layout.pack(np.eye(columns, dtype=np.int8), 8)
    data = aligned(identity.nbytes).view(np.int8).reshape(identity.shape)
    data[...] = identity
    own = {
        "weight": Tensor("int8", layout.packed_shape(columns, columns, 8), data),
        "scale": Tensor.of(np.full(columns, step, np.float32)),
        "bias": Tensor.of(np.zeros(columns, np.float32)),
        "excess_delta": Tensor.of(np.zeros(0, np.uint8)),
        "excess_value": Tensor.of(np.zeros(0, np.int8)),
    }
    names = {role: f"headless.{role}" for role in own}
    attrs = {**node.attrs, "rows": columns, "offset": layout.offset_of(8)}
    head = replace(
        node, inputs=tuple({**roles, **names}.values()), outputs=graph.nodes[-1].outputs, attrs=attrs
    )
    kept = graph.nodes[: graph.nodes.index(node)]  # without a SoftCap behind the head
    constants = {**graph.constants, **{names[role]: tensor for role, tensor in own.items()}}
    return replace(graph, nodes=[*kept, head], constants=constants, part="hidden states")


def embed(backend: Backend, texts: Sequence[Sequence[int]], pooling: str, normalize: bool) -> np.ndarray:
    """Vectors float32 [texts, width] of `texts`, ids each; as many at once as `backend`, a headless one, has
    sequences. Raises UsageError and ContextError for what cannot be read.
    """
    if pooling not in POOLINGS:
        raise UsageError(f"pooling {pooling!r}: it is {' or '.join(POOLINGS)}", param="pooling")
    for ids in texts:
        check_prompt(backend, ids)
    found = []
    for first in range(0, len(texts), backend.slots):
        group = texts[first : first + backend.slots]
        for slot in range(len(group)):
            backend.truncate(0, slot)
        wanted = [Segment(slot, ids, len(ids) if pooling == "mean" else 1) for slot, ids in enumerate(group)]
        found += [rows.astype(np.float64).mean(axis=0) for rows in backend.forward_many(wanted)]
    vectors = np.array(found)
    if normalize and len(found):
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return vectors.astype(np.float32)
