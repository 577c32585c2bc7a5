"""The targets tokenizer and template: what turns a conversation into ids and ids into text."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from hypothesis import strategies as st

from flatlm.runtime.text import limits
from flatlm.runtime.text.prompt import load_template, render
from flatlm.runtime.text.tokenizer import Detokenizer, load_tokenizer
from tests.fuzzing.mutation import FEW, NUMBERS, TEXTS, Draw, byte_changes, json_bytes, words
from tests.fuzzing.target import Case, Limits, Prepared, Target, in_place
from tests.test_prompt import CONVERSATION, SPECIAL, TEMPLATES, TOOLS
from tests.tiny_text import CHATML, byte_level, sentencepiece, write_folder

TEXT = "Two words, naïve 漢字 🙂\n<|start|>\t  end<|end|>"


def tokenizer(folder: Path) -> Prepared:
    """tokenizer.json of two kinds, and the small files that it is read with."""
    write_folder(
        folder, byte_level([("T", "w"), ("Tw", "o")]), {"chat_template": CHATML}, {"eos_token_id": [0]}
    )
    names = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
    good = {name: [json.loads((folder / name).read_text())] for name in names}
    good[names[0]].append(json.loads(sentencepiece(["▁Two", "▁words"]).to_str()))

    def read() -> None:
        made = load_tokenizer(folder)
        ids = made.encode(TEXT, most=100)
        made.decode(ids)
        stream = Detokenizer(made, ids[:2])
        "".join(map(stream.push, ids)) + stream.finish()

    def run(case: Case) -> object:
        return in_place(folder / case.name, case.content, read)

    kinds = [json_bytes(good[name]).map(partial(Case, name)) for name in names]
    return Prepared(st.one_of(kinds[0], kinds[0], *kinds), run)


# What an expression of a template is made of.
NAMES = words("""
    messages tools bos_token message loop ns x true none add_generation_prompt
""")
LITERALS = words("""
    '' 'ab' [] [1,2] {} {'a':1} 0 1 2.5 -1 ('x',) '%s%9d' '{:9}'
""")
ATTRIBUTES = words("""
    role content __class__ items() keys() strip() split(x) upper() format(x) index0 join(x)
    replace('a',x) center(9) zfill(x) format_map(x) encode() append(x) pop() translate(x) expandtabs(x)
    splitlines() startswith(x) changed(x) cycle(1,2) revindex
""")
FILTERS = words("""
    trim tojson tojson(indent=x) length join(x) list map(attribute='role') map('upper')
    selectattr('role') groupby('role') batch(2) slice(x) sum sort unique first last indent(x)
    wordwrap(x) truncate(x) format(x) string pprint xmlattr urlize random int float round(x) abs
    default(x) dictsort items reverse replace('a',x) safe escape filesizeformat striptags title
    wordcount min max attr('__class__') center(x)
""")
CALLS = words("""
    range(x) namespace(a=x) dict(a=x) dict(x) cycler(1,x) joiner(x) strftime_now(x) raise_exception(x)
    dict.fromkeys(x) caller() self super() show(x) lipsum()
""")
OPERATORS = ("+", "-", "*", "**", "/", "//", "%", "~", "==", "<", "in", "and", "or", "is", "not in")
BIG = (
    *words("""
    10**9 100000 65536 'a'*9999 range(9999) [[]]*999 messages*99
    """),
    *("9" * 30,),
)
INDICES = ("0", "-1", "1:", "::-1", "'role'", "x", "9" * 20)
WORDS = (*NAMES, *LITERALS, *BIG, *CALLS)


@st.composite
def expression(draw: Draw) -> str:
    """A chain of attributes, filters and operators on something small."""
    text = draw(st.sampled_from(WORDS))
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.integers(0, 4))
        if kind == 0:
            text = f"({text}).{draw(st.sampled_from(ATTRIBUTES))}"
        elif kind == 1:
            text = f"({text})[{draw(st.sampled_from(INDICES))}]"
        elif kind <= 3:
            text = f"({text}) | {draw(st.sampled_from(FILTERS))}"
        else:
            text = f"({text}) {draw(st.sampled_from(OPERATORS))} {draw(st.sampled_from(WORDS))}"
    return text


EXPRESSION = expression()


@st.composite
def template_text(draw: Draw) -> str:
    """Statements around expressions."""
    parts = [f"{{% set x = {draw(EXPRESSION)} %}}" for _ in range(draw(st.integers(0, 2)))]
    for _ in range(draw(FEW)):
        one = draw(EXPRESSION)
        shape = draw(st.integers(0, 6))
        body = f"{{{{ {draw(EXPRESSION)} }}}}"
        parts.append(
            (
                f"{{{{ {one} }}}}",
                f"{{% for m in {one} %}}{body}{{% endfor %}}",
                f"{{% for m in {one} recursive %}}{{{{ loop(m) }}}}{body}{{% endfor %}}",
                f"{{% if {one} %}}{body}{{% elif x %}}{{% else %}}{body}{{% endif %}}",
                f"{{% macro show(m) %}}{body}{{{{ show(m) if m }}}}{{% endmacro %}}{{{{ show({one}) }}}}",
                f"{{% set ns = namespace(a={one}) %}}{{% set ns.a = ns.a ~ ns.a %}}{{{{ ns.a }}}}",
                f"{{% filter upper %}}{body}{{% endfilter %}}{{% generation %}}{body}{{% endgeneration %}}",
            )[shape]
        )
    return "".join(parts)


TEMPLATE_TEXT = template_text()


@st.composite
def _config(draw: Draw) -> bytes:
    value = draw(st.one_of(st.sampled_from(TEXTS), st.sampled_from(NUMBERS), TEMPLATE_TEXT))
    named = [{"name": draw(st.sampled_from(("default", "tool_use"))), "template": value}]
    return json.dumps({"chat_template": draw(st.sampled_from((value, named, [value], None)))}).encode()


def template(folder: Path) -> Prepared:
    """chat_template.jinja and where else a template may stand; a rendering may take two seconds here."""
    limits.MOST_SECONDS = 2.0
    published = [
        path.read_bytes() for path in sorted((Path(__file__).parent.parent / "templates").glob("*.jinja"))
    ]
    good = [*(text.encode() for text in TEMPLATES.values()), *published]

    def read() -> str:
        text = load_template(folder)
        return render(text, CONVERSATION, special=SPECIAL, tools=TOOLS) if text is not None else ""

    def run(case: Case) -> object:
        return in_place(folder / case.name, case.content, read).encode("utf-8", "surrogatepass")

    cases = st.one_of(
        TEMPLATE_TEXT.map(lambda text: Case("chat_template.jinja", text.encode())),
        byte_changes(good).map(partial(Case, "chat_template.jinja")),
        _config().map(partial(Case, "tokenizer_config.json")),
    )
    return Prepared(cases, run)


TOKENIZER = Target("tokenizer", ("flatlm.runtime.text.tokenizer", "flatlm.runtime.settings"), tokenizer)
TEMPLATE = Target(
    "template",
    tuple(f"flatlm.runtime.text.{name}" for name in ("prompt", "sandbox", "limits")),
    template,
    Limits(seconds=8.0),
)
