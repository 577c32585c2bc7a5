"""Each function is a file with the same parts, and nothing of it stands elsewhere."""

from __future__ import annotations

import ast
import inspect
from types import SimpleNamespace

import pytest

from flatlm.kernels_arm import ops as machine
from flatlm.runtime import ops
from flatlm.runtime.errors import FormatError
from flatlm.runtime.format.functions import check_graph
from flatlm.runtime.format.graph import Graph, Node
from flatlm.runtime.format.signature import Attr, Signature, Traits
from flatlm.runtime.ops.function import Function, Product, Stateful

FOLDER = "flatlm.runtime.ops"


def parts_of(protocol) -> dict[str, list[str] | None]:
    """Functions with their parameters, and constants (None)."""
    functions = {
        name: list(inspect.signature(member).parameters)[1:]  # without self
        for each in protocol.__mro__
        for name, member in vars(each).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }
    constants = {name: None for each in protocol.__mro__ for name in vars(each).get("__annotations__", {})}
    return {**constants, **functions}


@pytest.mark.parametrize("op", ops.OPS)
def test_a_module_has_all_parts_of_a_function(op):
    module = ops.OPS[op]
    wanted = parts_of(Function)
    wanted |= parts_of(Product) if op in ops.PRODUCTS else {}
    wanted |= parts_of(Stateful) if op in ops.STATEFUL else {}
    assert {"NAME", "TRAITS", "signature", "check", "values", "numpy", "lower"} <= wanted.keys()
    for name, parameters in wanted.items():
        part = getattr(module, name)
        assert parameters is None or list(inspect.signature(part).parameters) == parameters
    assert module.__doc__.startswith(f"{op}: ")


@pytest.mark.parametrize("op", ops.OPS)
def test_a_module_is_named_after_its_function(op):
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in op).strip("_")
    assert ops.OPS[op].__name__ == f"{FOLDER}.{snake}"


@pytest.mark.parametrize("op", ops.OPS)
def test_a_signature_names_what_it_overwrites_and_tells_constants_from_computed_inputs(op):
    for state in ("float32", "int8"):
        signature = ops.OPS[op].signature({"state": state})
        assert set(signature.overwritten) <= set(signature.computed) <= set(signature.inputs)
        assert "_" not in op  # in a file, what follows it are options


@pytest.fixture
def scaled(monkeypatch):
    """A function with an optional attribute, one of two words, and a check of its own."""

    def check(graph: Graph, node: Node) -> None:
        seen.append(node.attrs.get("by", "two"))

    seen: list = []
    signature = Signature({"x": None}, ("y",), {"by": Attr(str, ("two", "three"), default="two")})
    module = SimpleNamespace(NAME="Scaled", TRAITS=Traits(), signature=lambda attrs: signature, check=check)
    monkeypatch.setitem(ops.OPS, "Scaled", module)
    return seen


def checked(**attrs) -> None:
    check_graph(Graph([Node("Scaled", ("x",), ("y",), attrs, "s")], inputs=["x"], outputs=["y"]))


def test_an_optional_attribute_that_is_absent_means_its_default(scaled):
    checked()
    checked(by="three")
    assert scaled == ["two", "three"]


@pytest.mark.parametrize(
    ("attrs", "match"),
    [
        ({"by": "four"}, r"'by' is 'four', this flatlm knows \('two', 'three'\)"),
        ({"by": 2}, "'by' must be str, is 2"),
        ({"of": "two"}, "unknown attribute 'of'"),
    ],
)
def test_an_option_that_is_not_known_is_refused(scaled, attrs, match):
    with pytest.raises(FormatError, match=f"'s'.*{match}"):
        checked(**attrs)


def test_no_constant_of_the_instruction_set_is_named_twice():
    """A second one would change what kernels read of records, without a word."""
    body = ast.parse(inspect.getsource(machine)).body
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    names = [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)]
    assert sorted(names) == sorted(set(names))
