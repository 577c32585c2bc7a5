"""What a function takes and gives, inputs, outputs, attributes; what is said of a node that does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flatlm.runtime.errors import FormatError
from flatlm.runtime.format.graph import Attribute, Node

PACKED = "packed"  # uint4 or int8 in the packed order, fitting rows × columns

ADVICE = "the file is damaged or made by something else: copy or export it again"


@dataclass(frozen=True, slots=True)
class Constant:
    """An input that must be a constant; `shape` names attributes or dimensions that recur."""

    dtype: str
    shape: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Attr:
    """An attribute. With a default it is an option: a node without it means the default."""

    kind: type
    choices: tuple[str, ...] = ()  # of a string: the ones that there are
    default: Attribute | None = None


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs in order (None: computed by an earlier node), outputs in order, attributes by name."""

    inputs: Mapping[str, Constant | None]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Attr] = field(default_factory=dict)
    overwritten: tuple[str, ...] = ()  # inputs that a kernel may write over: the node is their only reader

    @property
    def computed(self) -> list[str]:
        """The inputs that are no constants."""
        return [role for role, expected in self.inputs.items() if expected is None]


@dataclass(frozen=True, slots=True)
class Traits:
    """What those who know no function by name ask of one."""

    embedding: bool = False  # a row of weights for each token id
    product: bool = False  # a stream times weights, one row for each output; may be the head
    original: bool = False  # float weights: only onnxruntime runs it
    ragged: bool = False  # what its kernel leaves beyond its columns is not zeros


def label(node: Node) -> str:
    return f"node {node.name or ', '.join(node.outputs)!r} ({node.op})"


def misfit(node: Node, problem: str) -> FormatError:
    """`node` does not fit its function."""
    return FormatError(f"{label(node)}: {problem}")


def disagreement(node: Node, problem: str) -> FormatError:
    """`node` does not agree with those around it, as no exporter of ours would have it."""
    return misfit(node, f"{problem}; {ADVICE}")


def no_kernel(node: Node, what: str) -> FormatError:
    """`node` is right, but the native backend has nothing that runs it."""
    return misfit(node, f"{what} has no kernel, use --backend numpy")
