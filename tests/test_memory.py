"""Closing gives back what opening took: threads, caches, plan, and the mapping of the weights."""

from __future__ import annotations

import gc
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from flatlm.kernels_arm.team import PAGES, aligned
from flatlm.runtime.backends import open_backend
from flatlm.runtime.errors import BackendError, UsageError
from flatlm.runtime.format.artifact import open_artifact
from flatlm.runtime.llm import LLM
from flatlm.runtime.options import BackendOptions
from tests.test_nested import exported

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc what is mapped")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("memory"), "nested")


@pytest.fixture
def no_collector():
    """What is freed here is freed at once, not when Python looks for circles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def mapped(file):
    """Whether this process maps `file`."""
    return str(file) in Path("/proc/self/maps").read_text()


def anonymous():
    """Bytes this process may write and read that are of no file, whether they were written or not."""
    line = r"^([0-9a-f]+)-([0-9a-f]+) rw\S+ \S+ \S+ \d+ *(?:/dev/zero.*)?$"
    found = re.findall(line, Path("/proc/self/maps").read_text(), re.MULTILINE)
    return sum(int(end, 16) - int(start, 16) for start, end in found)


@linux
@pytest.mark.parametrize(
    "options", [{"backend": "native"}, {"backend": "numpy"}, {"draft": "auto:nested"}], ids=str
)
def test_a_closed_model_leaves_no_mapping_and_no_thread(model, no_collector, options):
    threads = threading.active_count()
    llm = LLM(model, threads=2, ctx=128, **options)
    stream = llm.stream("once upon a time", n=8)
    next(stream)
    assert mapped(model / "model.onnx.data")
    llm.close()
    assert not mapped(model / "model.onnx.data")
    assert threading.active_count() == threads
    assert stream.completion.tokens  # what was read stays


@linux
def test_opening_and_closing_again_and_again_takes_no_more_than_once(model, no_collector):
    held = []
    for _ in range(4):
        with LLM(model, threads=2, ctx=128) as llm:
            llm.generate("once upon a time", n=4)
            held.append(anonymous())
    assert max(held[1:]) - held[0] < 2**20  # three more plans would be 2.1 MB


@pytest.mark.parametrize("name", ["native", "numpy", "ort"])
def test_a_closed_backend_says_so_and_may_be_closed_again(model, name):
    if name == "ort":
        pytest.importorskip("onnxruntime")
    backend = open_backend(name, open_artifact(model), BackendOptions(threads=1, ctx=128))
    backend.forward(np.array([1, 2, 3]))
    backend.close()
    backend.close()
    for late in (lambda: backend.forward(np.array([1])), lambda: backend.copy(0, 0, 2)):
        with pytest.raises(BackendError, match="the model was closed"):
            late()


def test_a_closed_llm_says_so(model):
    llm = LLM(model, threads=1, ctx=128)
    llm.close()
    with pytest.raises(UsageError, match="the LLM is closed"):
        llm.generate("once upon a time", n=4)
    with pytest.raises(BackendError, match="the model was closed"):
        llm.backend.forward([1])


def test_large_buffers_are_zeroed_and_lie_as_small_ones_do():
    for size in (100, PAGES, 3 * PAGES):
        for to in (64, 4096):
            buffer = aligned(size, to)
            assert (buffer.size, buffer.ctypes.data % to, int(buffer.sum())) == (size, 0, 0)
            buffer[:] = 1
