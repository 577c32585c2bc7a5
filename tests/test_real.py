"""The demo's model, as a user meets it. Not part of the default run: `pytest -m real` after scripts/demo."""

from __future__ import annotations

import numpy as np
import pytest

from flatlm import LLM
from flatlm.runtime.backends import open_backend
from flatlm.runtime.evaluation.perplexity import window_nll
from flatlm.runtime.format.artifact import open_artifact
from flatlm.runtime.options import BackendOptions
from flatlm.runtime.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.real
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]


def test_it_knows_that_light_makes_the_sky_blue(real_model):
    with LLM(real_model, threads=2) as llm:
        assert "light" in "".join(llm.stream_chat(QUESTION, n=64))


def test_native_and_numpy_agree_bit_for_bit_on_a_text(real_model):
    text = "The tower is 324 metres tall, about the same height as an 81-storey building."
    ids = np.array(load_tokenizer(real_model).encode(text, special=False))
    losses = {}
    for name in ("native", "numpy"):
        backend = open_backend(name, open_artifact(real_model), BackendOptions(threads=2, ctx=64))
        losses[name] = window_nll(backend, ids)
        backend.close()
    assert losses["native"].tolist() == losses["numpy"].tolist()
