"""The order of the packages, kernels_arm ◄─ runtime ◄─ export, and what importing them pulls in."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("kernels_arm", "runtime", "export")  # each may import itself and those before it
OPTIONAL = {  # packages that a device with a wheel of flatlm need not have
    "gguf", "huggingface_hub", "jinja2", "llvmlite", "numba", "onnx", "onnxruntime", "torch", "transformers",
}  # fmt: skip
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]

ONNX_ROOM = ROOT / "runtime/backends/onnx_plan"  # models for onnxruntime, written with the onnx package


def imported(tree: ast.AST) -> Iterator[str]:
    """Packages of all absolute imports under `tree`, flatlm's by their own names; a relative one stays
    in its package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (package_of(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "flatlm":
                yield from (package_of(f"flatlm.{alias.name}") for alias in node.names)
            else:
                yield package_of(node.module)


def package_of(module: str) -> str:
    """numpy.linalg → numpy, flatlm.runtime.llm → runtime."""
    first, _, rest = module.partition(".")
    own = rest.partition(".")[0]
    return own if first == "flatlm" and own in PACKAGES else first


def imported_on_import(tree: ast.Module) -> set[str]:
    """What runs when the module is imported: not the bodies of functions, nor of `if TYPE_CHECKING`."""
    names: set[str] = set()
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= set(imported(node))
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_its_own_package_and_those_below(path):
    package = path.relative_to(ROOT).parts[0]
    above = PACKAGES[PACKAGES.index(package) + 1 :]
    assert set(imported(ast.parse(path.read_text(encoding="utf-8")))).isdisjoint(above)


def files_imported_on_import(path: Path) -> set[Path]:
    """Files of export that `path`, one of them, imports; `from . import a` and `from export import a` too."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.ImportFrom):
            continue
        folder = path.parents[node.level - 1] if node.level else ROOT
        at = folder.joinpath(*(node.module or "").removeprefix("flatlm.").split("."))
        for name in (alias.name for alias in node.names):  # a file of the package `at`, else a name in it
            files = (at / f"{name}.py", at / name / "__init__.py", at / "__init__.py", at.with_suffix(".py"))
            found |= set([file for file in files if file in FILES][:1])
    return {file for file in found if "export" in file.parts}


def test_the_files_of_export_import_each_other_in_no_circle():
    arrows = {path: files_imported_on_import(path) for path in FILES if "export" in path.parts}
    assert ROOT / "export/decisions.py" in arrows[ROOT / "export/survey.py"]
    assert ROOT / "export/passes/smooth.py" in arrows[ROOT / "export/decisions.py"]
    list(graphlib.TopologicalSorter(arrows).static_order())  # CycleError names the files of a circle


def test_only_quantize_imports_a_sweep():
    sweeps = {ROOT / "export/survey.py", ROOT / "export/measure.py"}
    found = {
        path.name for path in FILES if "export" in path.parts and files_imported_on_import(path) & sweeps
    }
    assert found == {"quantize.py"}


@pytest.mark.parametrize(
    "path", [p for p in FILES if "runtime" in p.parts], ids=lambda path: str(path.relative_to(ROOT))
)
def test_no_file_of_runtime_imports_an_optional_package_at_module_level(path):
    allowed = {"onnx"} if ONNX_ROOM in path.parents else set()
    assert imported_on_import(ast.parse(path.read_text(encoding="utf-8"))) & OPTIONAL <= allowed


def test_what_is_made_of_onnx_is_imported_only_when_a_model_is_opened_there():
    room = {path for path in FILES if ONNX_ROOM in path.parents and path.name != "__init__.py"}
    assert room
    for path in FILES:
        if ONNX_ROOM not in path.parents:
            assert files_imported_on_import(path) & room == set(), path


def test_the_check_sees_an_import_in_a_class_and_not_one_in_a_function():
    tree = ast.parse("class A:\n import onnx\ndef f():\n import numba\nif TYPE_CHECKING:\n import jinja2")
    assert imported_on_import(tree) == {"onnx"}


def test_the_check_tells_the_packages_of_flatlm_apart():
    tree = ast.parse(
        "import numpy.linalg\nfrom flatlm import export, LLM\nfrom flatlm.runtime.llm import LLM"
    )
    assert set(imported(tree)) == {"numpy", "export", "flatlm", "runtime"}


TALKS = (  # the commands, and the line that a command gives to a library as a function
    "runtime/commands/", "runtime/cli.py", "export/commands.py", "export/run.py", "runtime/progress.py",
)  # fmt: skip
LIBRARY = [path for path in FILES if not path.relative_to(ROOT).as_posix().startswith(TALKS)]


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_library_prints_nothing(path):
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {ast.unparse(node) for node in nodes if isinstance(node, ast.Name | ast.Attribute)}
    assert {"print", "sys.stdout", "sys.stderr"}.isdisjoint(names)


def private(name: str) -> bool:
    """_name, but not __name__."""
    return name.startswith("_") and not name.endswith("__")


def private_names_of_others(tree: ast.AST) -> set[str]:
    """Names with an underscore that are taken from modules of these packages."""
    taken, modules = set[str](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("flatlm")):
            modules |= {alias.asname or alias.name for alias in node.names}
            taken |= {alias.name for alias in node.names if private(alias.name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            taken |= {node.attr} if private(node.attr) else set()
    return taken


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_takes_no_private_name_of_another(path):
    assert private_names_of_others(ast.parse(path.read_text(encoding="utf-8"))) == set()


def test_the_check_sees_a_private_name_imported_and_one_reached_through_its_module():
    tree = ast.parse("from .simd import _call\nfrom . import llvm\nllvm._load(self._own, llvm.call)")
    assert private_names_of_others(tree) == {"_call", "_load"}


def loaded_by(code: str) -> set[str]:
    """Packages in sys.modules after `code` ran in a fresh interpreter."""
    code += "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return {package_of(module) for module in json.loads(done.stdout.splitlines()[-1])}


def test_importing_flatlm_loads_nothing_else():
    assert loaded_by("import flatlm") & (OPTIONAL | {*PACKAGES, "numpy"}) == set()


def test_importing_every_module_of_runtime_loads_no_optional_package():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in FILES
        if "runtime" in path.parts and ONNX_ROOM not in path.parents
    ]
    code = "\n".join(f"import flatlm.{module}" for module in modules if not module.endswith("__init__"))
    assert loaded_by(code) & (OPTIONAL | {"export"}) == set()


def test_the_command_line_answers_help_without_loading_numpy():
    assert "numpy" not in loaded_by("from flatlm.runtime.cli import main; main(['--help'])")


def test_with_kernels_built_an_answer_loads_no_compiler_and_no_onnx():
    code = """
from types import SimpleNamespace
from flatlm.kernels_arm import cpu, library
from tests.tiny_graphs import quantized_graph
import flatlm.runtime.llm, flatlm.runtime.commands.generate
from flatlm.runtime.backends.native import NativeBackend
backend = NativeBackend(SimpleNamespace(graph=quantized_graph(0)), threads=2)
backend.forward([1, 2, 3])
backend.close()
"""
    from flatlm.kernels_arm import cpu, library

    tier = cpu.choose().tier
    assert tier
    library.load(tier)  # builds them in a process of its own where they are missing
    folders = (library.prebuilt_folder(), library.cache_folder())
    if not any((folder / f"{library.library_name(tier)}.so").is_file() for folder in folders):
        pytest.skip("kernels cannot be linked here")
    assert loaded_by(code) & (OPTIONAL - {"jinja2"}) == set()
