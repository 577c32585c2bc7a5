"""The targets graph, manifest and data: an artifact's folder, and what the backends make of it."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from hypothesis import strategies as st

from flatlm.export.onnx_writer import write_onnx
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.backends.numpy import NumpyBackend
from flatlm.runtime.drafting.bigrams import load_bigrams
from flatlm.runtime.errors import FlatlmError
from flatlm.runtime.format.artifact import open_artifact, verify_artifact, write_manifest
from flatlm.runtime.format.describe import describe
from flatlm.runtime.format.functions import DOMAIN, STANDARD, VERSION
from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.format.onnx_reader import IR_VERSION, OPSET, read_onnx
from tests import mutants
from tests.fuzzing.messages import Fixed32, Tree, message_changes, tree_of, written
from tests.fuzzing.mutation import NUMBERS, TEXTS, Draw, byte_changes, json_bytes
from tests.fuzzing.target import Case, DifferentError, Prepared, Target, in_place
from tests.tiny_graphs import CONTEXT, VOCABULARY, quantized_graph

MODEL, DATA, BIGRAMS, MANIFEST = "model.onnx", "model.onnx.data", "bigrams.i32", "flatlm.json"
CODES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "uint4": 21}
FORMAT = tuple(f"flatlm.runtime.format.{name}" for name in ("onnx_reader", "protobuf", "functions", "widths"))


class Drawn:
    """A numpy generator's face on hypothesis, so that the changes of tests/mutants.py can shrink."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def integers(self, low: int, high: int | None = None) -> int:
        low, high = (0, low) if high is None else (low, high)
        return int(self._draw(st.integers(low, high - 1)))

    def random(self) -> float:
        return self.integers(0, 1000) / 1000


@st.composite
def mutated(draw: Draw) -> bytes:
    """The model.onnx of one of tests/mutants.py."""
    return message_of(mutants.mutant(Drawn(draw))[0])  # type: ignore[arg-type]


def message_of(graph: Graph) -> bytes:
    """A graph as model.onnx, all constants inside: what the reader asks for and nothing more."""
    body: Tree = [[1, _node(node)] for node in graph.nodes]
    for name, tensor in graph.constants.items():
        dims: Tree = [[1, size] for size in tensor.shape]
        body.append([5, [*dims, [2, CODES[tensor.dtype]], [8, name.encode()], [9, tensor.data.tobytes()]]])
    body += [[11, [[1, name.encode()]]] for name in graph.inputs]
    body += [[12, [[1, name.encode()]]] for name in graph.outputs]
    model: Tree = [[1, IR_VERSION], [7, body], [8, [[2, OPSET]]], [8, [[1, DOMAIN.encode()], [2, VERSION]]]]
    model += [[14, [[1, key.encode()], [2, value.encode()]]] for key, value in graph.metadata.items()]
    return written(model)


def _node(node: Node) -> Tree:
    domain = "" if node.op in STANDARD else DOMAIN
    tree: Tree = [[1, name.encode()] for name in node.inputs] + [[2, name.encode()] for name in node.outputs]
    tree += [[3, node.name.encode()], [4, node.op.encode()], [7, domain.encode()]]
    for name, value in node.attrs.items():
        if isinstance(value, float):
            tree.append([5, [[1, name.encode()], [2, Fixed32(struct.pack("<f", value))], [20, 1]]])
        elif isinstance(value, int):
            tree.append([5, [[1, name.encode()], [3, value], [20, 2]]])
        else:
            tree.append([5, [[1, name.encode()], [4, value.encode()], [20, 3]]])
    return tree


def compare(graph: Graph) -> None:
    """Raise where native and numpy do not give the same logits, or numpy refuses what native computes."""
    native = _computed(NativeBackend, graph)
    try:
        reference = _computed(NumpyBackend, graph)
    except FlatlmError as error:
        raise DifferentError(f"only numpy refuses: {error}") from None
    if not all(map(np.array_equal, native, reference)):
        raise DifferentError("native and numpy differ")


def _computed(kind: Callable, graph: Graph) -> list[np.ndarray]:
    """The logits of a prompt, of a step of a token and of some tokens after it."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, CONTEXT)
    model = kind(SimpleNamespace(graph=graph), threads=1, context=CONTEXT)
    with np.errstate(all="ignore"), closing(model):
        return [model.forward(ids[:11], 4), model.forward(ids[11:12]), model.forward(ids[12:], 12)]


def graph(folder: Path) -> Prepared:
    models = [mutants.model(kind) for kind in mutants.MODELS]
    for model in models:
        compare(model)
    messages = message_changes([message_of(model) for model in models])

    def run(case: Case) -> None:
        (folder / case.name).write_bytes(case.content)
        compare(read_onnx(folder / case.name))

    return Prepared(st.one_of(mutated(), mutated(), messages).map(partial(Case, MODEL)), run)


def data(folder: Path) -> Prepared:
    """model.onnx.data, what model.onnx says of it, and the table of bigrams."""
    write_onnx(quantized_graph(), folder)
    (folder / MODEL).write_bytes(written(tree_of((folder / MODEL).read_bytes())))  # without functions: small
    contents = {name: (folder / name).read_bytes() for name in (MODEL, DATA)}
    contents[BIGRAMS] = np.arange(-1, VOCABULARY - 1, dtype="<i4").tobytes()

    def run(case: Case) -> object:
        if case.name == BIGRAMS:
            return in_place(folder / BIGRAMS, case.content, lambda: load_bigrams(folder, VOCABULARY))
        return in_place(folder / case.name, case.content, lambda: compare(read_onnx(folder / MODEL)))

    cases = st.one_of(
        byte_changes([contents[DATA]]).map(partial(Case, DATA)),
        _external(contents[MODEL]).map(partial(Case, MODEL)),
        byte_changes([contents[BIGRAMS]]).map(partial(Case, BIGRAMS)),
    )
    return Prepared(cases, run)


def _external(model: bytes) -> st.SearchStrategy[bytes]:
    """The model with other words on where a constant lies."""
    from onnx import ModelProto

    def values(entry: str) -> list[str]:
        numbers = [str(number) for number in NUMBERS]
        near = [str(int(entry) + by) for by in (-64, -1, 1, 64, 128)] if entry.isdigit() else [DATA, MODEL]
        return [*near, *near, *numbers, *TEXTS]

    @st.composite
    def changed(draw: Draw) -> bytes:
        proto = ModelProto.FromString(model)
        outside = [tensor for tensor in proto.graph.initializer if tensor.external_data]
        tensor = draw(st.sampled_from(range(len(outside))))
        entry = draw(st.sampled_from(list(outside[tensor].external_data)))
        entry.value = draw(st.sampled_from(values(entry.value)))
        if outside[tensor].dims and not draw(st.integers(0, 4)):
            outside[tensor].dims[0] = draw(st.sampled_from([n for n in NUMBERS if -(2**63) <= n < 2**63]))
        return bytes(proto.SerializeToString())

    return changed()


def manifest(folder: Path) -> Prepared:
    write_onnx(quantized_graph(), folder)
    layer = {
        "name": "layers.0.mlp.down",
        "bits": 4,
        "alpha": 0.5,
        "threshold": 3.25,
        "error": 0.01,
        "more": [1],
    }
    made = write_manifest(
        folder,
        name="tiny",
        architecture="llama",
        recipe="edge",
        vocab_size=VOCABULARY,
        context_length=CONTEXT,
        parameters=12_345_678,
        bits_per_weight=4.25,
        layers=[layer, {"name": "head", "bits": 8}],
        totals={"extra_columns": 0.04, "check": {"kl_to_float": 0.01, "tokens": 100}},
        calibration={"windows": 2, "text": "x"},
    )

    def read() -> None:
        artifact = open_artifact(folder)
        describe(artifact)
        artifact.manifest.to_json().encode()
        verify_artifact(folder)

    good = json.loads(json.dumps(dataclasses.asdict(made)))
    cases = json_bytes([good]).map(lambda content: Case(MANIFEST, content))
    return Prepared(cases, lambda case: in_place(folder / MANIFEST, case.content, read))


GRAPH = Target("graph", FORMAT, graph)
MANIFEST_FILE = Target(
    "manifest", tuple(f"flatlm.runtime.format.{name}" for name in ("artifact", "describe")), manifest
)
DATA_FILES = Target("data", (*FORMAT[:2], "flatlm.runtime.drafting.bigrams"), data)
