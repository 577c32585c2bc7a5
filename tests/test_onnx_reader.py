"""Writer → reader, and everything a damaged or foreign model.onnx can be."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest

from flatlm.runtime.errors import FormatError, IntegrityError
from flatlm.runtime.format.functions import SIGNED
from flatlm.runtime.format.onnx_reader import ALIGNMENT, read_onnx
from tests.tiny_graphs import quantized_graph

onnx = pytest.importorskip("onnx")

from flatlm.export.onnx_writer import write_onnx  # noqa: E402


@pytest.fixture
def model(tmp_path):
    """The path of a freshly written model.onnx."""
    write_onnx(quantized_graph(), tmp_path)
    return tmp_path / "model.onnx"


def edit(path, change):
    """Applies `change` to the ModelProto at `path`."""
    proto = onnx.load(path, load_external_data=False)
    change(proto)
    path.write_bytes(proto.SerializeToString())


def tensor(proto, name):
    return next(t for t in proto.graph.initializer if t.name == name)


def outside(tensor):
    """The tensor's external data as a dictionary of proto entries."""
    return {entry.key: entry for entry in tensor.external_data}


LARGE = "layers.0.mlp.gate_up.weight"  # in model.onnx.data
SMALL = "layers.0.mlp.gate_up.scale"  # inside model.onnx


def test_reading_what_was_written_gives_the_same_graph(model):
    graph, again = quantized_graph(), read_onnx(model)
    assert [(n.op, n.inputs, n.outputs, n.name) for n in again.nodes] == [
        (n.op, n.inputs, n.outputs, n.name) for n in graph.nodes
    ]
    for node, other in zip(graph.nodes, again.nodes, strict=True):
        assert dict(other.attrs) == pytest.approx(dict(node.attrs))
    assert (again.inputs, again.outputs) == (graph.inputs, graph.outputs)
    assert again.metadata == graph.metadata
    used = {name for node in graph.nodes for name in node.inputs}
    assert set(again.constants) == used & set(graph.constants)
    for name, constant in again.constants.items():
        expected = graph.constants[name]
        assert (constant.dtype, constant.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(constant.data, expected.data)


def test_constants_are_read_only_aligned_and_the_large_ones_mapped(model):
    graph = read_onnx(model)
    assert graph.constants[LARGE].data.nbytes >= 1024
    for constant in graph.constants.values():
        assert constant.data.ctypes.data % ALIGNMENT == 0 or not constant.data.size
        assert not constant.data.flags.writeable
    base = graph.constants[LARGE].data
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert base.nbytes == os.path.getsize(model.with_name("model.onnx.data"))


def test_the_writer_asks_for_one_constant_at_a_time(tmp_path):
    graph, seen = quantized_graph(), []

    class Lazy(dict):
        def __getitem__(self, name):
            seen.append(name)
            return super().__getitem__(name)

    graph.constants, steps = Lazy(graph.constants), []
    write_onnx(graph, tmp_path, lambda done, total: steps.append((done, total)))
    assert len(seen) == len(set(seen))
    assert steps[-1] == (len(seen), len(seen))


def test_inputs_and_outputs_have_the_shapes_of_the_format(model):
    proto = onnx.load(model, load_external_data=False)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*proto.graph.input, *proto.graph.output]
    }
    assert shapes["input_ids"] == ["B", "T"]
    assert shapes["past_key_values.1.key"] == ["B", 2, "past", 4]
    assert shapes["present.0.value"] == ["B", 2, "past + T", 4]
    assert shapes["logits"] == ["B", "T", 53]


def test_reading_imports_neither_onnx_nor_onnxruntime(model):
    code = (
        "import sys; from flatlm.runtime.format.onnx_reader import read_onnx; read_onnx(sys.argv[1]); "
        "print(sorted({'onnx', 'onnxruntime', 'numba', 'google.protobuf', 'export'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(model)], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.999])
def test_a_truncated_model_is_an_integrity_error(model, share):
    content = model.read_bytes()
    model.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        read_onnx(model)


def test_flipped_bytes_never_raise_anything_but_an_artifact_error(model):
    content, rng = bytearray(model.read_bytes()), np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(content)
        for at in rng.integers(0, len(content), rng.integers(1, 4)):
            damaged[at] ^= 1 << rng.integers(0, 8)
        model.write_bytes(damaged)
        with suppress(FormatError, IntegrityError):
            read_onnx(model)


def test_a_cut_data_file_names_the_tensor_and_the_sizes(model):
    data = model.with_name("model.onnx.data")
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match=r"tensor '.*' in .*model\.onnx\.data.* has \d+"):
        read_onnx(model)


def test_missing_files_are_named(model):
    model.with_name("model.onnx.data").unlink()
    with pytest.raises(IntegrityError, match=r"model\.onnx\.data"):
        read_onnx(model)
    model.unlink()
    with pytest.raises(IntegrityError, match=r"cannot read .*model\.onnx"):
        read_onnx(model)


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "a/../../secret", "", ".", "..", "model.onnx.data\0", "a\0b"]
)
def test_a_location_that_leaves_the_folder_is_refused(model, location):
    model.parent.with_name("secret").write_bytes(bytes(100_000))
    edit(model, lambda m: setattr(outside(tensor(m, LARGE))["location"], "value", location))
    with pytest.raises(IntegrityError, match="refused"):
        read_onnx(model)


def test_links_in_a_circle_are_refused(model):
    data = model.with_name("model.onnx.data")
    data.unlink()
    data.symlink_to(data.name)
    with pytest.raises(IntegrityError, match=r"refused|cannot read"):
        read_onnx(model)


def test_a_plain_name_may_be_a_link_of_the_user(model, tmp_path_factory):
    """As the hub's cache lays a model out: every file a link to ../../blobs."""
    before = read_onnx(model).constants[LARGE]
    data = model.with_name("model.onnx.data")
    data.rename(elsewhere := tmp_path_factory.mktemp("elsewhere") / "data")
    data.symlink_to(elsewhere)
    assert np.array_equal(read_onnx(model).constants[LARGE].data, before.data)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_a_pipe_is_refused_and_not_waited_for(model, name):
    model.with_name(name).unlink()
    os.mkfifo(model.with_name(name))
    with pytest.raises(IntegrityError, match="is no regular file"):
        read_onnx(model)


@pytest.mark.parametrize(
    ("key", "value", "error", "match"),
    [
        ("offset", "63", FormatError, "multiple of 64"),
        ("offset", "-64", FormatError, "multiple of 64"),
        ("offset", str(1 << 62), IntegrityError, "truncated"),
        ("offset", "zero", FormatError, "no number"),
        ("length", "64", FormatError, "64 bytes, where shape and data type need"),
    ],
)
def test_offsets_and_lengths_are_checked(model, key, value, error, match):
    edit(model, lambda m: setattr(outside(tensor(m, LARGE))[key], "value", value))
    with pytest.raises(error, match=match):
        read_onnx(model)


def set_dims(name, *dims):
    def change(m):
        del tensor(m, name).dims[:]
        tensor(m, name).dims.extend(dims)

    return change


@pytest.mark.parametrize("dims", [(1 << 62, 8), (0, 1 << 62, 4), (-1,), (5, 3, 16, 4, 1), (1,) * 9])
def test_a_shape_that_does_not_fit_the_bytes_is_refused_before_anything_is_allocated(model, dims):
    edit(model, set_dims(LARGE, *dims))
    with pytest.raises(FormatError, match=r"gate_up\.weight"):
        read_onnx(model)


def test_a_shape_that_fits_the_bytes_but_not_the_node_names_both(model):
    edit(model, set_dims(SMALL, 2, 37))
    match = rf"node 'layers.0.mlp.gate_up' \(FlatLinear\): tensor '{SMALL}' has shape \[2, 37\], not \[rows\]"
    with pytest.raises(FormatError, match=match):
        read_onnx(model)


def node(m, name):
    return next(n for n in m.graph.node if n.name == name)


def attribute(m, name, key):
    return next(a for a in node(m, name).attribute if a.name == key)


QKV, HEADS, APPEND = (f"layers.0.attention.{name}" for name in ("qkv", "heads", "append"))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: setattr(node(m, QKV), "op_type", "FlatLinar"), "qkv.*did you mean FlatLinear"),
        (lambda m: setattr(node(m, QKV), "domain", "com.other"), "qkv.*com.other"),
        (lambda m: setattr(node(m, "layers.0.mlp.add"), "op_type", "Loop"), "mlp.add.*no such function"),
        (lambda m: setattr(m.opset_import[1], "version", 1), "'flatlm' version 1"),
        (lambda m: setattr(m.opset_import[1], "version", 2), "older format.*`flatlm export SRC OUT --force`"),
        (lambda m: setattr(m.opset_import[1], "version", 4), "'flatlm' version 4.* newer flatlm"),
        (lambda m: setattr(node(m, APPEND), "op_type", "Appends_int8"), "did you mean Append"),
        (lambda m: setattr(attribute(m, APPEND, "state"), "s", b"int4"), "append.*'state' is 'int4'"),
        (lambda m: setattr(m.opset_import[0], "version", 99), "opset version 99"),
        (lambda m: setattr(m.opset_import[0], "domain", "ai.other"), "ai.other"),
        (lambda m: setattr(m, "ir_version", 99), "IR version 99"),
        (lambda m: setattr(tensor(m, SMALL), "data_type", 16), "gate_up.scale.* data type 16"),
        (lambda m: setattr(tensor(m, SMALL), "data_type", 6), "int32, not float32"),
        (lambda m: setattr(attribute(m, QKV, "rows"), "i", 41), "qkv' .*not"),
        (lambda m: setattr(attribute(m, QKV, "rows"), "i", 1 << 40), "not a size"),
        (lambda m: setattr(attribute(m, QKV, "levels"), "i", 9), "levels"),
        (lambda m: setattr(attribute(m, HEADS, "num_heads"), "i", 3000), "heads.*qkv.*the node reads"),
        (lambda m: setattr(node(m, QKV), "name", "head"), "every node needs a name of its own"),
        (lambda m: setattr(m.metadata_props[0], "value", "10000"), "vocab_size is 10000"),
        (lambda m: setattr(attribute(m, QKV, "offset"), "i", 0), "offset 0"),
        (lambda m: setattr(attribute(m, QKV, "offset"), "name", "offer"), "offer|offset"),
        (lambda m: node(m, QKV).input.pop(3), "qkv.*7 inputs"),
        (lambda m: node(m, QKV).input.__setitem__(0, "nothing"), "'nothing' comes from no earlier node"),
        (lambda m: node(m, QKV).output.__setitem__(0, "cos"), "'cos' exists already"),
        (lambda m: m.graph.output.add(name="more"), "no node computes the output 'more'"),
        (lambda m: m.graph.initializer.append(tensor(m, SMALL)), "gate_up.scale' is there twice"),
        (lambda m: setattr(tensor(m, SMALL), "raw_data", b"1234"), "4 bytes, where"),
    ],
)
def test_what_flatlm_does_not_know_or_does_not_fit_is_a_format_error(model, change, match):
    edit(model, change)
    with pytest.raises(FormatError, match=match):
        read_onnx(model)


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("layers.0.attention.qkv.limit", np.full(1, 1e9, np.float32), "not of 127, 254"),
        ("layers.0.attention.qkv.limit", np.full(1, 128, np.float32), "not of 127, 254"),
        ("layers.0.attention.qkv.limit", np.full(1, 0, np.float32), "not of 127, 254"),
        ("layers.0.attention.qkv.limit", np.full(1, np.nan, np.float32), "not of 127, 254"),
        ("layers.0.attention.qkv.excess_value", np.full(1, 120, np.int8), "beyond ±119"),
        ("layers.0.mlp.down.excess_delta", None, "excess at position"),
    ],
)
def test_indices_that_would_leave_their_arrays_never_reach_a_kernel(tmp_path, name, value, match):
    def change(m):
        target = tensor(m, name)
        raw = bytearray(target.raw_data)
        raw[: value.nbytes if value is not None else len(raw)] = (
            value.tobytes() if value is not None else b"\xff" * len(raw)
        )
        target.raw_data = bytes(raw)

    graph = quantized_graph()
    if value is None:  # one entry more than bytes 255 each can bridge
        many = 2 * np.prod(graph.constants["layers.0.mlp.down.weight"].shape) // 255
        for part, dtype in (("excess_delta", np.uint8), ("excess_value", np.int8)):
            constant = graph.constants[f"layers.0.mlp.down.{part}"]
            graph.constants[f"layers.0.mlp.down.{part}"] = type(constant).of(np.ones(many, dtype))
    write_onnx(graph, tmp_path)
    edit(tmp_path / "model.onnx", change)
    with pytest.raises(FormatError, match=match):
        read_onnx(tmp_path / "model.onnx")


def test_a_function_is_named_up_to_its_options(model):
    """One name for each body: Append_int8, Attend_int8. What the options are stands in the attributes."""

    def change(m):
        for name, function in ((APPEND, "Append_float32"), ("layers.1.mlp.act", "Gated_silu_too")):
            node(m, name).op_type = function

    before = read_onnx(model).nodes
    edit(model, change)
    assert read_onnx(model).nodes == before


def test_the_switch_for_onnxruntime_is_not_part_of_the_graph(model):
    proto, graph = onnx.load(model, load_external_data=False), read_onnx(model)
    assert tensor(proto, SIGNED).data_location == onnx.TensorProto.EXTERNAL
    assert SIGNED not in graph.constants
    assert not any(SIGNED in n.inputs for n in graph.nodes)
