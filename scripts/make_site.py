"""The pages as mkdocs takes them: docs/ and, as index.md, README.md, with links that hold on the site.

python scripts/make_site.py FOLDER       makes FOLDER/docs and FOLDER/mkdocs.yml

Links to files that are no pages (a script, a table of the tests) lead to the repository's home, which
hatch_build.py names.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
_LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
_HOME = re.compile(r'^HOME = "(.+?)"', re.MULTILINE)


def home() -> str:
    """The repository's address."""
    found = _HOME.search((ROOT / "hatch_build.py").read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def page(path: Path) -> str:
    """The text of a page with its links as they are on the site."""

    def link(found: re.Match[str]) -> str:
        target, mark = (path.parent / found[1]).resolve(), found[2] or ""
        if target == ROOT / "README.md":
            return "](" + "../" * len(_below(path).parts[:-1]) + f"index.md{mark})"
        if (ROOT / "docs") in target.parents:
            if path == ROOT / "README.md":
                return f"]({target.relative_to(ROOT / 'docs').as_posix()}{mark})"
            return found[0]
        return f"]({home()}/{target.relative_to(ROOT).as_posix()}{mark})"

    return _LINK.sub(link, path.read_text(encoding="utf-8"))


def _below(path: Path) -> Path:
    return path.relative_to(ROOT / "docs") if (ROOT / "docs") in path.parents else Path(path.name)


def main(folder: str) -> int:
    out = Path(folder)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(ROOT / "docs", out / "docs")
    for path in (ROOT / "docs").rglob("*.md"):
        (out / "docs" / _below(path)).write_text(page(path), encoding="utf-8")
    (out / "docs" / "index.md").write_text(page(ROOT / "README.md"), encoding="utf-8")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").replace("build/site", "../site")
    (out / "mkdocs.yml").write_text(settings, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
