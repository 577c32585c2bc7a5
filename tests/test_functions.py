"""Each ONNX function in onnxruntime against its formula in docs/format.md."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from flatlm.export import ops  # noqa: E402
from flatlm.export.onnx_functions import function  # noqa: E402
from flatlm.export.onnx_writer import write_onnx  # noqa: E402
from flatlm.kernels_arm import layout, reference  # noqa: E402
from flatlm.runtime.backends.numpy import NumpyBackend  # noqa: E402
from flatlm.runtime.backends.ort import OrtBackend  # noqa: E402
from flatlm.runtime.format.functions import LINEARS, STANDARD, TOKEN_LINEAR  # noqa: E402
from flatlm.runtime.format.graph import Node, Tensor  # noqa: E402
from flatlm.runtime.format.onnx_reader import read_onnx  # noqa: E402
from flatlm.runtime.ops import OPS, signature  # noqa: E402
from tests.float_experts import float_experts  # noqa: E402
from tests.recurrent_graphs import MIXERS, recurrent_graph  # noqa: E402
from tests.test_passes import float_graph  # noqa: E402
from tests.tiny_graphs import CONTEXT, VOCABULARY, flattening, matrix, packed, quantized_graph  # noqa: E402


def call(op: str, values: dict, constants: dict[str, Tensor] | None = None, **attrs) -> list[np.ndarray]:
    """Runs one call of `op` on `values` (computed inputs) and `constants` in onnxruntime."""
    constants = constants or {}
    called = OPS[op].signature(attrs)
    names = [*called.inputs, *(["signed"] if op in LINEARS else [])]
    outputs = list(called.outputs)
    node = helper.make_node(op, names, outputs, domain="flatlm", **attrs)
    inputs = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), [None] * v.ndim)
        for k, v in values.items()
    ]
    kinds = [TensorProto.INT8 if _is_int8(attrs, name) else TensorProto.FLOAT for name in outputs]
    results = [helper.make_tensor_value_info(*pair, None) for pair in zip(outputs, kinds, strict=True)]
    initializers = [_initializer(name, tensor) for name, tensor in constants.items()]
    imports = [helper.make_opsetid("", 23), helper.make_opsetid("flatlm", 1)]
    graph = helper.make_graph([node], op, inputs, results, initializers)
    model = helper.make_model(graph, opset_imports=imports, functions=[defined(op, **attrs)], ir_version=11)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, values)


def defined(op: str, **attrs) -> onnx.FunctionProto:
    called, body = OPS[op].signature(attrs), ops.of(op).body
    assert body is not None
    return function(op, body(Node(op, tuple(called.inputs), called.outputs, attrs)))


def _is_int8(attrs: dict, output: str) -> bool:
    return attrs.get("state") == "int8" and output in ("present_key", "present_value")


def _initializer(name: str, tensor: Tensor) -> TensorProto:
    if tensor.dtype != "uint4":
        return numpy_helper.from_array(np.ascontiguousarray(tensor.data), name)
    return TensorProto(
        name=name, data_type=TensorProto.UINT4, dims=tensor.shape, raw_data=tensor.data.tobytes()
    )


def linear_case(
    op: str, rows: int, columns: int, bits: int, excess: int, levels: int, signed: int, wide: float = 0.2
):
    """Random integers through FlatLinear or FlatLinearToken: (result, expected), both float32."""
    rng = np.random.default_rng([rows, columns, bits, excess, levels])
    weights = matrix(rng, rows, columns, bits, excess)
    tensor, delta, value = packed(weights, bits)
    arrays = {
        "scale": rng.random(rows, np.float32),
        "bias": rng.standard_normal(rows).astype(np.float32),
        "inverse_scale": np.array(11.3, np.float32),
        **flattening(rng, columns, levels, wide),
        "excess_delta": delta,
        "excess_value": value,
        "signed": np.array(signed, np.uint8),
    }
    if op == TOKEN_LINEAR:
        del arrays["inverse_scale"]
    x = (rng.standard_normal((2, 3, columns)) * levels / 6).astype(np.float32)
    x[1, 1] = 0
    attrs = {"rows": rows, "columns": columns, "offset": layout.offset_of(bits), "levels": levels}
    constants = {"weight": tensor} | {name: Tensor.of(array) for name, array in arrays.items()}
    (y,) = call(op, {"x": x}, constants, **attrs)

    flat, limit = x.reshape(-1, columns), arrays["limit"]
    if op == TOKEN_LINEAR:
        steps, step = reference.quantize_token(flat, limit, levels)
    else:
        steps, step = reference.quantize(flat, arrays["inverse_scale"], limit), None
    acc = reference.integer_product(steps, weights)
    return y, reference.scale_product(acc, arrays["scale"], arrays["bias"], step).reshape(2, 3, rows)


@pytest.mark.parametrize("signed", [0, 1], ids=["uint8", "int8"])
@pytest.mark.parametrize(
    ("rows", "columns", "bits", "excess", "levels"),
    [
        (33, 50, 4, 40, 127),
        (16, 48, 4, 0, 127),
        (5, 3, 4, 2, 127),
        (300, 70, 4, 1, 7),
        (17, 35, 8, 0, 127),
        (1, 16, 8, 0, 7),
    ],
)
@pytest.mark.parametrize("op", LINEARS)
def test_flat_linear_equals_the_integer_product_exactly(op, rows, columns, bits, excess, levels, signed):
    y, expected = linear_case(op, rows, columns, bits, excess, levels, signed)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("signed", [0, 1], ids=["uint8", "int8"])
@pytest.mark.parametrize("wide", [0.0, 1.0])
def test_flat_linear_is_exact_where_no_or_every_channel_has_two_digits(wide, signed):
    y, expected = linear_case(TOKEN_LINEAR, 33, 50, 4, 40, 127, signed, wide)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("signed", [0, 1], ids=["uint8", "int8"])
def test_the_product_survives_the_largest_sums_a_saturating_kernel_would_cut(signed):
    rows, columns = 16, 64
    for sign in (1, -1):
        weights = np.full((rows, columns), 127 * sign)
        tensor, delta, value = packed(weights, 8)
        ones = np.ones(columns, np.float32)
        arrays = {
            "scale": np.ones(rows, np.float32),
            "bias": np.zeros(rows, np.float32),
            "inverse_scale": np.array(1, np.float32),
            "limit": 127 * ones,
            "excess_delta": delta,
            "excess_value": value,
            "signed": np.array(signed, np.uint8),
        }
        constants = {"weight": tensor} | {name: Tensor.of(array) for name, array in arrays.items()}
        attrs = {"rows": rows, "columns": columns, "offset": 0, "levels": 127}
        (y,) = call("FlatLinear", {"x": 127 * ones[None, None]}, constants, **attrs)
        np.testing.assert_array_equal(y, np.full((1, 1, rows), sign * 127.0 * 127 * columns, np.float32))


@pytest.mark.parametrize(("bits", "excess"), [(4, 9), (4, 0), (8, 0)])
def test_flat_embedding_gives_rows_of_the_weight_times_their_scale(bits, excess):
    rng = np.random.default_rng(bits + excess)
    weights = matrix(rng, 41, 19, bits, excess)
    tensor, delta, value = packed(weights, bits)
    scale, ids = rng.random(41, np.float32), np.array([[0, 40, 7], [7, 16, 15]])
    constants = {
        "weight": tensor,
        "scale": Tensor.of(scale),
        "excess_delta": Tensor.of(delta),
        "excess_value": Tensor.of(value),
    }
    (y,) = call("FlatEmbedding", {"ids": ids}, constants, rows=41, columns=19, offset=layout.offset_of(bits))
    np.testing.assert_array_equal(y, weights[ids].astype(np.float32) * scale[ids][..., None])


def attention(
    qkv, cos, sin, past: dict, heads: int, kv_heads: int, state: str, **options
) -> list[np.ndarray]:
    """qkv [B, T, (h + 2g)·d] through Heads, Rotate, Append and Attend → y, and what Append makes."""
    size = qkv.shape[-1] // (heads + 2 * kv_heads)
    q, k, v = call("Heads", {"qkv": qkv}, num_heads=heads, kv_num_heads=kv_heads, head_size=size)
    q, k = (call("Rotate", {"x": x, "cos": cos, "sin": sin})[0] for x in (q, k))
    presents = call("Append", {"k": k, "v": v, **past}, state=state)
    names = OPS["Append"].signature({"state": state}).outputs
    read = dict(zip(names, presents, strict=True))
    return [*call("Attend", {"q": q, **read}, scale=size**-0.5, state=state, **options), *presents]


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "tokens", "past"),
    [(9, 3, 8, 5, 7), (4, 4, 16, 1, 3), (6, 2, 10, 4, 0), (5, 1, 4, 3, 1)],
)
def test_float_attention_is_causal_over_past_and_present(heads, kv_heads, size, tokens, past):
    rng = np.random.default_rng(heads)
    qkv = rng.standard_normal((2, tokens, (heads + 2 * kv_heads) * size)).astype(np.float32)
    keys, values = rng.standard_normal((2, 2, kv_heads, past, size)).astype(np.float32)
    frequency = (1e4 ** (-np.arange(0, size, 2) / size)).astype(np.float32)
    cos, sin = reference.rotary_table(np.arange(past, past + tokens), frequency)
    past_cache = {"past_key": keys, "past_value": values}
    both = (np.stack([cos, cos]), np.stack([sin, sin]))
    y, present_key, present_value = attention(qkv, *both, past_cache, heads, kv_heads, "float32")

    for b in range(2):
        q, k, v = np.split(qkv[b].reshape(tokens, -1, size), [heads, heads + kv_heads], axis=1)
        all_keys = np.concatenate([keys[b].swapaxes(0, 1), reference.rotate(k, cos, sin)])
        all_values = np.concatenate([values[b].swapaxes(0, 1), v])
        out = reference.attention(reference.rotate(q, cos, sin), all_keys, all_values, size**-0.5)
        np.testing.assert_allclose(y[b], out.reshape(tokens, -1), atol=2e-6)
        np.testing.assert_allclose(present_key[b].swapaxes(0, 1), all_keys, atol=1e-6)
        np.testing.assert_array_equal(present_value[b].swapaxes(0, 1), all_values)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "tokens", "past"),
    [(9, 3, 8, 5, 7), (4, 4, 16, 1, 300), (6, 2, 10, 4, 0), (5, 1, 4, 3, 254), (14, 2, 64, 2, 600)],
)
def test_int8_attention_equals_the_reference_bit_for_bit(heads, kv_heads, size, tokens, past):
    rng = np.random.default_rng(heads)
    qkv = rng.standard_normal((2, tokens, (heads + 2 * kv_heads) * size)).astype(np.float32) * 3
    shape = (2, past, kv_heads, size)
    keys, key_scales = reference.quantize_heads(rng.standard_normal(shape).astype(np.float32))
    values, value_scales = reference.quantize_heads(rng.standard_normal(shape).astype(np.float32))
    frequency = (1e4 ** (-np.arange(0, size, 2) / size)).astype(np.float32)
    cos, sin = reference.rotary_table(np.arange(past, past + tokens), frequency)
    past_cache = {
        "past_key": keys.swapaxes(1, 2),
        "past_key_scale": key_scales.swapaxes(1, 2)[..., None],
        "past_value": values.swapaxes(1, 2),
        "past_value_scale": value_scales.swapaxes(1, 2)[..., None],
    }
    both = (np.stack([cos, cos]), np.stack([sin, sin]))
    y, *presents = attention(qkv, *both, past_cache, heads, kv_heads, "int8")

    for b in range(2):
        q, k, v = np.split(qkv[b].reshape(tokens, -1, size), [heads, heads + kv_heads], axis=1)
        new = (*reference.quantize_heads(reference.rotate(k, cos, sin)), *reference.quantize_heads(v))
        old = (keys[b], key_scales[b], values[b], value_scales[b])
        cache = [np.concatenate(pair) for pair in zip(old, new, strict=True)]
        for present, held in zip(presents, cache, strict=True):
            np.testing.assert_array_equal(present[b].swapaxes(0, 1).reshape(held.shape), held)
        out = reference.attention_int8(reference.rotate(q, cos, sin), *cache, size**-0.5)
        np.testing.assert_array_equal(y[b], out.reshape(tokens, -1))


def test_rotary_table_is_exact_far_into_the_context():
    positions = np.array([[0, 1, 131_071]])
    frequency = np.array([1.0, 0.1, 1e-4], np.float32)
    cos, sin = call("RotaryTable", {"position_ids": positions}, {"inverse_frequency": Tensor.of(frequency)})
    expected = reference.rotary_table(positions[0], frequency)
    np.testing.assert_allclose([cos[0], sin[0]], expected, atol=1e-7)


def test_norm_gated_embedding_and_linear_follow_their_formulas():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((2, 3, 18)).astype(np.float32)
    weight, matrix_, bias = (
        rng.random(18, np.float32),
        rng.random((7, 18), np.float32),
        rng.random(7, np.float32),
    )
    ids = np.array([[6, 0, 3]])
    constants = {"weight": Tensor.of(matrix_), "bias": Tensor.of(bias)}
    (normed,) = call("Norm", {"x": x}, {"weight": Tensor.of(weight)}, epsilon=1e-3)
    (gated,) = call("Gated", {"gate_up": x * 4}, act="silu")
    (y,) = call("Linear", {"x": x}, constants)
    (embedded,) = call("Embedding", {"ids": ids}, {"weight": Tensor.of(matrix_)})
    np.testing.assert_allclose(normed, reference.norm(x, weight, 1e-3), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gated, reference.gated(x * 4, "silu"), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(y, x @ matrix_.T + bias, rtol=1e-5)
    np.testing.assert_array_equal(embedded, matrix_[ids])


@pytest.mark.parametrize("kv", ["float32", "int8"])
def test_every_function_has_a_body_with_the_inputs_of_its_signature(kv):
    nodes = [
        *quantized_graph(0, kv, "static", "qk_norm", "window").nodes,
        *quantized_graph(0, kv, "token", "sigmoid_experts").nodes,
        *quantized_graph(0, kv, "token", "topk_experts").nodes,
        *quantized_graph(0, kv, "token", "plain", "head_gate", "logit_cap").nodes,
    ]
    nodes += [*float_graph().nodes, *float_experts().nodes]
    nodes += [node for mixer in MIXERS for node in recurrent_graph(mixer).nodes]
    for node in (node for node in nodes if node.op not in STANDARD):
        called, body = signature(node), ops.of(node.op).body(node)
        made = function(node.op, body)
        extra = ["signed"] if node.op in (*LINEARS, "FlatExperts") else []
        assert list(made.input) == [*called.inputs, *extra]
        assert list(made.output) == list(called.outputs)
        assert set(made.attribute) == set(node.attrs) <= set(called.attrs)
    assert {node.op for node in nodes} == set(OPS)


@pytest.mark.parametrize(
    "model",
    [
        ("int8", "static"),
        ("float32", "token"),
        ("float32", "static", "qk_norm"),
        ("int8", "token", "qk_norm"),
        ("float32", "static", "window"),
        ("int8", "token", "gelu_tanh"),
        ("int8", "static", "window"),
        ("float32", "static", "plain", "gelu", "output_gate"),
        ("float32", "token", "relu2", "head_gate"),
        ("float32", "static", "softcap", "slopes", "window", "logit_cap"),
        ("int8", "token", "softcap", "slopes", "sinks", "window"),
        ("float32", "token", "sinks", "no_rotation", "positions", "norms", "centered"),
        ("int8", "static", "qk_norm", "own", "centered", "no_rotation"),
        ("float32", "static", "qk_norm", "all", "norm_last", "plain", "xielu"),
    ],
    ids="-".join,
)
def test_a_whole_model_gives_numpys_bits_in_onnxruntime(tmp_path, model):
    graph = quantized_graph(0, *model)
    write_onnx(graph, tmp_path)
    artifact = SimpleNamespace(graph=read_onnx(tmp_path / "model.onnx"), path=tmp_path)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, CONTEXT)
    expected = NumpyBackend(artifact).forward(ids, CONTEXT)
    backend = OrtBackend(artifact, threads=1)
    backend.forward(ids[::-1][:7])
    backend.truncate(0)
    first = backend.forward(ids[:9], 9)
    backend.forward(ids[:3])
    backend.truncate(9)
    np.testing.assert_array_equal(np.concatenate([first, backend.forward(ids[9:], CONTEXT)]), expected)
    backend.close()
