"""The native backend against the numpy one: the same bits, whatever batch, threads and neighbours."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from flatlm.kernels_arm import probes
from flatlm.kernels_arm.probes import Limits
from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.backends.numpy import NumpyBackend
from flatlm.runtime.errors import BackendError, ContextError, ResourceError
from flatlm.runtime.measuring import per_op, roofline, rows, sustained
from flatlm.runtime.measuring.bench import Result
from tests.tiny_graphs import CONTEXT, VOCABULARY, quantized_graph

CUTS = [[24], [1] * 24, [5, 19], [3, 7, 2, 12], [16, 8], [17, 7], [2] * 12, [4] * 6, [8] * 3]


MODELS = [  # cache, activations, options
    ("float32", "static"),
    ("int8", "static"),
    ("float32", "token"),
    ("float32", "static", "qk_norm"),
    ("int8", "token", "qk_norm"),
    ("float32", "token", "window"),
    ("float32", "static", "gelu_tanh"),
    ("int8", "token", "gelu_tanh"),
    ("int8", "static", "window"),
    ("float32", "static", "plain", "gelu", "output_gate"),
    ("int8", "token", "plain", "relu2", "output_gate"),
    ("float32", "token", "experts"),
    ("int8", "static", "sigmoid_experts"),
    ("float32", "token", "topk_experts"),
    ("float32", "static", "softcap", "slopes", "window", "logit_cap"),
    ("int8", "token", "softcap", "slopes", "sinks", "window"),
    ("float32", "token", "sinks", "no_rotation", "positions", "norms", "centered"),
    ("int8", "static", "qk_norm", "own", "centered", "no_rotation"),
    ("float32", "static", "qk_norm", "all", "norm_last", "plain", "xielu"),
]


@pytest.fixture(scope="module", params=MODELS, ids="-".join)
def artifact(request):
    return SimpleNamespace(graph=quantized_graph(0, *request.param))


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(0).integers(0, VOCABULARY, CONTEXT)


@pytest.fixture(scope="module")
def expected(artifact, ids):
    return NumpyBackend(artifact).forward(ids, CONTEXT)


def logits_in(backend, ids, cut):
    backend.truncate(0)
    ends = np.cumsum(cut)
    return np.concatenate(
        [backend.forward(ids[end - size : end], size) for end, size in zip(ends, cut, strict=True)]
    )


def same_bits(a, b):
    return np.array_equal(a.view(np.int32), b.view(np.int32))


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_logits_equal_the_reference_however_the_tokens_are_cut(artifact, ids, expected, cut, threads):
    backend = NativeBackend(artifact, threads=threads)
    assert same_bits(logits_in(backend, ids, cut), expected)
    backend.close()


@pytest.mark.parametrize("seed", range(1, 4))
def test_other_weights_agree_too(seed, ids):
    artifact = SimpleNamespace(graph=quantized_graph(seed, activations=("static", "token")[seed % 2]))
    backend = NativeBackend(artifact, threads=2)
    assert same_bits(backend.forward(ids, CONTEXT), NumpyBackend(artifact).forward(ids, CONTEXT))
    backend.close()


def test_forgetting_tokens_leaves_no_trace(artifact, ids, expected):
    backend = NativeBackend(artifact, threads=2)
    backend.forward(ids[:10])
    backend.forward(ids[::-1][:9])
    backend.truncate(10)
    assert backend.position == 10
    assert same_bits(backend.forward(ids[10:], 14), expected[10:])
    backend.close()


def test_two_models_share_a_process(ids):
    artifacts = [SimpleNamespace(graph=quantized_graph(*model)) for model in ((5, "int8"), (6, "float32"))]
    backends = [NativeBackend(a, threads=2) for a in artifacts]
    wanted = [NumpyBackend(a).forward(ids, CONTEXT) for a in artifacts]
    rows = [[b.forward(ids[i : i + 1])[0] for i in range(CONTEXT)] for b in backends]
    for got, want in zip(rows, wanted, strict=True):
        assert same_bits(np.array(got), want)
    for backend in backends:
        backend.close()


def test_an_exception_in_one_step_leaves_the_team_usable(artifact, ids, expected, monkeypatch):
    backend = NativeBackend(artifact, threads=2)
    backend.forward(ids[:3])
    step = backend.team.step

    def interrupted():
        step()
        raise KeyboardInterrupt  # as Python does, when the compiled step returns

    monkeypatch.setattr(backend.team, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        backend.forward(ids[3:4])
    monkeypatch.undo()
    assert backend.position == 3
    assert same_bits(backend.forward(ids[3:], CONTEXT - 3), expected[3:])
    backend.close()


def test_the_cost_of_rows_is_relative_to_one_row(artifact):
    backend = NativeBackend(artifact, threads=2)
    costs = rows.measure(backend, (2, 4), 2)
    assert [cost.rows for cost in costs] == [1, 2, 4]
    assert (costs[0].ratio, backend.position) == (1.0, 0)
    assert "of one" in rows.table(costs)
    backend.close()


def test_the_cost_of_sequences_is_relative_to_one(artifact):
    backend = NativeBackend(artifact, threads=2, slots=4)
    costs = rows.measure(backend, (4, 2), 2, depth=5, together=True)
    assert [cost.rows for cost in costs] == [1, 2, 4]
    assert (costs[0].ratio, backend.positions) == (1.0, [0] * 4)
    assert "sequences of a step" in rows.table(costs, "sequences")
    backend.close()


def test_writing_for_a_while_tells_both_ends(artifact):
    backend = NativeBackend(artifact, threads=2)
    found = sustained.measure(backend, 0.2)
    assert found.seconds >= 0.2
    assert min(found.first, found.last) > 0
    assert "temperature: " in sustained.describe(found)
    backend.close()


def test_probes_find_what_no_product_exceeds(artifact):
    backend = NativeBackend(artifact, threads=2)
    limits = probes.measure(backend.kernels, 2, size=2**20)
    assert min(limits.read, limits.multiplications) > 1e8
    result = Result("tiny", 1, 1, "native", 2, "tg4", (10.0,))
    line = roofline.place(backend, [limits, limits], result, 1)
    size, count = roofline.work(backend.plan.ops, 8, 1)
    assert (line.bytes, line.read, line.operations) == (size, 10.0 * size, 2 * count)
    assert "tg4" in roofline.table([line])
    backend.close()


def test_a_share_is_of_the_repetitions_during_which_the_machine_was_the_same(artifact):
    backend = NativeBackend(artifact, threads=2)
    fast, slow = Limits(2, 60e9, 400e9), Limits(2, 30e9, 400e9)
    result = Result("tiny", 1, 1, "native", 2, "tg4", (10.0, 20.0, 30.0))
    line = roofline.place(backend, [fast, slow, slow, slow], result, 1)
    size = roofline.work(backend.plan.ops, 8, 1)[0]
    assert line.repetitions == (2, 3)
    assert (line.probe, line.read) == (slow, 25.0 * size)
    assert line.read_share == pytest.approx(25.0 * size / 30e9, rel=1e-12)
    backend.close()


def test_threads_that_slept_wake_for_the_next_step(artifact, ids, expected):
    import time

    backend = NativeBackend(artifact, threads=3)
    for i in range(3):
        assert same_bits(backend.forward(ids[i : i + 1]), expected[i : i + 1])
        time.sleep(0.1)  # long enough for the team to park
    backend.close()


def test_more_tokens_than_the_context_are_refused_with_both_numbers(artifact, ids):
    backend = NativeBackend(artifact, context=16)
    backend.forward(ids[:10])
    with pytest.raises(ContextError, match=r"10 \+ 7 tokens.*16"):
        backend.forward(ids[:7])
    assert backend.position == 10
    backend.close()


def test_a_model_that_does_not_fit_is_refused_with_the_numbers(artifact, monkeypatch):
    monkeypatch.setattr("flatlm.runtime.memory.available_bytes", lambda: 1_000)
    with pytest.raises(
        ResourceError, match=r"weights .* K/V cache .* 24 tokens.* 0 MB are free: use a smaller --ctx"
    ):
        NativeBackend(artifact)


def test_an_id_outside_the_vocabulary_is_refused(artifact):
    backend = NativeBackend(artifact)
    with pytest.raises(BackendError, match=f"0 … {VOCABULARY - 1}"):
        backend.forward(np.array([VOCABULARY]))
    backend.close()


def test_the_time_of_a_step_is_shared_among_its_operations(artifact):
    backend = NativeBackend(artifact, threads=2)
    times = per_op.measure(backend, 1)
    assert sum(op.count for op in times) == len(backend.plan.ops)
    assert all(op.seconds > 0 for op in times)
    alone = {"HeadNorm": "norm", "OutputGate": "gate", "SoftCap": "softcap"}
    more = {alone[node.op] for node in artifact.graph.nodes if node.op in alone}
    routed = any(node.op == "Route" for node in artifact.graph.nodes)
    more |= {"route", "pack", "experts", "sum", "add"} if routed else set()
    if any(node.name == "positions" for node in artifact.graph.nodes):  # with additional norms
        more |= {"norm", "gate", "add"}
    names = {op.name.split()[0] for op in times}
    assert names == {"embed", "quantize", "product", "rotate", "attend"} | more
    head = next(op for op in times if op.name == "product head")
    assert head.multiplications >= backend.vocab
    assert "product head" in per_op.table(times, Limits(2, 1e9, 1e9))
    backend.close()
