"""Tools for templates that know none: told of in the system message, calls and results as plain text.

The words are Qwen's, whose way most small models have seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

HEAD = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
TAIL = """
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""  # noqa: E501  the model's words


def without_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """`messages` in which everything about `tools` is text of a system, a user or an assistant."""
    result: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            text = f"<tool_response>\n{message.get('content', '')}\n</tool_response>"
            if result and result[-1].get("results"):
                result[-1]["content"] += "\n" + text
            else:
                result.append({"role": "user", "content": text, "results": True})
        elif calls := message.get("tool_calls"):
            parts = [message.get("content") or "", *map(_spelled, calls)]
            result.append({"role": message["role"], "content": "\n".join(part for part in parts if part)})
        else:
            result.append(dict(message))
    for one in result:
        one.pop("results", None)
    return _told(result, tools) if tools else result


def _spelled(call: Mapping[str, Any]) -> str:
    function = call["function"]
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {text}}}\n</tool_call>'


def _told(messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """With the tools in the system message, its own text first."""
    text = HEAD + "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools) + TAIL
    if messages and messages[0]["role"] == "system":
        own = str(messages[0].get("content") or "")
        return [{**messages[0], "content": f"{own}\n\n{text}" if own else text}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]
