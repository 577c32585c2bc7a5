"""The chat page: small, by itself, under a strict policy; in a browser where there is one."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess

import pytest

from flatlm.runtime.server.page import PAGE
from tests.serving import serving, tiny_llm

TEXT = PAGE.read_text(encoding="utf-8")
WORDS = "plain |guess|ed **b|ol|d**\n- |ite|m\n\n¦ a ¦ |b| ¦\n¦---¦---¦\n¦ 1 ¦ |2| ¦\n\n```\nx = |1|\n```"
DRAFTERS = ["", "maxgram", "", "model", "", "maxgram", "", "model", "", "maxgram", "", "model", ""]
PIECES = list(zip(WORDS.replace("¦", "\0").split("|"), DRAFTERS, strict=True))
PIECES = [(text.replace("\0", "|"), drafter) for text, drafter in PIECES]
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    with serving(lambda: tiny_llm(folder)) as found:
        yield found


def test_a_browser_gets_the_page_and_a_program_a_word(served):
    page = served.get("/", headers=BROWSER)
    assert page.content == PAGE.read_bytes()
    assert page.headers["content-type"].startswith("text/html")
    assert served.get("/").text == "Ollama is running"


def test_there_is_no_page_where_none_is_wanted(tmp_path):
    with serving(lambda: tiny_llm(tmp_path), no_ui=True) as plain:
        assert plain.get("/", headers=BROWSER).text == "Ollama is running"


def test_the_policy_allows_the_pages_own_script_and_style_and_nothing_else(served):
    policy = served.get("/", headers=BROWSER).headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'self'"
    for tag in ("script", "style"):
        (inside,) = re.findall(f"<{tag}>(.*?)</{tag}>", TEXT, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"


def test_it_is_small_and_asks_nobody_else():
    assert len(TEXT.encode()) <= 60_000
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!data:)", TEXT)
    assert not re.findall(r"@import|url\(|import\s*\(|https?://[a-z]", TEXT)


def test_texts_never_become_markup():
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser"):
        assert way not in TEXT
    assert not re.findall(r"\son[a-z]+\s*=\s*[\"']", TEXT)  # no handlers in markup
    assert not re.findall(r"\sstyle\s*=\s*[\"']", TEXT)


def test_what_is_to_be_filled_in_has_a_label():
    fields = re.findall(r"<(?:input|textarea|select)\b[^>]*>", TEXT)
    labelled = set(re.findall(r'<label[^>]*\bfor="([^"]+)"', TEXT))
    inside = "".join(re.findall(r"<label>.*?</label>", TEXT, re.DOTALL))
    for field in fields:
        (number,) = re.findall(r'\bid="([^"]+)"', field)
        assert number in labelled or field in inside or "aria-label" in field, field


def test_markdown_becomes_nodes(tmp_path):
    """The page's own functions, over a DOM of a few lines."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    (script,) = re.findall(r"<script>(.*?)</script>", TEXT, re.DOTALL)
    start, end = script.index("let tags"), script.index("/* ---- the conversation on the page")
    given = (
        "# Head\n\nplain `a<b` **bold *x*** and [link](https://x.example) [bad](javascript:alert(1))\n"
        "- one\n- two\n\n1. first\n\n```py\nprint('<b>')\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n> said\n"
    )
    program = f"""
    class Node {{
      constructor(tag) {{ this.tag = tag; this.children = []; this.attributes = {{}}; }}
      get tagName() {{ return this.tag.toUpperCase(); }}
      get lastChild() {{ return this.children[this.children.length - 1]; }}
      append(...more) {{ this.children.push(...more.filter((one) => one !== "")); }}
      appendChild(one) {{ this.children.push(one); return one; }}
      setAttribute(name, value) {{ this.attributes[name] = value; }}
      addEventListener() {{}}
      set textContent(text) {{ this.children = [text]; }}
      show() {{
        const inner = this.children.map((one) => (one.show ? one.show() : one)).join("");
        return `(${{this.tag}}${{this.href ? " " + this.href : ""}} ${{inner}})`;
      }}
    }}
    const document = {{ createElement: (tag) => new Node(tag) }}, copy = () => 0;
    {script[script.index("const make") : script.index("/* ---- what is kept")]}
    {script[start:end]}
    const root = new Node("root");
    markdown(root, {json.dumps(given)});
    console.log(root.show());
    const settings = {{ colours: true }}, painted = new Node("root");
    const known = sources({{ pieces: {json.dumps(PIECES)} }});
    markdown(painted, {json.dumps("".join(text for text, _ in PIECES))});
    console.log(painted.show(), known.join());
    """
    file = tmp_path / "page.js"
    file.write_text(program)
    out = subprocess.run([node, file], capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    out, painted = out.rsplit("\n", 1)
    assert out.startswith("(root (h2 Head)(p plain (code a<b) ")
    assert "(a https://x.example link)" in out
    assert "[bad](javascript:alert(1))" in out
    assert "(ul (li one)(li two))(ol (li first))" in out
    assert "(code print('<b>'))" in out
    assert "(table (tr (th a)(th b))(tr (td 1)(td 2)))" in out
    assert out.endswith("(blockquote said))")
    assert painted == (
        "(root (p plain (span guess)ed (strong b(span ol)d))(ul (li (span ite)m))"
        "(table (tr (th a)(th (span b)))(tr (td 1)(td (span 2))))(div (pre (code x = (span 1)))"
        "(button Copy))) maxgram,model"
    )
