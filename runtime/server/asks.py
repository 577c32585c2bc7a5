"""Requests → prompts: fields of all dialects as sampling options, messages as ids. Unknown fields are let be.

Work on texts is done here and not on the engine's thread: a long prompt is rendered and tokenized while
others are answered.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flatlm.runtime.backends import check_prompt
from flatlm.runtime.errors import ContextError, UsageError
from flatlm.runtime.generation.answer import Prompt
from flatlm.runtime.generation.token_options import in_ids
from flatlm.runtime.grammars import grammar_of
from flatlm.runtime.llm import LLM
from flatlm.runtime.options import SamplingOptions, from_json
from flatlm.runtime.server.failures import LongPrompt, NotSupported
from flatlm.runtime.server.tickets import Asked
from flatlm.runtime.settings import Settings
from flatlm.runtime.text import prompt
from flatlm.runtime.text.tokenizer import LONGEST
from flatlm.runtime.text.tools.put import reading_of, told
from flatlm.runtime.text.tools.request import Tooling, tooling_of

MOST_MESSAGES, MOST_STOPS, MOST_STOP, MOST_PROMPTS = 1000, 16, 100, 64

FIELDS = {  # as requests call it: as SamplingOptions do; of several for one option the later here counts
    "n_predict": "n",
    "num_predict": "n",
    "max_tokens": "n",
    "max_completion_tokens": "n",
    "max_output_tokens": "n",
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repeat_penalty",
    "repeat_last_n": "repeat_last_n",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "ignore_eos": "ignore_eos",
    "seed": "seed",
    "logit_bias": "logit_bias",
}


def sampling_of(body: Settings, defaults: SamplingOptions, top: int | None = None) -> SamplingOptions:
    """The options of a request; n is 0 where only the prompt is to be read. Raises UsageError by field.

    `top`: how many likeliest tokens are told with log probabilities, None: none are.
    """
    found = replace(defaults, logprobs=top)
    for name, option in FIELDS.items():
        value = body.values.get(name)
        if value is None:
            continue
        try:
            found = from_json({option: _tolerant(option, value)}, SamplingOptions, start=found)
        except UsageError as error:
            raise UsageError(f"{name}: {error}", param=name) from None
    if defaults.n >= 0 and (found.n < 0 or found.n > defaults.n):
        found = replace(found, n=defaults.n)  # the server's -n is the most that anybody gets
    stops = tuple(body.one_or_more("stop", str))
    if len(stops) > MOST_STOPS or any(len(stop) > MOST_STOP for stop in stops):
        raise UsageError(
            f"stop: at most {MOST_STOPS} texts of {MOST_STOP} characters are looked for", param="stop"
        )
    return replace(found, stop=stops or defaults.stop)


def _tolerant(option: str, value: Any) -> Any:
    """Values that clients send and mean: whole numbers as floats, -1 for "no limit", seeds of any sign."""
    if option in ("n", "top_k", "repeat_last_n", "seed") and isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int:
        return value
    if option in ("n", "seed", "repeat_last_n"):
        return max(value, -1)
    return max(value, 0) if option == "top_k" else value


def asked(prompt: Prompt, llm: LLM) -> Asked:
    """A prompt that fits, with options that hold for the model: nothing of it will be refused later.

    Raises LongPrompt, UsageError, TokenizerError; BackendError where the package for its form is missing.
    """
    ids, options = prompt.ids, prompt.options
    if len(ids) > llm.backend.context:
        raise LongPrompt(len(ids), llm.backend.context)
    check_prompt(llm.backend, ids)
    in_ids(options, llm.tokenizer, llm.backend.vocab)
    if (grammar := grammar_of(options)) and llm.scheduler.guidance is not None:
        llm.scheduler.guidance.constraint(grammar, len(ids))
    if options.n:
        return Asked(prompt)
    return Asked(replace(prompt, options=replace(options, n=1)), silent=True)


def siblings(one: Asked, n: int) -> list[Asked]:
    """`n` answers to one prompt: the seed counts up."""
    return [replace(one, prompt=prompt) for prompt in one.prompt.several(n)]


@dataclass(frozen=True)
class Chat:
    """Messages in the shape of chat templates, and how they are to be put."""

    messages: Sequence[Mapping[str, Any]]
    tooling: Tooling | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)  # of the template: enable_thinking …
    prompted: bool = True  # the template adds the head of an answer
    continued: bool = False  # the last message, an assistant's, is not ended: the answer goes on with it


def chat_text(chat: Chat, llm: LLM) -> str:
    """The prompt as text. Raises TemplateError, UsageError."""
    messages, tail = list(chat.messages), ""
    if chat.continued:
        tail = str(messages.pop()["content"])
        if not messages:
            raise UsageError("there is no message before the one to be continued", param="messages")
    put, tools = told(llm.template, messages, chat.tooling)
    if llm.template is None:
        return prompt.without_template(put) + tail
    text = prompt.render(
        llm.template,
        put,
        special={**chat.variables, **llm.tokenizer.special},
        tools=tools,
        add_generation_prompt=chat.prompted or chat.continued,
    )
    return text + tail


def chat_ids(chat: Chat, llm: LLM) -> list[int]:
    """The prompt as ids. Without a template a begin token may be added, as for plain text."""
    return encoded(chat_text(chat, llm), llm, special=llm.template is None)


def chat_prompt(chat: Chat, options: SamplingOptions, llm: LLM) -> Prompt:
    """The prompt, with how its answer is read, and a grammar where calls are held to their schemas."""
    text = chat_text(chat, llm)
    free = grammar_of(options) is None
    reading, grammar = reading_of(llm.template, text, chat.tooling, llm.tokenizer, free)
    if grammar is not None:
        options = replace(options, json_object=False, json_schema=None, regex=None, grammar=grammar)
    ids = encoded(text, llm, special=llm.template is None)
    return Prompt(ids, options, chat.continued, reading)


def encoded(text: str, llm: LLM, special: bool = True) -> list[int]:
    """`text` as ids. LongPrompt for one so long that only its beginning was looked at."""
    context = llm.backend.context
    try:
        return llm.tokenizer.encode(text, special, most=context)
    except ContextError:
        raise LongPrompt(len(llm.tokenizer.encode(text[: LONGEST * context])), context) from None


def openai_chat(body: Settings) -> Chat:
    """OpenAI's `messages` and `tools`, with llama.cpp's and vLLM's additions."""
    messages = [message_of(one) for one in body.tables("messages")]
    if not messages:
        raise UsageError("messages: a list of at least one message is needed", param="messages")
    if len(messages) > MOST_MESSAGES:
        raise UsageError(f"messages: at most {MOST_MESSAGES} are read", param="messages")
    return Chat(
        messages,
        tools_of(body),
        body.table("chat_template_kwargs").values,
        body.get("add_generation_prompt", bool, True),
        _continued(body, messages),
    )


def tools_of(body: Settings) -> Tooling | None:
    """`tools`, `tool_choice` and `parallel_tool_calls` as OpenAI has them."""
    tools = [one.values for one in body.tables("tools")]
    return tooling_of(tools, body.values.get("tool_choice"), body.get("parallel_tool_calls", bool))


def _continued(body: Settings, messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last message is to be gone on with: llama.cpp does so by itself, vLLM when asked."""
    last = messages[-1]["role"] == "assistant" and "tool_calls" not in messages[-1]
    if last and len(messages) > 1 and messages[-2]["role"] == "assistant":
        raise UsageError("two messages of the assistant at the end cannot be continued", param="messages")
    wanted = body.get("continue_final_message", bool)
    if wanted and body.get("add_generation_prompt", bool):
        raise UsageError("continue_final_message and add_generation_prompt exclude each other")
    if wanted and not last:
        raise UsageError("continue_final_message: the last message is not the assistant's", param="messages")
    return last if wanted is None else wanted


def message_of(given: Settings) -> dict[str, Any]:
    """A message as templates read it: content as text, arguments of calls as objects."""
    role = given.need("role", str)
    message: dict[str, Any] = {"role": "system" if role == "developer" else role}
    message["content"] = content_of(given, "content")
    for name in ("name", "tool_call_id", "tool_name", "reasoning_content"):
        if (value := given.get(name, str)) is not None:
            message[name] = value
    if calls := [call_of(call) for call in given.tables("tool_calls")]:
        message["tool_calls"] = calls
    return message


def content_of(given: Settings, key: str) -> str:
    """A text, or the texts of its parts."""
    if not isinstance(given.values.get(key), list):
        return given.get(key, str, "")
    parts = []
    for part in given.tables(key):
        if part.get("type", str, "text") not in ("text", "input_text", "output_text"):
            raise NotSupported(f"content of type {part['type']!r}: this model reads text only", param=key)
        parts.append(part.need("text", str))
    return "\n".join(parts)


def call_of(call: Settings) -> dict[str, Any]:
    """A call of an earlier answer. Arguments that are no JSON go to the template as the text they are."""
    function = call.table("function")
    found = {
        "type": "function",
        "function": {"name": function.need("name", str), "arguments": arguments_of(function)},
    }
    return {"id": call.get("id", str, ""), **found} if "id" in call else found


def arguments_of(function: Settings) -> Any:
    """The arguments of a call as an object, where their text is one."""
    arguments = function.values.get("arguments", {})
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):
            return json.loads(arguments)
    return arguments


def prompts_of(value: Any, llm: LLM) -> list[list[int]]:
    """A prompt of /completion and /v1/completions as ids: a text, ids, both mixed, or a list of those."""
    if isinstance(value, list) and value and all(_whole(one) for one in value):
        return [_ids(value, llm)]
    many = value if isinstance(value, list) else [value]
    if isinstance(value, list) and any(type(one) is int for one in value):
        many = [value]  # texts and ids that follow each other
    if len(many) > MOST_PROMPTS:
        raise UsageError(f"prompt: at most {MOST_PROMPTS} at once", param="prompt")
    if not many:
        raise UsageError("prompt: an empty list holds none", param="prompt")
    return [_ids(one, llm) for one in many]


def _whole(value: Any) -> bool:
    return type(value) is int


def _ids(value: Any, llm: LLM) -> list[int]:
    if isinstance(value, str):
        return encoded(value, llm)
    if isinstance(value, Mapping) and isinstance(value.get("prompt_string"), str):
        return encoded(value["prompt_string"], llm)
    if not isinstance(value, list):
        raise UsageError(f"prompt: a text or a list of ids, not {value!r:.80}", param="prompt")
    ids: list[int] = []
    for place, one in enumerate(value):
        if isinstance(one, str):
            ids += encoded(one, llm, special=place == 0)
        elif _whole(one) and 0 <= one < llm.backend.vocab:
            ids.append(one)
        else:
            raise UsageError(
                f"prompt: {one!r:.80} is neither a text nor an id of the vocabulary", param="prompt"
            )
    return ids
