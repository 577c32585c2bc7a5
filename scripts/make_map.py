"""docs/map.md: every file of the repository with the first sentence it says of itself.

python scripts/make_map.py          writes it; tests/test_map.py holds it against the files
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAP = ROOT / "docs" / "map.md"
FOLDERS = ("flatlm", "kernels_arm", "runtime", "export", "tests", "scripts")
ALONE = (".ci/run", "hatch_build.py")
HEAD = """# File map

`kernels_arm ◄─ runtime ◄─ export`: each knows those to its left and never those to its right. Made by
`scripts/make_map.py` of what each file says of itself.
"""


def files(folder: Path) -> Iterator[Path]:
    """Python files and scripts under `folder`, sorted, those of a folder before its folders'."""
    here = sorted(path for path in folder.iterdir() if path.name not in ("__pycache__", "findings"))
    for path in here:
        if path.is_file() and (path.suffix in (".py", ".sh", ".c") or not path.suffix):
            yield path
    for path in here:
        if path.is_dir() and not path.is_symlink():
            yield from files(path)


def about(path: Path) -> str:
    """The first sentence of a file's docstring or of the comment at its head; empty where it has none."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        words = ast.get_docstring(ast.parse(text)) or ""
    else:
        lines = [line for line in text.splitlines() if not line.startswith("#!")]
        marks = ("#", "//", "/*", " *")
        head = []
        for line in lines:
            if not line.startswith(marks):
                break
            head.append(line.strip("#/* "))
        words = "\n".join(head)
    return sentence(words.partition("\n\n")[0])


def sentence(paragraph: str) -> str:
    """The first sentence, on one line, without its full stop."""
    line = " ".join(paragraph.split())
    end = next(
        (i for i in range(len(line)) if line[i] == "." and line[i + 1 : i + 2] in ("", " ")), len(line)
    )
    return line[:end]


def page() -> str:
    """The whole of docs/map.md."""
    lines = [HEAD]
    for top in FOLDERS:
        room = None
        for path in files(ROOT / top):
            what = about(path)
            if path.name == "__init__.py" and path.parent != room:
                room = path.parent
                lines.append(
                    f"\n## {room.relative_to(ROOT)}/\n\n{what}\n" if what else f"\n## {room.name}/\n"
                )
                continue
            if path.parent != room:
                room = path.parent
                lines.append(f"\n## {room.relative_to(ROOT)}/\n")
            lines.append(f"- `{path.name}`: {what}")
    lines.append("\n## elsewhere\n")
    lines += [f"- `{name}`: {about(ROOT / name)}" for name in ALONE]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    MAP.write_text(page(), encoding="utf-8")
    sys.exit(0)
