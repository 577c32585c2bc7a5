"""How families write calls of tools: a table, and which of its rows a chat template belongs to."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flatlm.runtime.text.tools import written
from flatlm.runtime.text.tools.written import Parse

THINK = ("<think>", "</think>")
JSON_HEAD = '{"name": "{name}", "arguments": '


@dataclass(frozen=True)
class Form:
    """The literal parts of a call: lead, head, arguments, foot, tail. `joint` is between two calls of one
    lead and tail; without it each has its own. `style` is how arguments are written (arguments.py), `quote`
    what texts in them stand between where that is not JSON's.
    """

    lead: str
    head: str  # with {name}
    foot: str
    tail: str
    joint: str = ""
    style: str = "json"
    quote: str = '"'


@dataclass(frozen=True)
class Family:
    """How a family writes calls. `marks` in its chat template tell it.

    `opener` begins a call; an empty one means that the answer may be one, from its first character on.
    `closer` ends it, or where the first of `brackets` closes. `special` are tokens that must be seen, though
    they are hidden elsewhere. `form`: what a grammar holds calls to.
    """

    name: str
    marks: tuple[str, ...]
    opener: str
    closer: str
    parse: Parse
    form: Form
    special: tuple[str, ...] = ()
    think: tuple[str, str] = THINK
    brackets: str = "{["
    among_text: bool = True  # a call may come anywhere, so its opener tells it from text


HERMES = Family(
    "hermes",  # Hermes 2 and 3, Qwen 2.5 and 3, Granite 4
    ("<tool_call>",),
    "<tool_call>",
    "</tool_call>",
    written.first_of(written.as_json, written.as_tags),
    Form("<tool_call>\n", JSON_HEAD, "}", "\n</tool_call>"),
)

# The first with a mark that is in the template counts.
FAMILIES = (
    Family(
        "gemma",
        ("<|tool_call>",),
        "<|tool_call>",
        "<tool_call|>",
        written.gemma('<|"|>'),
        Form("<|tool_call>", "call:{name}", "", "<tool_call|>", style="gemma", quote='<|"|>'),
        special=("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>"),
        think=("<|channel>thought\n", "<channel|>"),
    ),
    Family(
        "function-gemma",
        ("<start_function_call>",),
        "<start_function_call>",
        "<end_function_call>",
        written.gemma("<escape>"),
        Form(
            "<start_function_call>",
            "call:{name}",
            "",
            "<end_function_call>",
            style="gemma",
            quote="<escape>",
        ),
        special=("<start_function_call>", "<end_function_call>", "<escape>"),
    ),
    Family(
        "mistral-named",
        ("[ARGS]",),
        "[TOOL_CALLS]",
        "",
        written.as_named,
        Form("[TOOL_CALLS]", "{name}[ARGS]", "", ""),
        ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"),
        ("[THINK]", "[/THINK]"),
        brackets="{",
    ),
    Family(
        "mistral",
        ("[TOOL_CALLS]",),
        "[TOOL_CALLS]",
        "",
        written.as_json,
        Form("[TOOL_CALLS][", JSON_HEAD, "}", "]", ", "),
        ("[TOOL_CALLS]",),
    ),
    Family(
        "lfm2",
        ("<|tool_call_start|>", "<|tool_list_start|>", "List of tools: "),
        "<|tool_call_start|>",
        "<|tool_call_end|>",
        written.first_of(written.as_python, written.as_json),
        Form("<|tool_call_start|>[", "{name}(", ")", "]<|tool_call_end|>", ", ", "python"),
        ("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    Family(
        "phi",
        ("<|/tool_call|>",),
        "<|tool_call|>",
        "<|/tool_call|>",
        written.as_json,
        Form("<|tool_call|>[", JSON_HEAD, "}", "]<|/tool_call|>", ", "),
        ("<|tool_call|>", "<|/tool_call|>"),
    ),
    Family(
        "granite",
        ("<|tool_call|>",),
        "<|tool_call|>",
        "",
        written.as_json,
        Form("<|tool_call|>[", JSON_HEAD, "}", "]", ", "),
        ("<|tool_call|>",),
    ),
    Family(
        "qwen-tags",  # Qwen 3.5, Qwen3-Coder, Nemotron 3
        ("<function=",),
        "<tool_call>",
        "</tool_call>",
        written.first_of(written.as_tags, written.as_json),
        Form("<tool_call>\n", "<function={name}>\n", "</function>", "\n</tool_call>", style="tags"),
    ),
    Family(
        "glm",  # GLM 4.5 and later, Ling, Laguna
        ("<arg_key>",),
        "<tool_call>",
        "</tool_call>",
        written.first_of(written.as_pairs, written.as_json),
        Form("<tool_call>", "{name}\n", "", "</tool_call>", style="pairs"),
    ),
    Family(
        "nemotron",
        ("<TOOLCALL>",),
        "<TOOLCALL>",
        "</TOOLCALL>",
        written.as_json,
        Form("<TOOLCALL>[", JSON_HEAD, "}", "]</TOOLCALL>", ", "),
    ),
    Family(
        "apriel",
        ("<tool_calls>[",),
        "<tool_calls>",
        "</tool_calls>",
        written.as_json,
        Form("<tool_calls>[", JSON_HEAD, "}", "]</tool_calls>", ", "),
    ),
    HERMES,
    Family(
        "llama-python",
        ("[func_name1(params_name1=",),
        "",
        "",
        written.as_python,
        Form("[", "{name}(", ")", "]", ", ", "python"),
        special=("<|python_tag|>",),
    ),
    Family(
        "llama",
        ('"parameters": ', "<|python_tag|>"),
        "",
        "",
        written.as_json,
        Form("", '{"name": "{name}", "parameters": ', "}", ""),
        ("<|python_tag|>",),
    ),
)
HARMONY = Family(
    "harmony",  # gpt-oss: all that it writes is in channels (harmony.py)
    ("<|channel|>",),
    "<|channel|>commentary to=functions.",
    "",
    written.as_json,
    Form("<|channel|>commentary to=functions.", "{name} <|constrain|>json<|message|>", "", ""),
    ("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
    among_text=False,
)


def knows_tools(template: str | None) -> bool:
    """Whether the template puts `tools` into the prompt; others are told of them in the system message."""
    return template is not None and re.search(r"\btools\b", template) is not None


def family_of(template: str | None) -> Family:
    """The family that a chat template belongs to; Hermes' way where none is seen, which most models know."""
    if template is not None and all(mark in template for mark in HARMONY.marks):
        return HARMONY
    if template is None or not knows_tools(template):
        return HERMES
    return next((one for one in FAMILIES if any(mark in template for mark in one.marks)), HERMES)
