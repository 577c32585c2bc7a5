"""The plan that onnxruntime runs: its bits, its sequences, what would run on CUDA, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime
from onnx import helper, numpy_helper

from flatlm.export.onnx_writer import write_onnx
from flatlm.kernels_arm.ops import ACTS, PLAIN_ACTS
from flatlm.runtime import ops
from flatlm.runtime.backends import Segment, open_backend
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.backends.numpy import NumpyBackend
from flatlm.runtime.backends.onnx_plan import exact, fast
from flatlm.runtime.backends.onnx_plan.backend import PlanBackend
from flatlm.runtime.backends.onnx_plan.calls import Call
from flatlm.runtime.backends.onnx_plan.functions import Refused, made
from flatlm.runtime.backends.onnx_plan.model import plan_of
from flatlm.runtime.backends.onnx_plan.opening import open_ort
from flatlm.runtime.backends.onnx_plan.products import PRODUCTS
from flatlm.runtime.backends.ort import OrtBackend
from flatlm.runtime.errors import BackendError
from flatlm.runtime.format.artifact import open_artifact
from flatlm.runtime.format.functions import LINEARS, SIGNED
from flatlm.runtime.format.onnx_reader import read_onnx
from flatlm.runtime.measuring.parity import PROMPTS, write
from flatlm.runtime.options import BackendOptions
from flatlm.runtime.text.tokenizer import load_tokenizer
from scripts import bench_load
from tests.plan_nodes import KERNELS, placed
from tests.tiny_graphs import CONTEXT, HIDDEN, OPTIONS, VOCABULARY, quantized_graph

MODELS = [
    ("float32", "static", "qk_norm"),
    ("int8", "token", "window"),
    ("float32", "token", "gelu_tanh", "norms", "window"),
    ("int8", "static"),
]
models = pytest.mark.parametrize("model", MODELS, ids="-".join)
forms = pytest.mark.parametrize("form", PRODUCTS)


def tiny(folder, *model):
    write_onnx(quantized_graph(0, *model), folder)
    return SimpleNamespace(graph=read_onnx(folder / "model.onnx"), path=folder)


def plan(artifact, form):
    if form == "fast":
        return plan_of(artifact.path, artifact.graph, "double", fast.FAST)
    return plan_of(artifact.path, artifact.graph, form)


def bits(rows):
    return np.asarray(rows).view(np.int32)


@forms
@models
def test_all_logits_are_the_references_whatever_form_the_products_have(tmp_path, model, form):
    artifact = tiny(tmp_path, *model)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, CONTEXT)
    expected = bits(NumpyBackend(artifact).forward(ids, CONTEXT))
    backend = PlanBackend(artifact, threads=1, form=form)
    backend.forward(ids[::-1], CONTEXT)  # the cache is full of what is not the sequence's
    backend.truncate(0)
    for start, stop in ((0, 9), (9, 10), (10, 11), (11, CONTEXT)):
        found = backend.forward(ids[start:stop], stop - start)
        np.testing.assert_array_equal(bits(found), expected[start:stop])
        backend.forward(ids[:2], 2) if stop + 2 <= CONTEXT else None  # guesses that were wrong
        assert backend.truncate(stop) == stop


@models
def test_a_cache_that_grows_keeps_what_it_holds(tmp_path, model):
    artifact = tiny(tmp_path, *model)
    ids = np.random.default_rng(1).integers(0, VOCABULARY, 600)
    expected = bits(NumpyBackend(artifact, context=600).forward(ids, 600))
    backend = PlanBackend(artifact, threads=1, context=600)
    found = [backend.forward(part, len(part)) for part in np.split(ids, [200, 255, 256, 257, 300, 511, 515])]
    np.testing.assert_array_equal(bits(np.concatenate(found)), expected)


@models
def test_sequences_do_not_know_of_each_other_and_can_be_copied(tmp_path, model):
    artifact = tiny(tmp_path, *model)
    ids = np.random.default_rng(2).integers(0, VOCABULARY, 400)
    backend = PlanBackend(artifact, threads=1, context=400, slots=3)
    reference = NumpyBackend(artifact, context=400)
    expected = bits(reference.forward(ids[:330], 330))
    backend.forward_many([Segment(0, ids[:300]), Segment(2, ids[100:104])])
    backend.copy(0, 2, 298)
    backend.copy(0, 0, 298)
    assert list(backend.positions) == [298, 0, 298]
    rows = backend.forward_many(
        [Segment(2, ids[298:330], 32), Segment(0, ids[298:300], 9), Segment(1, ids[:5], 2)]
    )
    for found, span in zip(rows, ((298, 330), (298, 300), (3, 5)), strict=True):
        np.testing.assert_array_equal(bits(found), expected[slice(*span)])


def test_rows_of_logits_are_those_that_are_wanted(tmp_path):
    backend = PlanBackend(tiny(tmp_path, *MODELS[0]), threads=1, context=600)
    assert [len(backend.forward(np.arange(20) % VOCABULARY, wanted)) for wanted in (0, 1, 5, 99)] == [
        0,
        1,
        5,
        20,
    ]
    assert len(backend.forward(np.arange(300) % VOCABULARY, 60)) == 60  # of two calls


def test_an_id_that_is_no_row_of_the_embedding_is_refused_before_anything_is_appended(tmp_path):
    backend = PlanBackend(tiny(tmp_path, *MODELS[0]), threads=1)
    with pytest.raises(BackendError, match=f"0 … {VOCABULARY - 1}, got 1 … {VOCABULARY}"):
        backend.forward(np.array([1, VOCABULARY]))
    assert backend.position == 0


@pytest.mark.real
@pytest.mark.parametrize("form", ["uint8", "double"])
def test_a_real_models_logits_are_natives_after_all_prompts(real_model, form):
    """Read 16 rows at a time, which changes no bit; each prompt stands in a cache full of the one before."""
    artifact = open_artifact(real_model)
    backend = PlanBackend(artifact, context=256, form=form)
    native, tokenizer = NativeBackend(artifact, context=256), load_tokenizer(artifact.path)
    for text in PROMPTS:
        prompt = tokenizer.encode(text)
        written, expected = write(native, prompt, 128)
        ids = np.array([*prompt, *written[:-1]])
        backend.truncate(0)
        backend.forward(ids[: len(prompt) - 1]) if len(prompt) > 1 else None
        found = [
            backend.forward(part, len(part)) for part in np.split(ids[len(prompt) - 1 :], range(16, 128, 16))
        ]
        np.testing.assert_array_equal(bits(np.concatenate(found)), bits(expected))


@pytest.mark.real
@pytest.mark.parametrize("backend", ["ort", "ort-file"])
def test_a_real_model_takes_at_most_eight_times_its_file_in_memory(real_model, backend):
    size = sum(path.stat().st_size for path in real_model.glob("model.onnx*")) / 1e6
    assert bench_load.child(real_model, backend)["resident"] < 8 * size


# ---- what would run on CUDA


@pytest.mark.parametrize("form", ["double", "int8", "fast"])
@models
def test_every_node_has_a_cuda_kernel_and_nothing_is_copied_within_a_step(tmp_path, model, form):
    nodes = placed(plan(tiny(tmp_path, *model), form), tmp_path)
    assert nodes.without_kernel() == []
    assert nodes.copies == []
    assert {"If", "Loop", "Scan"} & {node.op_type for node, _ in nodes.device} == set()


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_every_option_of_a_function_would_run_on_cuda(tmp_path, option):
    """In bodies that no rewrite knows, too. If this fails, another operator in the body may do."""
    plain = ["plain"] if option in {*PLAIN_ACTS} - {*ACTS} else []
    nodes = placed(plan(tiny(tmp_path, "float32", "token", *plain, option), "double"), tmp_path)
    assert (nodes.without_kernel(), nodes.copies) == ([], [])


def test_a_node_without_a_kernel_is_found(tmp_path):
    nodes = placed(plan(tiny(tmp_path, *MODELS[0]), "uint8"), tmp_path)
    assert nodes.without_kernel() == ["MatMulInteger-10 uint8 uint8 int32"]


def test_a_size_that_is_computed_with_is_found(tmp_path):
    artifact = tiny(tmp_path, *MODELS[0])
    table = {**exact.REWRITES, "Norm": lambda call: call.rewrite("""
        size = Shape <start = -2, end = -1> (x)
        share = Cast <to = 1> (size)
        y = Mul (x, share)
    """)}  # fmt: skip
    nodes = placed(plan_of(tmp_path, artifact.graph, "double", table), tmp_path)
    assert [copy.partition(" → ")[2] for copy in nodes.copies] == ["Cast"] * 5


@pytest.mark.parametrize(("form", "most"), [("double", 5600), ("int8", 6600), ("fast", 900)])
def test_thirty_layers_launch_so_many_kernels_at_most(tmp_path, monkeypatch, form, most):
    """SmolLM2-135M's: the provider itself launches 5,227, 6,437 and 676, its libraries' products included."""
    kernels = []
    for layers in (2, 3):
        monkeypatch.setattr("tests.tiny_graphs.LAYERS", layers)
        nodes = placed(plan(tiny(tmp_path, "float32", "token"), form), tmp_path)
        kernels.append(nodes.kernels)
    assert kernels[0] + 28 * (kernels[1] - kernels[0]) <= most


def test_no_operator_of_onnx_multiplies_integers_of_4_bits():
    """docs/gpu.md: what keeps INT4 tensor cores out of reach. When this fails, the page has news to tell."""
    known = [schema for schema in onnx.defs.get_all_schemas() if schema.domain == ""]
    takes = {
        schema.name
        for schema in known
        if any("tensor(int4)" in one.allowed_type_strs for one in schema.type_constraints)
    }
    moves = (
        "BitCast Cast CastLike Constant ConstantOfShape DequantizeLinear Flatten Identity If Loop Optional "
        "OptionalGetElement OptionalHasElement Pad QuantizeLinear Reshape Scan Shape Size Squeeze "
        "TensorScatter Transpose Unsqueeze"
    )
    assert takes <= {*moves.split()}
    assert KERNELS["MatMulInteger-10"] == [["int8", "int8", "int32"]]
    assert not [name for name in KERNELS if name.startswith(("QLinearMatMul", "ConvInteger", "QLinearConv"))]


def test_a_function_that_no_rewrite_knows_has_the_files_weights_and_its_product(tmp_path, monkeypatch):
    artifact = tiny(tmp_path, *MODELS[0])
    others = {name: rewrite for name, rewrite in exact.REWRITES.items() if "Flat" not in name}
    for form, signed in (("uint8", 0), ("double", 1)):
        made_of = plan_of(tmp_path, artifact.graph, form, others)
        (constant,) = [one for one in made_of.model.graph.initializer if one.name == SIGNED]
        assert numpy_helper.to_array(constant) == signed
    monkeypatch.setattr("flatlm.runtime.backends.onnx_plan.backend.REWRITES", others)
    ids = np.arange(CONTEXT)
    found = PlanBackend(artifact, threads=1).forward(ids, CONTEXT)
    np.testing.assert_array_equal(bits(found), bits(NumpyBackend(artifact).forward(ids, CONTEXT)))


# ---- --fast


@models
def test_fast_operators_compute_the_functions_but_for_rounding(tmp_path, monkeypatch, model):
    artifact = tiny(tmp_path, *model)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, 8)
    expected = NumpyBackend(artifact).forward(ids, 8)
    products = dict.fromkeys(LINEARS, exact.product)
    monkeypatch.setattr("flatlm.runtime.backends.onnx_plan.backend.FAST", {**fast.FAST, **products})
    found = PlanBackend(artifact, threads=1, fast=True).forward(ids, 8)
    errors = np.abs(found - expected).max(axis=-1) / np.abs(expected).max(axis=-1)
    assert errors.min() < 1e-5  # where it is more, some integer lies on the other side of a rounding
    assert np.median(errors) < 0.05


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("activations", ["static", "token"])
def test_a_fast_product_is_that_of_the_weights_as_they_are(tmp_path, activations, layer):
    graph = quantized_graph(0, "float32", activations)
    node = next(node for node in graph.nodes if node.name == f"layers.{layer}.mlp.gate_up")
    call = Call(graph, node, "double", {"x": "x", "bias": node.inputs[3]}, ["y"], [])
    fast.product(call)
    inputs = list(call.inputs.values())
    constants = {**call.arrays, node.inputs[3]: graph.array(node.inputs[3])}
    function = made(node.op, "", list(call.inputs), ["y"], call.nodes)
    x = np.random.default_rng(3).standard_normal((1, 3, HIDDEN)).astype(np.float32)
    (found,) = run(helper.make_node(node.op, inputs, ["y"], domain="flatlm"), function, constants, x)
    roles = ops.named(node)
    scale = graph.array(roles["scale"])
    if "inverse_scale" in roles:
        scale = scale * graph.array(roles["inverse_scale"])
    expected = x @ (graph.totals(node) * scale[:, None]).T + graph.array(roles["bias"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def run(node, function, constants, x):
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    values = [helper.make_tensor_value_info(name, 1, None) for name in ("x", "y")]
    model = helper.make_model(
        helper.make_graph([node], "one", values[:1], values[1:], tensors),
        functions=[function],
        opset_imports=[helper.make_opsetid(*one) for one in (("", 24), ("flatlm", 1), ("com.microsoft", 1))],
        ir_version=11,
    )
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})


def test_fast_is_for_ort_alone(tmp_path):
    with pytest.raises(BackendError, match="'numpy' has no --fast"):
        open_backend("numpy", tiny(tmp_path, *MODELS[0]), BackendOptions(fast=True))


# ---- what is refused


@pytest.mark.parametrize(
    ("op", "why"),
    [
        ("Append", "'Append' of 'layers.0.attention.append' has a state"),
        ("Attend", "'Attend' .* reads a cache"),
    ],
)
def test_a_function_that_no_rewrite_knows_is_refused_by_name_and_the_file_runs(
    tmp_path, monkeypatch, op, why
):
    artifact = tiny(tmp_path, *MODELS[0])
    assert isinstance(open_ort(artifact, threads=1), PlanBackend)
    others = {name: rewrite for name, rewrite in exact.REWRITES.items() if name != op}
    monkeypatch.setattr("flatlm.runtime.backends.onnx_plan.backend.REWRITES", others)
    with pytest.raises(Refused, match=why):
        PlanBackend(artifact, threads=1)
    backend = open_ort(artifact, threads=1)
    assert isinstance(backend, OrtBackend)
    ids = np.arange(CONTEXT)
    np.testing.assert_array_equal(backend.forward(ids, CONTEXT), NumpyBackend(artifact).forward(ids, CONTEXT))


def test_without_the_package_onnx_the_file_runs_and_fast_says_what_to_install(tmp_path, monkeypatch):
    artifact = tiny(tmp_path, *MODELS[0])
    for name in [name for name in __import__("sys").modules if "onnx_plan." in name]:
        monkeypatch.delitem(__import__("sys").modules, name)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert isinstance(open_ort(artifact, threads=1), OrtBackend)
    with pytest.raises(BackendError, match=r"--fast .* package onnx: pip install 'flatlm\[ort\]'"):
        open_ort(artifact, threads=1, fast=True)
