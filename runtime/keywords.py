"""The keywords of Python's calls, typed: what editors show and type checkers hold calls against.

Options are declared in options.py; a test holds these against them, their other names included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict


class OpenKeywords(TypedDict, total=False):
    """Of `LLM(path, …)`: BackendOptions and DraftOptions."""

    backend: str
    device: str
    threads: int | None
    ctx: int | None
    batch: int
    fast: bool
    draft: str
    draft_rule: str


class SamplingKeywords(TypedDict, total=False):
    """Of `generate` and `stream`: SamplingOptions; null is the default."""

    n: int | None
    max_tokens: int | None
    temp: float | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repeat_penalty: float | None
    repeat_last_n: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[Any, float | bool] | Sequence[tuple[int | str, float | bool]] | None
    ignore_eos: bool | None
    json_object: bool | None
    json_schema: Mapping[str, Any] | str | None
    regex: str | None
    grammar: str | None
    logprobs: int | None


class ChatKeywords(SamplingKeywords, total=False):
    """Of `chat` and `stream_chat`: SamplingOptions, PromptOptions, and tools."""

    prompt_style: str | None
    re2: bool | None
    reads: int | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
