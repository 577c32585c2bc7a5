"""No file makes a kernel leave its buffers: what passes the reader's checks computes what numpy computes.

All mutants that pass run in one forked child, so that a signal is a failed test and not the end of pytest.
"""

from __future__ import annotations

import os
import signal
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from flatlm.runtime.backends.native import NativeBackend
from flatlm.runtime.backends.numpy import NumpyBackend
from flatlm.runtime.errors import FlatlmError, FormatError
from flatlm.runtime.format.functions import check_graph
from flatlm.runtime.format.graph import Graph
from flatlm.runtime.format.widths import check_values
from tests.mutants import MODELS, model, mutant
from tests.tiny_graphs import CONTEXT, VOCABULARY

MUTANTS = 600


def passes(graph: Graph) -> bool:
    """Whether reading accepts the graph. Whatever is raised but FormatError fails the test."""
    try:
        check_graph(graph)
        check_values(graph)
    except FormatError:
        return False
    return True


def computed(backend_class, graph: Graph) -> list[np.ndarray]:
    """The logits of a prompt, of a step of a token and of some tokens after it."""
    backend = backend_class(SimpleNamespace(graph=graph), threads=1, context=CONTEXT)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, CONTEXT)
    ids[3] = VOCABULARY - 1
    found = [backend.forward(ids[:11], 4), backend.forward(ids[11:12]), backend.forward(ids[12:], 12)]
    backend.close()
    return found


def difference(graph: Graph) -> str:
    """What is wrong with the graph's native answer; nothing where it is numpy's, or a FlatlmError."""
    try:
        native = computed(NativeBackend, graph)
    except FlatlmError:
        return ""
    with np.errstate(all="ignore"):
        reference = computed(NumpyBackend, graph)
    same = all(map(np.array_equal, native, reference))
    return "" if same else f"{sum(np.sum(a != b) for a, b in zip(native, reference, strict=True))} differ"


def run_forked(graphs: list[tuple[Graph, str]]) -> list[str]:
    """What each graph made of the child: differences, exceptions and, as the last, a signal."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests: the child starts none
        child = os.fork()
    if not child:
        for graph, told in graphs:
            os.write(write, f"\n{told}\t".encode())
            try:
                problem = difference(graph)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
                problem = repr(error)
            os.write(write, problem.replace("\n", " ").encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as lines:
        told = [line.strip("\n") for line in lines if line.strip()]
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    problems = [line for line in told if not line.endswith("\t")]
    return problems if not status else [*problems, f"{told[-1]} {signal.Signals(-status).name}"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a signal would end pytest")
def test_what_passes_the_checks_computes_what_numpy_computes():
    good = [(model(kind), "-".join(kind)) for kind in MODELS]
    assert all(passes(graph) for graph, _ in good)
    rng = np.random.default_rng(int(os.environ.get("FLATLM_TEST_SEED", "0")))
    mutants = [mutant(rng) for _ in range(int(os.environ.get("FLATLM_TEST_MUTANTS", MUTANTS)))]
    valid = [case for case in mutants if passes(case[0])]
    assert len(mutants) // 50 < len(valid) < len(mutants) // 2
    print(f"{len(mutants)} mutants, {len(valid)} pass")
    assert run_forked(good + valid) == []
