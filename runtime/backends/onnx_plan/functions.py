"""Surgery on ONNX functions: nodes cut out, put in and left away, by the names of their values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import onnx
import onnx.parser

from flatlm.runtime.errors import BackendError

OPSET = 24  # the first with TensorScatter
MICROSOFT = "com.microsoft"


class Refused(BackendError):
    """The plan cannot hold this function, named in the message; the file as it stands can still be run."""


def parsed(text: str) -> list[onnx.NodeProto]:
    """Nodes of their text in ONNX's own language, `y = Op <attribute = 1> (x)`, a line each."""
    head = f'<opset_import: ["": {OPSET}, "{MICROSOFT}": 1], domain: "flatlm"> f (x) => (y)'
    return list(onnx.parser.parse_function(f"{head} {{{text}}}").node)


def renamed(nodes: Sequence[onnx.NodeProto], kept: Collection[str]) -> list[onnx.NodeProto]:
    """The same nodes, what they compute under names of their own but for the values `kept`."""
    names = {name: f"plan_{name}" for node in nodes for name in node.output if name not in kept}
    for node in nodes:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
    return list(nodes)


def made(
    name: str, overload: str, inputs: Sequence[str], outputs: Sequence[str], nodes: Iterable[onnx.NodeProto],
    attributes: Sequence[str] = (),
) -> onnx.FunctionProto:  # fmt: skip
    """A function of flatlm's domain."""
    imports = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(MICROSOFT, 1)]
    return onnx.helper.make_function(
        "flatlm", name, inputs, outputs, list(nodes), imports, attributes, overload=overload or None
    )


def maker(nodes: Sequence[onnx.NodeProto], value: str, function: str) -> int:
    """The number of the node that computes `value`; Refused where there is none."""
    for number, node in enumerate(nodes):
        if value in node.output:
            return number
    raise Refused(f"the function {function!r} has no value {value!r}, which the plan's rewriting looks for")


def needed(nodes: Sequence[onnx.NodeProto], outputs: Collection[str]) -> list[onnx.NodeProto]:
    """The nodes of which `outputs` are computed, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= read(node)
            kept.append(node)
    return kept[::-1]


def read(node: onnx.NodeProto) -> set[str]:
    """The values that a node reads from outside, in its branches too."""
    found = set(node.input)
    for attribute in node.attribute:
        inner = attribute.g.node
        made = {name for one in inner for name in one.output} | {one.name for one in attribute.g.input}
        found |= set().union(*map(read, inner)) - made
    return found - {""}


def integer(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    """Its attribute `name`."""
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)
