"""Figures of the tree: how large, how tangled, how much is only handed on. By reading syntax, nothing is run.

python scripts/figures.py [--json]        a table, and after it the worst of each figure
    --lines N --circles N --inner-circles N --private N --handed-on PERCENT
                                          limits: status 1 where a figure is above one

What is counted, in flatlm's packages (kernels_arm, runtime, export):

    largest file    lines of the longest one
    circles         groups of files that import one another, by what runs when a module is imported;
                    inner circles: groups by that and by what functions import or only types need
    private names   uses of a name `_x` (no dunder) of another module: imported from it, read from it, or read
                    from an object where the module itself gives nothing such a name and another one does
    handed on       parameters (but self, cls, *x, **x) in runtime and export that a body uses, and only as
                    plain arguments of calls of anything but builtins: f(x), f(name=x), not len(x), x + 1.
                    As a share of all parameters there. (Kernels are inlined, and take addresses and sizes)
    bits compared   comparisons one side of which ends in `bits`: places that know which widths there are
    functions       methods and functions within functions too, but no lambdas
"""

from __future__ import annotations

import argparse
import ast
import builtins
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("kernels_arm", "runtime", "export")
CALLERS = ("runtime", "export")  # the packages whose parameters count
Function = ast.FunctionDef | ast.AsyncFunctionDef
WORST = 10  # of each figure that are named


@dataclass(frozen=True)
class Module:
    """A file as syntax."""

    name: str  # runtime.format.graph
    package: bool  # whether it is an __init__.py
    lines: int
    tree: ast.Module

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def private(self) -> set[str]:
        """The private names that it gives."""
        return {name for node in self.nodes if is_private(name := given_name(node))}

    @property
    def functions(self) -> list[Function]:
        return [node for node in self.nodes if isinstance(node, Function)]


@dataclass(frozen=True)
class Figures:
    """What the docstring of this file says."""

    files: int
    functions: int
    largest_file: int  # lines
    longest_function: int  # lines
    circles: int
    inner_circles: int
    private_names: int
    parameters: int
    handed_on: int
    bits_compared: int
    worst: dict[str, list[str]] = field(default_factory=dict)

    @property
    def share_handed_on(self) -> float:
        """In percent."""
        return 100 * self.handed_on / max(1, self.parameters)


def measure(root: Path = ROOT) -> Figures:
    """The figures of the packages under `root`."""
    modules = read(root)
    names = {module.name for module in modules}
    circles = cycles({m.name: imports(m, names, inner=False) for m in modules})
    inner = cycles({m.name: imports(m, names, inner=True) for m in modules})
    private = Counter(use for module in modules for use in private_uses(module, modules))
    functions = [(module, function) for module in modules for function in module.functions]
    callers = [(m, f) for m, f in functions if m.name.split(".")[0] in CALLERS]
    given = {f"{m.name}.{f.name}:{f.lineno}": handed_on(f) for m, f in callers}
    lengths = {f"{m.name}.{f.name}:{f.lineno}": length(f) for m, f in functions}
    sizes = {module.name: module.lines for module in modules}
    bits = {f"{module.name}": sum(map(compares_bits, module.nodes)) for module in modules}
    worst = {
        "largest files": most(sizes),
        "longest functions": most(lengths),
        "circles": [" ↔ ".join(circle) for circle in circles],
        "inner circles": [" ↔ ".join(circle) for circle in inner],
        "private names": most(Counter(use.rpartition(".")[0] for use in private.elements()), 100),
        "handed on": most({f"{name} {', '.join(found)}": len(found) for name, found in given.items()}, 30),
        "bits compared": most(bits, 100),
    }
    return Figures(
        files=len(modules),
        functions=len(functions),
        largest_file=max(sizes.values()),
        longest_function=max(lengths.values()),
        circles=len(circles),
        inner_circles=len(inner),
        private_names=private.total(),
        parameters=sum(len(parameters(function)) for _, function in callers),
        handed_on=sum(map(len, given.values())),
        bits_compared=sum(bits.values()),
        worst=worst,
    )


def read(root: Path) -> list[Module]:
    """Every Python file of the packages under `root`."""
    found = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            inside = parts[-1] == "__init__"
            text = path.read_text(encoding="utf-8")
            name = ".".join(parts[:-1] if inside else parts)
            found.append(Module(name, inside, len(text.splitlines()), ast.parse(text)))
    return found


# ------------------------------------------------------------------------------------------------- imports
def imports(module: Module, names: set[str], inner: bool) -> set[str]:
    """The modules of `names` that `module` imports when it is imported itself; with `inner`, ever."""
    nodes = module.nodes if inner else outer(module.tree)
    found = {target for node in nodes for target, _ in targets(node, module, names)}
    return found - {module.name}


def outer(tree: ast.Module) -> Iterator[ast.AST]:
    """What runs on import: not the bodies of functions, nor what only types need."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse
        elif not isinstance(node, Function | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def targets(node: ast.AST, module: Module, names: set[str]) -> Iterator[tuple[str, str]]:
    """(module, name taken from it, or empty for all of it) of an import of flatlm's own."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if (name := alias.name.removeprefix("flatlm.")) in names:
                yield name, ""
    elif isinstance(node, ast.ImportFrom):
        base = source(node, module)
        for alias in node.names:
            if (whole := f"{base}.{alias.name}".lstrip(".")) in names:
                yield whole, ""
            elif base in names:
                yield base, alias.name


def source(node: ast.ImportFrom, module: Module) -> str:
    """What an `import from` names, without flatlm."""
    if not node.level:
        return (node.module or "").removeprefix("flatlm").lstrip(".")
    parts = module.name.split(".")
    above = parts[: len(parts) - node.level + module.package]
    return ".".join([*above, *([node.module] if node.module else [])])


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of more than one module each of which reaches all others (strongly connected components)."""
    reached = {name: closure(name, edges) for name in edges}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in edges
        if name in reached[name]
    }
    return [list(group) for group in sorted(groups)]


def closure(name: str, edges: dict[str, set[str]]) -> set[str]:
    """All that `name` reaches; itself only on a circle."""
    found: set[str] = set()
    waiting = list(edges[name])
    while waiting:
        if (other := waiting.pop()) not in found:
            found.add(other)
            waiting += edges[other]
    return found


# -------------------------------------------------------------------------------------------- private names
def private_uses(module: Module, modules: list[Module]) -> Iterator[str]:
    """`user → owner.name` of every private name of another module; owner ? for some object's class."""
    names = {one.name for one in modules}
    others = set[str]().union(*(one.private for one in modules if one is not module))
    bound: dict[str, str] = {}  # names of this module that may stand for modules
    for node in module.nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target, name in targets(node, module, names):
                if is_private(name):
                    yield f"{module.name} → {target}.{name}"
            if isinstance(node, ast.ImportFrom):
                base = source(node, module)
                bound.update({a.asname or a.name: f"{base}.{a.name}".lstrip(".") for a in node.names})
    for node in module.nodes:
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            of = node.value.id if isinstance(node.value, ast.Name) else ""
            if bound.get(of) in names:
                yield f"{module.name} → {bound[of]}.{node.attr}"
            elif of not in ("self", "cls") and node.attr in others - module.private:
                yield f"{module.name} → ?.{node.attr}"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def given_name(node: ast.AST) -> str:
    """The name `node` gives to a function, class, variable, or attribute of self or cls; else empty."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return name
        case ast.Name(id=name, ctx=ast.Store()):
            return name
        case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
            return name
    return ""


# ----------------------------------------------------------------------------------------------- parameters
def parameters(function: Function) -> list[str]:
    """Names of the parameters that count."""
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def handed_on(function: Function) -> list[str]:
    """The parameters whose every use is as a plain argument of a call of something that is no builtin."""
    used: Counter[str] = Counter()
    plain: Counter[str] = Counter()
    for statement in function.body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name):
                used[node.id] += 1
            elif isinstance(node, ast.Call) and not is_builtin(node.func):
                values = (*node.args, *(keyword.value for keyword in node.keywords))
                plain.update(value.id for value in values if isinstance(value, ast.Name))
    return [name for name in parameters(function) if used[name] and used[name] == plain[name]]


def is_builtin(called: ast.expr) -> bool:
    return isinstance(called, ast.Name) and hasattr(builtins, called.id)


# -------------------------------------------------------------------------------------------------- sizes
def length(function: Function) -> int:
    """Lines from `def` to the end."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def compares_bits(node: ast.AST) -> bool:
    """Whether `node` compares something that ends in `bits`."""
    sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
    names = [getattr(side, "attr", getattr(side, "id", "")) for side in sides]
    return any(name.lower().endswith("bits") for name in names)


def most(figures: dict[str, int] | Counter[str], count: int = WORST) -> list[str]:
    """The largest, with their figure."""
    ranked = sorted(figures.items(), key=lambda item: (-item[1], item[0]))
    return [f"{figure:4} {name}" for name, figure in ranked[:count] if figure]


# ------------------------------------------------------------------------------------------------- telling
def above(figures: Figures, limits: dict[str, float | None]) -> list[str]:
    """What is above its limit, in words."""
    values = {
        "lines": figures.largest_file,
        "circles": figures.circles,
        "inner_circles": figures.inner_circles,
        "private": figures.private_names,
        "handed_on": figures.share_handed_on,
    }
    return [
        f"{name.replace('_', ' ')}: {values[name]:.4g}, the limit is {limit:g}"
        for name, limit in limits.items()
        if limit is not None and values[name] > limit
    ]


def table(figures: Figures) -> str:
    """The figures, and the worst of each."""
    share = f" = {figures.share_handed_on:.1f} %"
    values = {key: value for key, value in asdict(figures).items() if key != "worst"}
    lines = [f"{key.replace('_', ' '):18}{value:6}" for key, value in values.items()]
    lines = [line + share if line.startswith("handed on") else line for line in lines]
    parts = [f"{title}\n" + "\n".join(found) for title, found in figures.worst.items() if found]
    return "\n\n".join(["\n".join(lines), *parts])


def main(arguments: list[str]) -> int:
    """Print; 1 where a limit is passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name in ("lines", "circles", "inner-circles", "private", "handed-on"):
        parser.add_argument(f"--{name}", type=float, metavar="N")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    limits = vars(parser.parse_args(arguments))
    as_json, figures = limits.pop("json"), measure()
    print(json.dumps(asdict(figures), ensure_ascii=False) if as_json else table(figures))
    passed = above(figures, limits)
    print(*passed, sep="\n", file=sys.stderr, end="\n" if passed else "")
    return int(bool(passed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
