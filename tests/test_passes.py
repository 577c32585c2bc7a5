"""The passes keep what they promise, alone and together on a tiny random model."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from flatlm.export import calibrate, execute
from flatlm.export.emit import PackedMatrix
from flatlm.export.ops.flat_linear import token_steps
from flatlm.export.passes import bits, smooth, split
from flatlm.export.passes.flatten import MAX_PIECES, flatten, flatten_by_token, rounded
from flatlm.export.passes.grid import excess_share, round_weights, weight_grid
from flatlm.export.quantize import quantize
from flatlm.export.recipe import INGREDIENTS, RECIPES
from flatlm.kernels_arm import layout
from flatlm.kernels_arm.ops import ACTS
from flatlm.runtime.backends.numpy import NumpyBackend
from flatlm.runtime.errors import UsageError
from flatlm.runtime.format.functions import LINEAR, LINEARS, TOKEN_LINEAR, check_graph
from flatlm.runtime.format.graph import Graph, Node, Tensor
from flatlm.runtime.ops import named

VOCABULARY, HIDDEN, WIDE, HEADS, GROUPS, SIZE, LAYERS = 61, 20, 37, 6, 2, 4, 2


def float_graph(
    seed: int = 0,
    tied: bool = True,
    *,
    qk_norm: bool = False,
    window: int = 0,
    gate: str = "silu",
    plain: str = "",
) -> Graph:
    """A decoder in the float functions, with odd sizes, and a few channels and weights far too large."""
    rng = np.random.default_rng(seed)
    graph = Graph(inputs=["input_ids", "position_ids"], outputs=["logits"])
    graph.metadata = {"vocab_size": str(VOCABULARY), "context_length": "64"}

    def constant(name: str, value: np.ndarray) -> str:
        graph.constants[name] = Tensor.of(np.asarray(value, np.float32))
        return name

    def node(op: str, name: str, *inputs: str, outputs: tuple[str, ...] = (), **attrs) -> str:
        graph.nodes.append(Node(op, inputs, outputs or (name,), attrs, name))
        return graph.nodes[-1].outputs[0]

    def norm(name: str, x: str) -> str:
        weight = rng.uniform(0.5, 1.5, HIDDEN) * np.where(np.arange(HIDDEN) == 3, 9, 1)
        return node("Norm", name, x, constant(f"{name}.weight", weight), epsilon=1e-5)

    def head_norm(name: str, x: str) -> str:
        weight = constant(f"{name}.weight", rng.uniform(0.5, 1.5, SIZE))
        return node("HeadNorm", name, x, weight, epsilon=1e-5)

    def linear(name: str, x: str, n: int, k: int) -> str:
        weight = rng.normal(size=(n, k)) / np.sqrt(k)
        weight[n // 2, k // 2] *= 20
        constant(f"{name}.weight", weight)
        return node("Linear", name, x, f"{name}.weight", constant(f"{name}.bias", rng.normal(size=n) / 9))

    frequency = constant("rotary.inverse_frequency", 100.0 ** (-np.arange(0, SIZE, 2) / SIZE))
    rotary = ("cos", "sin")
    node("RotaryTable", "rotary", "position_ids", frequency, outputs=rotary)
    x = node(
        "Embedding",
        "embedding",
        "input_ids",
        constant("embedding.weight", rng.normal(size=(VOCABULARY, HIDDEN))),
    )
    for i in range(LAYERS):
        at, past = f"layers.{i}.attention", [f"past_key_values.{i}.{part}" for part in ("key", "value")]
        graph.inputs += past
        qkv = linear(f"{at}.qkv", norm(f"{at}.norm", x), (HEADS + 2 * GROUPS) * SIZE, HIDDEN)
        q, k, v = (f"{at}.heads.{part}" for part in "qkv")
        shape = {"num_heads": HEADS, "kv_num_heads": GROUPS, "head_size": SIZE}
        node("Heads", f"{at}.heads", qkv, outputs=(q, k, v), **shape)
        if qk_norm:
            q, k = (head_norm(f"{at}.{x[-1]}_norm", x) for x in (q, k))
        q, k = (node("Rotate", f"{at}.rotate_{part}", x, *rotary) for part, x in (("q", q), ("k", k)))
        present, state = (f"present.{i}.key", f"present.{i}.value"), {"state": "float32"}
        node("Append", f"{at}.append", k, v, *past, outputs=present, **state)
        graph.outputs += present
        options = {"window": window} if window else {}
        attended = node("Attend", f"{at}.attend", q, *present, scale=SIZE**-0.5, **state, **options)
        x = node("Add", f"{at}.add", x, linear(f"{at}.out", attended, HIDDEN, HEADS * SIZE))
        at = f"layers.{i}.mlp"
        op, name, rows = ("Activation", plain, WIDE) if plain else ("Gated", gate, 2 * WIDE)
        act = node(op, f"{at}.act", linear(f"{at}.gate_up", norm(f"{at}.norm", x), rows, HIDDEN), act=name)
        x = node("Add", f"{at}.add", x, linear(f"{at}.down", act, HIDDEN, WIDE))
    normed = norm("norm", x)
    head = "embedding.weight" if tied else constant("head.weight", rng.normal(size=(VOCABULARY, HIDDEN)))
    bias = constant("head.bias", np.zeros(VOCABULARY))
    node("Linear", "head", normed, head, bias, outputs=("logits",))
    return graph


def random_tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count)


# ---- flatten
def test_flattening_covers_the_maxima_within_its_share_of_channels():
    maxima = np.exp(np.random.default_rng(1).normal(size=400) * 2)
    f = flatten(maxima, 127, 0.05)
    assert f.wide <= 20
    assert (f.pieces * f.threshold >= maxima * (1 - 1e-6)).all()
    assert f.pieces.max() <= MAX_PIECES
    assert f.threshold < flatten(maxima, 127, 0.0).threshold == pytest.approx(maxima.max())


def test_a_layer_that_only_ever_sees_zeros_flattens_to_one_column_each():
    f = flatten(np.zeros(5), 127, 0.05)
    assert f.pieces.tolist() == [1] * 5
    assert np.isfinite(f.inverse_scale)


# ---- flatten by token
def tokens_of_many_sizes(m: int, k: int) -> np.ndarray:
    """Rows of very different sizes; every seventh channel is 20 times the others."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(m, k)) * np.where(np.arange(k) % 7 == 3, 20, 1)
    return (x * np.exp(3 * rng.normal(size=(m, 1)))).astype(np.float32)


def test_by_token_the_wide_groups_are_no_more_than_allowed_and_leave_the_step_to_the_others():
    x = tokens_of_many_sizes(200, 280)
    f = flatten_by_token(calibrate.Inputs(np.abs(x).max(0), x), 127, 0.6)
    assert 0 < f.double_groups <= 0.6 * 70
    wide = np.repeat((f.pieces.reshape(-1, 4) > 1).any(1), 4)
    assert (f.pieces[~wide] == 1).all()
    assert (f.pieces[np.arange(280) % 7 == 3] > 1).all()
    _, step = token_steps(x, f.limit, 127)
    np.testing.assert_allclose(step[:, 0], np.abs(x[:, ~wide]).max(1) / 127, rtol=1e-5)


def test_by_token_rows_keep_the_same_relative_error_whatever_their_size():
    x = tokens_of_many_sizes(200, 280)
    inputs = calibrate.Inputs(np.abs(x).max(0), x)
    error = {}
    for name, f in (
        ("static", flatten(inputs.maxima, 127, 0.2)),
        ("token", flatten_by_token(inputs, 127, 0.6)),
    ):
        wrong = np.linalg.norm(rounded(10 * x, f) - 10 * x, axis=1) / np.linalg.norm(10 * x, axis=1)
        error[name] = wrong.max()
    assert error["token"] < 0.004 < 0.5 < error["static"]


def test_two_digits_throughout_leave_no_sum_that_int32_could_not_hold():
    x = tokens_of_many_sizes(20, 600)
    for k in (600, 16_000, 40_000):
        f = flatten_by_token(calibrate.Inputs(np.ones(k), np.resize(x, (20, k))), 127, 1.0)
        most = int(f.pieces[0])
        assert (f.pieces == most).all()
        assert most * 127 * 127 * k < 2**31 or most == 1
        assert most == 127 or (most + 1) * 127 * 127 * k >= 2**31


def test_a_budget_of_nothing_flattens_nothing_by_token():
    x = tokens_of_many_sizes(20, 10)
    assert flatten_by_token(calibrate.Inputs(np.abs(x).max(0), x), 127, 0.0).pieces.tolist() == [1] * 10


# ---- weights
@pytest.mark.parametrize("per_row", [False, True])
def test_sparse_excess_holds_large_weights_exactly(per_row: bool):
    rng = np.random.default_rng(2)
    weight = rng.standard_t(2, size=(37, 50)).astype(np.float32)
    grid = weight_grid(weight, [slice(0, 20), slice(20, 37)], 4, per_row, 2.5)
    integers = round_weights(weight, grid)
    delta, value = layout.encode_excess(integers.astype(np.int16))
    kept = layout.totals_of(PackedMatrix(integers, 4).tensor().data, 37, 50, 4, delta, value)
    assert 0 < excess_share(integers, grid) < 0.1
    assert np.array_equal(kept, integers)
    assert np.abs(weight - kept * grid.steps[:, None]).max() <= 0.5001 * grid.steps.max()


def test_fused_tensors_each_have_their_own_step():
    weight = np.vstack([np.ones((4, 8)), 100 * np.ones((2, 8))]).astype(np.float32)
    grid = weight_grid(weight, [slice(0, 4), slice(4, 6)], 8, False, 2.5)
    assert grid.steps == pytest.approx([1 / 127] * 4 + [100 / 127] * 2)


# ---- smooth and split
@pytest.mark.parametrize(
    "options",
    [{}, {"qk_norm": True}, {"window": 3}, {"gate": "gelu_tanh"}, *({"plain": act} for act in ACTS)],
    ids=str,
)
def test_smoothing_leaves_the_float_function_unchanged(options):
    graph, tokens = float_graph(**options), random_tokens(24).reshape(2, 12)
    before = execute.logits(graph, tokens)
    rng = np.random.default_rng(3)
    folds = smooth.folds(graph)
    carries = options.get("plain", "relu") in ("relu", "relu2")  # act(s · x) is a power of s times act(x)
    assert len(folds) == (4 if carries else 3) * LAYERS
    for fold in folds:
        k = len(fold.index)
        s = smooth.Tied(fold.index).scales(rng.uniform(0.1, 9, k), rng.uniform(0.1, 9, k), 0.5)
        smooth.apply(graph, fold, s)
    assert execute.logits(graph, tokens) == pytest.approx(before, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "left"), [({}, ()), ({"plain": "relu2"}, ()), ({"plain": "gelu"}, ("mlp.down",))], ids=str
)
def test_a_report_says_which_layers_no_scale_could_be_moved_out_of(options, left):
    recipe = dataclasses.replace(RECIPES["w8a8"], windows=1, alphas=(0.5,))
    _, report = quantize(float_graph(**options), recipe, random_tokens(40))
    assert report.unsmoothed == left
    assert ("not smoothed: mlp.down" in report.table()) == bool(left)


def test_heads_that_share_a_value_row_share_its_smoothing():
    graph = float_graph()
    fold = next(f for f in smooth.folds(graph) if f.linear.name.endswith("out"))
    s = smooth.Tied(fold.index).scales(np.arange(1.0, 25), np.ones(24), 0.5)
    heads = s.reshape(GROUPS, HEADS // GROUPS, SIZE)
    assert (heads == heads[:, :1]).all()
    assert len(np.unique(heads[:, 0])) > 1


def test_only_an_untied_head_may_be_smoothed():
    linears = [
        {fold.linear.name for fold in smooth.folds(g)} for g in (float_graph(), float_graph(tied=False))
    ]
    assert ["head" in names for names in linears] == [False, True]


@pytest.mark.parametrize("plain", ["", "relu2"])
def test_splitting_leaves_the_float_function_unchanged_and_shrinks_the_largest_weight(plain):
    graph, tokens = float_graph(plain=plain), random_tokens(24).reshape(2, 12)
    before = execute.logits(graph, tokens)
    fold = next(f for f in smooth.folds(graph) if f.gated)
    name = fold.linear.inputs[1]
    largest = np.abs(graph.array(name)).max()
    found = split.split(np.ones(WIDE), graph.array(name), budget=0.2, wide=0.05)
    assert found is not None
    assert 0 < len(found.channel) - WIDE <= 0.2 * WIDE
    split.apply(graph, fold, found)
    assert np.abs(graph.array(name)).max() < 0.5 * largest
    assert execute.logits(graph, tokens) == pytest.approx(before, rel=1e-3, abs=1e-3)


def test_reordering_leaves_the_float_function_unchanged_and_sorts_the_inputs():
    graph, tokens = float_graph(), random_tokens(24).reshape(2, 12)
    before = execute.logits(graph, tokens)
    fold = next(f for f in smooth.folds(graph) if f.gated)
    maxima = np.random.default_rng(5).uniform(0, 1, WIDE)
    order = split.by_size(maxima)
    assert (np.diff(maxima[order.channel]) <= 0).all()
    split.apply(graph, fold, order)
    assert execute.logits(graph, tokens) == pytest.approx(before, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("activations", ["static", "token"])
def test_wide_channels_of_a_gated_mlp_lie_side_by_side(activations: str):
    graph = float_graph()
    recipe = dataclasses.replace(
        RECIPES["edge"], windows=4, wide_channels=0.2, two_digits=(), activations=activations
    )
    result, _ = quantize(graph, recipe, random_tokens(2048))
    for node in (node for node in result.nodes if node.name.endswith("down")):
        pieces = result.array(named(node)["limit"]) / int(node.attrs["levels"])
        wide = (pieces > 1).sum()
        assert 0 < wide < len(pieces)
        # sorted by the float model's inputs; those of the quantized model differ a little
        assert (pieces[:wide] > 1).sum() >= 0.6 * wide


def test_relief_grows_the_scale_of_a_channel_too_large_to_flatten():
    maxima, index = np.ones(100), np.arange(100)
    maxima[7] = 1e4
    s = smooth.Tied(index).relieve(maxima, np.ones(100, np.float32), 0.05)
    assert s[7] == pytest.approx(1e4 / MAX_PIECES)
    assert (np.delete(s, 7) == 1).all()


# ---- bits
def variants(weights: int, *rows: tuple[int, float, float, float]) -> list[bits.Variant]:
    """(bits, sigma, bits per weight, KL)."""
    return [bits.Variant(n, sigma, weights * size / 8, kl) for n, sigma, size, kl in rows]


LAYERS_TO_CHOOSE = {
    "a": variants(100, (4, 2.5, 4.2, 0.5), (8, 2.5, 8, 0.0)),
    "b": variants(400, (4, 2.5, 4.2, 0.6), (8, 2.5, 8, 0.0)),
    "c": variants(100, (4, 3.0, 4.1, 0.2), (4, 2.5, 4.2, 0.1), (8, 2.5, 8, 0.09)),
}


@pytest.mark.parametrize(
    ("per_weight", "expected"),
    [
        (4.0, {"a": (4, 2.5), "b": (4, 2.5), "c": (4, 3.0)}),
        (4.21, {"a": (4, 2.5), "b": (4, 2.5), "c": (4, 2.5)}),
        (4.9, {"a": (8, 2.5), "b": (4, 2.5), "c": (4, 2.5)}),
        (8.0, {"a": (8, 2.5), "b": (8, 2.5), "c": (8, 2.5)}),
    ],
)
def test_bytes_go_where_they_save_most_divergence(per_weight, expected):
    chosen = bits.within_bytes(LAYERS_TO_CHOOSE, 600 * per_weight / 8)
    assert {name: (v.bits, v.sigma) for name, v in chosen.items()} == expected


def test_a_variant_that_a_mixture_of_others_beats_is_never_chosen():
    line = variants(
        8, (4, 3.0, 4, 1.0), (4, 2.5, 5, 0.9), (4, 2.0, 6, 0.2), (8, 2.5, 8, 0.1), (8, 2.6, 9, 0.1)
    )
    assert [v.kl for v in bits.hull(line)] == [1.0, 0.2, 0.1]


def test_the_frontier_falls_in_divergence_as_it_grows_in_bytes():
    points = bits.frontier(LAYERS_TO_CHOOSE)
    assert len(points) == 5
    assert all(a.bytes < b.bytes and a.kl > b.kl for a, b in itertools.pairwise(points))
    assert bits.within_kl(LAYERS_TO_CHOOSE, 0.7) == dict(points[2].chosen)


# ---- all of it
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("activations", ["static", "token"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_quantized_model_is_valid_and_runs_as_the_reference_does(name: str, activations: str, tied: bool):
    graph = float_graph(tied=tied)
    recipe = dataclasses.replace(RECIPES[name], windows=4, kv="float32", activations=activations)
    result, report = quantize(graph, recipe, random_tokens(2048))
    check_graph(result)
    backend = NumpyBackend(_Artifact(result))
    ids = random_tokens(20, seed=1)
    exact, near = backend.forward(ids, 20), execute.logits(result, ids[None])[0]
    # an input that falls to the other side of a rounding boundary moves its token's logits
    assert np.isclose(near, exact, rtol=0.02, atol=0.05).mean() > 0.9
    assert np.linalg.norm(near - exact) < 0.02 * np.linalg.norm(exact)
    assert len(report.layers) == 4 * LAYERS + 1
    assert report.bytes_total == sum(t.data.nbytes for t in result.constants.values())
    assert {node.op for node in graph.nodes} & set(LINEARS) == set()
    assert {n.op for n in result.nodes} & set(LINEARS) == {TOKEN_LINEAR if activations == "token" else LINEAR}


@dataclasses.dataclass
class _Artifact:
    graph: Graph


def test_eight_bits_stay_close_to_the_float_model_and_flattening_helps():
    graph, tokens, test = float_graph(), random_tokens(2048), random_tokens(256, 1).reshape(4, 64)
    kl = {}
    for name in ("w8a8", "naive8"):
        result, _ = quantize(graph, RECIPES[name], tokens)
        kl[name] = execute.evaluate(result, test, graph).kl or 0.0
    assert kl["w8a8"] < 0.3 * kl["naive8"]


def test_each_ingredient_can_be_left_out():
    graph, tokens = float_graph(), random_tokens(512)
    for ingredient in INGREDIENTS:
        recipe = dataclasses.replace(RECIPES["w8a8"], skip=(ingredient,), windows=1)
        check_graph(quantize(graph, recipe, tokens)[0])


def test_the_float_graph_is_left_as_it_was():
    graph = float_graph()
    before = {name: tensor.data.copy() for name, tensor in graph.constants.items()}
    quantize(graph, RECIPES["edge"], random_tokens(512))
    assert all(np.array_equal(graph.constants[name].data, data) for name, data in before.items())


def test_the_budget_of_bits_counts_every_byte_of_the_body():
    recipe = dataclasses.replace(
        RECIPES["edge"], bits_per_weight=8.5
    )  # tables of so small a model weigh much
    result, report = quantize(float_graph(), recipe, random_tokens(1024))
    body = sum(t.data.nbytes for name, t in result.constants.items() if name.startswith("layers."))
    assert 4 in {layer.bits for layer in report.body}
    assert report.bits_per_weight == 8 * body / sum(layer.weights for layer in report.body)


def test_progress_is_told_to_the_end_of_every_stage():
    told: dict[str, list[tuple[int, int]]] = {}

    def tell(stage):
        return lambda done, total: told.setdefault(stage, []).append((done, total))

    quantize(float_graph(), RECIPES["edge"], random_tokens(64), tell)
    assert len(told) == 3
    for calls in told.values():
        assert calls[0][0] == 0
        assert calls[-1] == (LAYERS + 2, LAYERS + 2)


def test_a_calibration_text_too_short_is_an_error_that_says_so():
    with pytest.raises(UsageError, match="3 tokens"):
        calibrate.windows(np.arange(3), 4)


def test_the_calibration_text_that_ships_is_long_enough():
    assert 60_000 < len(calibrate.text()) < 110_000


@pytest.mark.parametrize("tied", [False, True])
def test_the_whole_model_fits_the_size_that_was_asked_for_with_its_head_among_the_choices(tied: bool):
    graph, tokens = float_graph(tied=tied), random_tokens(2048)
    found = []
    for size in (0.013, 0.015, 0.018, 0.03) if tied else (0.015, 0.017, 0.02, 0.03):
        recipe = dataclasses.replace(RECIPES["edge"], windows=4, size=size, sigmas=(3.0, 2.0))
        _, report = quantize(graph, recipe, tokens)
        assert report.chosen[0] <= 1e6 * size
        assert report.bytes_total == pytest.approx(report.chosen[0], rel=0.05)
        assert report.frontier[0][0] <= report.chosen[0] <= report.frontier[-1][0]
        found.append((report.bytes_total, -report.chosen[1], report.layers[-1].bits))
    assert found == sorted(found)
    assert {bits for _, _, bits in found} == {4, 8}
