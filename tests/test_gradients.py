"""Gradients against finite differences, and the KL they predict against the KL that is measured."""

from __future__ import annotations

import numpy as np
import pytest

from flatlm.export import execute
from flatlm.export.gradients import backward, draw
from flatlm.export.probabilities import divergence, log_softmax
from flatlm.runtime.format.graph import Tensor
from tests.test_passes import float_graph, random_tokens


@pytest.mark.parametrize(
    "options",
    [{}, {"qk_norm": True}, {"window": 3}, {"gate": "gelu_tanh"}, {"plain": "relu2"}, {"plain": "gelu"}],
    ids=str,
)
def test_gradients_are_those_of_finite_differences(options):
    graph = float_graph(**options)
    nodes = graph.nodes
    env = execute.chunks(random_tokens(14).reshape(2, 7))[0]
    execute.run(execute.prepare(graph, nodes), env)
    towards = np.random.default_rng(0).normal(size=(1, *env["logits"].shape)).astype(np.float32)
    gradients = {"logits": towards}
    backward(graph, nodes, env, gradients)
    for name in [node.outputs[0] for node in nodes if node.op in ("Linear", "Norm", "Add")][:-1]:
        step = np.random.default_rng(1).normal(size=env[name].shape)
        moved = {}
        for sign in (-1, 1):
            other = {key: env[key].astype(np.float64) for key in env}
            other[name] = env[name] + sign * 1e-3 * step
            after = nodes[1 + max(i for i, node in enumerate(nodes) if name in node.outputs) :]
            execute.run(execute.prepare(graph, after), other)
            moved[sign] = float(np.vdot(towards[0], other["logits"]))
        expected = (moved[1] - moved[-1]) / 2e-3
        assert np.vdot(gradients[name][0], step) == pytest.approx(expected, rel=0.02, abs=0.02), name


def test_they_predict_the_divergence_that_a_small_error_causes():
    graph, tokens = float_graph(), random_tokens(320).reshape(10, 32)
    env = execute.chunks(tokens, 10)[0]
    execute.run(execute.prepare(graph, graph.nodes), env)
    gradients = {"logits": draw(log_softmax(env["logits"]), draws=64)}
    backward(graph, graph.nodes, env, gradients)
    node = next(node for node in graph.nodes if node.name.endswith("gate_up"))
    weight = graph.array(node.inputs[1])
    error = 0.02 * np.random.default_rng(0).normal(size=weight.shape) * np.abs(weight).mean()
    of_weight = np.einsum("sbtn,btk->snk", gradients[node.outputs[0]], env[node.inputs[0]])
    predicted = 0.5 * np.mean(np.einsum("nk,snk->s", error, of_weight) ** 2) / (10 * 31)
    wanted = log_softmax(env["logits"].astype(np.float64)[:, 1:])
    graph.constants[node.inputs[1]] = Tensor.of((weight + error).astype(np.float32))
    found = log_softmax(execute.logits(graph, tokens).astype(np.float64)[:, 1:])
    assert predicted == pytest.approx(divergence(wanted, found), rel=0.35)
