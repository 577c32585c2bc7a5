"""The sampling a model was published with: generation_config.json, kept in the artifact by export.

Greedy decoding of a small model often repeats itself without end (scripts/loops.py counts it), so where
people are answered the model's own settings hold, and for a model that has none those of TALK. Whatever
measures (bench, eval, parity) and the Python API begin with SamplingOptions, which are greedy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flatlm.runtime.options import SamplingOptions
from flatlm.runtime.text.tokenizer import read_json

FILE = "generation_config.json"
TALK = SamplingOptions(temp=0.7, top_k=40, top_p=0.9, min_p=0.05, repeat_penalty=1.1, repeat_last_n=256)
# What transformers takes where a model that samples leaves a value out; min-p and the penalty are off.
_SAMPLES = SamplingOptions(temp=1.0, top_k=50, top_p=1.0, min_p=0.0)


def published(folder: Path) -> SamplingOptions | None:
    """The settings of the artifact in `folder`; None where it has none for sampling.

    A repetition penalty counts all of the context, as in transformers. Raises TokenizerError where the file
    is damaged or a value is none.
    """
    config = read_json(folder / FILE)
    temp = config.get("temperature", float, low=0.0, high=100.0)
    samples = config.get("do_sample", bool)
    if samples is False or (samples is None and temp is None):
        return None
    given: dict[str, Any] = {
        "temp": temp,
        "top_k": config.get("top_k", int, low=0),
        "top_p": config.get("top_p", float, low=0.0, high=1.0),
        "min_p": config.get("min_p", float, low=0.0, high=1.0),
        "repeat_penalty": config.get("repetition_penalty", float, low=0.01, high=100.0),
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    if "repeat_penalty" in chosen:
        chosen["repeat_last_n"] = -1
    return SamplingOptions(**{**_of(_SAMPLES), **chosen})


def in_words(options: SamplingOptions) -> str:
    """How `options` choose a token, in a few words."""
    if options.temp == 0:
        parts = ["the likeliest token"]
    else:
        parts = [f"temperature {options.temp:g}"]
        parts += [f"top-k {options.top_k}"] * (options.top_k > 0)
        parts += [f"top-p {options.top_p:g}"] * (options.top_p < 1)
        parts += [f"min-p {options.min_p:g}"] * (options.min_p > 0)
    if options.repeat_penalty != 1:
        parts.append(f"repeat penalty {options.repeat_penalty:g}")
    return ", ".join(parts)


def _of(options: SamplingOptions) -> dict[str, Any]:
    names = ("temp", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n")
    return {name: getattr(options, name) for name in names}
