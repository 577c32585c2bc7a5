"""Answers of a given form: what may follow, the same drafted or not, and never anything else."""

from __future__ import annotations

import itertools
import json
import re
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flatlm.runtime import cli
from flatlm.runtime.backends.numpy import NumpyBackend
from flatlm.runtime.drafting.forced import Forced
from flatlm.runtime.drafting.maxgram import MaxGram
from flatlm.runtime.drafting.model import ModelDrafter
from flatlm.runtime.drafting.spec import DraftSpec, assemble
from flatlm.runtime.drafting.verify import rule_of
from flatlm.runtime.errors import BackendError, UsageError
from flatlm.runtime.generation.answer import Answer, Prompt
from flatlm.runtime.generation.constraint import held_law, permitted
from flatlm.runtime.generation.sampler import next_law
from flatlm.runtime.generation.scheduler import Scheduler
from flatlm.runtime.grammars import Grammar
from flatlm.runtime.llm import LLM
from flatlm.runtime.options import SamplingOptions, from_json
from flatlm.runtime.text.guidance import Guidance
from flatlm.runtime.text.tokenizer import load_tokenizer
from tests.tiny_text import CHATML, FakeBackend, byte_level, sentencepiece, write_folder

pytest.importorskip("llguidance")

VOCABULARY = 300
TEXTS = ["ab", "abc", "abé", "b a", "日本"]
REGEX = "|".join(map(re.escape, TEXTS))
MERGES = [("a", "b"), ("ab", "c"), ("Ġ", "a"), ('"', ":")]
TOKENIZERS = {
    "byte level": lambda: byte_level(MERGES),
    "sentencepiece": lambda: sentencepiece(["▁ab", "abc", "▁a"]),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request, tmp_path):
    return opened(request.param, tmp_path)


def opened(kind, folder):
    return load_tokenizer(write_folder(folder, TOKENIZERS[kind](), generation={"eos_token_id": [0, 2]}))


@pytest.fixture
def bytes_only(tmp_path):
    return opened("byte level", tmp_path)


def guided(tokenizer, grammar=REGEX, kind="regex", prompt=2, vocab=VOCABULARY):
    return Guidance(tokenizer, vocab).constraint(Grammar(kind, grammar), prompt)


def spelled(tokenizer, number):
    """The bytes of a token that is no special one."""
    token = tokenizer.hf.id_to_token(number)
    if number >= tokenizer.hf.get_vocab_size() or number in tokenizer.special_ids:
        return None
    if re.fullmatch("<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    if "▁" in token or any("<0x" in one for one in tokenizer.hf.get_vocab()):
        return token.replace("▁", " ").encode()
    return bytes(BYTES[character] for character in token)


def alphabet():
    """GPT-2's: printable bytes stand for themselves, others for characters from 256 on."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTES = alphabet()


# ---- what may follow


def test_those_tokens_may_follow_that_go_on_to_an_allowed_text(tokenizer):
    constraint, texts = guided(tokenizer), [text.encode() for text in TEXTS]
    walks = [([7, 7], b"")]
    seen = 0
    while walks:
        history, said = walks.pop()
        expected = {
            number
            for number in range(VOCABULARY)
            if (more := spelled(tokenizer, number)) and any(text.startswith(said + more) for text in texts)
        }
        if said in texts:
            expected |= {0, 2}
        if forced := constraint.forced(history):
            assert forced[0] in expected
            expected = {forced[0]}
        assert set(constraint.allowed(history)) == expected, said
        walks += [([*history, n], said + spelled(tokenizer, n)) for n in expected - {0, 2}]
        seen += 1
    assert seen > 10


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 299), max_size=6), min_size=1, max_size=5), st.data())
def test_a_constraint_depends_on_the_history_and_not_on_what_was_asked_before(bytes_only, others, data):
    constraint = guided(bytes_only, "(ab?c|é)*")
    histories = [[1, 2, *bytes_only.encode("abcacé" * 2, special=False)[: len(o)], *o] for o in others]
    for history in data.draw(st.permutations(histories * 2)):
        fresh = guided(bytes_only, "(ab?c|é)*").allowed(history)
        found = constraint.allowed(history)
        assert (found is None) == (fresh is None)
        if found is not None:
            assert found.tolist() == fresh.tolist()


def test_what_is_taken_one_by_one_is_what_is_allowed(tokenizer):
    constraint, history = guided(tokenizer), [5, 6]
    for _ in range(4):
        allowed = set(constraint.allowed(history))
        taken = {
            number for number in range(tokenizer.hf.get_vocab_size()) if constraint.takes(history, [number])
        }
        assert taken == allowed
        if not (more := allowed - {0, 2}):
            break
        history.append(max(more))


def test_what_must_follow_is_known_but_not_beyond_a_choice(bytes_only):
    schema = '{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}'
    constraint = guided(bytes_only, schema, "json_schema")
    forced = constraint.forced([1, 2])
    assert '{"name": "'.startswith(bytes_only.decode(forced)) and len(forced) > 5
    assert constraint.takes([1, 2], forced) == len(forced)
    assert constraint.forced([1, 2, *bytes_only.encode('{"name": "x', special=False)]) == []
    assert constraint.forced([1, 2, 60, 61]) == [] and constraint.allowed([1, 2, 60, 61]) is None


def test_a_drafter_that_knows_none_of_what_may_follow_says_one_that_may(bytes_only):
    constraint = guided(bytes_only)
    logits, ids = permitted(constraint, np.zeros(2, np.float32), [1, 2], np.array([250, 251]))
    assert len(logits) == 1 and ids[0] in constraint.allowed([1, 2])


def test_a_grammar_that_fails_ends_the_answer_as_cut_short(bytes_only):
    constraint = guided(bytes_only)
    constraint._matcher.consume_token(250)  # an error that stays
    assert constraint.allowed([1, 2]).tolist() == [0, 2] and constraint.failed
    scheduler = Scheduler(FakeBackend(vocab=VOCABULARY), bytes_only)
    options = SamplingOptions(n=9, seed=1)
    answer = Answer(Prompt([1, 2], options), {0, 2}, law=rule_of("invariant", options, constraint))
    assert list(scheduler.write(answer)) in ([0], [2])
    assert answer.reason == "length"


# ---- the same, whoever drafts


def answers(tokenizer, speculator, rule="invariant", **options):
    backend = FakeBackend(vocab=VOCABULARY, context=128)
    llm = LLM.of(backend, tokenizer, CHATML, speculator, rule)
    return llm.generate("some prompt, some prompt", **{"n": 40, **options})


def drafters(folder=None):
    from tests.test_drafting import tiny

    def model(seed):
        return ModelDrafter(f"model {seed}", NumpyBackend(tiny(seed)), VOCABULARY)

    return {
        "maxgram": lambda: assemble([MaxGram()], DraftSpec(("maxgram",))),
        "grammar alone": lambda: assemble([], DraftSpec(())),
        "model": lambda: assemble([model(1)], DraftSpec(("model",))),
        "both": lambda: assemble([MaxGram(), model(2)], DraftSpec(("maxgram", "model"))),
        "cascade": lambda: assemble([MaxGram()], DraftSpec(("maxgram",), ((5,),))),
    }


FORMS = [
    {"regex": "(ab|c, ){3,9}é?"},
    {"json_schema": {"type": "object", "properties": {"a": {"enum": ["x", "yy"]}, "b": {"type": "boolean"}}}},
    {"grammar": 'root ::= "(" root ")" | [a-c]{1,3}'},
    {"json_object": True, "temp": 3.0, "top_k": 3},
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: next(iter(form)))
@pytest.mark.parametrize("temp", [0.0, 1.5])
@pytest.mark.parametrize("drafter", drafters())
def test_a_drafted_answer_of_a_form_is_the_plain_one(bytes_only, form, temp, drafter):
    for seed in range(3):
        options = {"temp": temp, "top_k": 0, "seed": seed, "logprobs": 1, **form}
        plain = answers(bytes_only, None, **options)
        drafted = answers(bytes_only, drafters()[drafter](), **options)
        assert (drafted.tokens, drafted.finish_reason) == (plain.tokens, plain.finish_reason)
        assert drafted.logprobs == plain.logprobs


def test_what_the_grammar_forces_is_drafted_under_its_name(bytes_only):
    schema = {
        "type": "object",
        "properties": {"a_long_name": {"type": "boolean"}},
        "required": ["a_long_name"],
    }
    found = []
    for seed in range(5):
        drafted = answers(bytes_only, drafters()["grammar alone"](), json_schema=schema, seed=seed, temp=1.0)
        found += [(source.name, source.accepted) for source in drafted.timings.drafting.sources]
    assert sum(accepted for name, accepted in found if name == Forced.name) > 5


def test_answers_by_the_rule_of_rejection_are_of_the_form(bytes_only):
    for seed in range(20):
        text = answers(
            bytes_only, drafters()["both"](), "rejection", temp=1.0, seed=seed, regex="(ab|c){3,9}"
        ).text
        assert re.fullmatch("(ab|c){3,9}", text), text


# ---- schemas

LEAVES = st.sampled_from(
    [
        {"type": "integer", "minimum": -5, "maximum": 99},
        {"type": "boolean"},
        {"type": "null"},
        {"type": "string", "maxLength": 4},
        {"enum": ["red", 3, None]},
        {"const": "x"},
        {"type": "number", "minimum": 0, "maximum": 1},
    ]
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(
            lambda properties, most: {
                "type": "object",
                "properties": properties,
                "required": list(properties)[:most],
                "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from(["a", "b c", "ü"]), inner, max_size=2),
            st.integers(0, 2),
        )
        | st.builds(lambda item: {"type": "array", "items": item, "maxItems": 2}, inner)
    ),
    max_leaves=4,
)


def fits(value, schema):
    """Whether `value` is of `schema`, as far as those above go."""
    if "const" in schema or "enum" in schema:
        return any(value == one for one in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "object":
        known = schema["properties"]
        there = all(key in value for key in schema["required"]) and all(key in known for key in value)
        return there and all(fits(inner, known[key]) for key, inner in value.items())
    if schema["type"] == "array":
        return len(value) <= schema["maxItems"] and all(fits(inner, schema["items"]) for inner in value)
    kinds = {"boolean": bool, "null": type(None), "string": str, "integer": int, "number": (int, float)}
    if not isinstance(value, kinds[schema["type"]]) or len(str(value)) > 30:
        return False
    low, high = schema.get("minimum", -np.inf), schema.get("maximum", np.inf)
    return (
        len(value) <= schema["maxLength"] if isinstance(value, str) else value is None or low <= value <= high
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SCHEMAS, st.integers(0, 99), st.sampled_from(sorted(TOKENIZERS)))
def test_whole_answers_fit_their_schema(tmp_path_factory, schema, seed, kind):
    tokenizer = opened(kind, tmp_path_factory.mktemp("model"))
    options = {"temp": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": seed, "n": 100}
    answer = answers(tokenizer, None, json_schema=schema, **options)
    if answer.finish_reason == "stop":
        assert fits(json.loads(answer.text), schema), answer.text
    else:
        assert answer.finish_reason == "length" and len(answer.tokens) > 90


def test_json_is_written_as_json_dumps_writes_it(bytes_only):
    schema = {
        "type": "object",
        "properties": {"a": {"const": 1}, "b": {"const": [1, 2]}},
        "required": ["a", "b"],
    }
    text = answers(bytes_only, None, json_schema={**schema, "additionalProperties": False}).text
    assert text == '{"a": 1, "b": [1, 2]}' == json.dumps(json.loads(text))


# ---- what cannot be meant


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"json_object": True, "regex": "a"}, "--json-object and --regex both say"),
        ({"json_schema": "{"}, "the JSON schema is none"),
        ({"json_schema": 3}, "the JSON schema is none"),
        ({"json_schema": [1]}, "the JSON schema is none"),
        ({"json_schema": {"a": {1, 2}}}, "the JSON schema is none"),
        ({"json_schema": json.loads('{"a":' * 65 + "1" + "}" * 65)}, "more than 64 deep"),
        ({"json_schema": {"const": "x" * 70_000}}, "more than 65536 characters"),
        ({"grammar": 3}, "it must be text"),
    ],
)
def test_what_is_no_form_is_refused_before_a_model_is_asked(options, message):
    with pytest.raises(UsageError, match=message) as error:
        from_json(options, SamplingOptions)
    assert error.value.param in options


@pytest.mark.parametrize(
    "options",
    [
        {"json_schema": {"type": "foo"}},
        {"json_schema": {"not": {"type": "string"}}},
        {"json_schema": {"$ref": "#"}},
        {"grammar": "start: start"},
        {"regex": "(a"},
        {"grammar": "root ::= ("},
        {"grammar": "start: foo"},
    ],
)
def test_what_llguidance_cannot_use_is_an_error_that_names_the_option(bytes_only, options):
    with pytest.raises(UsageError, match="cannot be used: ") as error:
        answers(bytes_only, None, **options)
    assert error.value.param in options and "\n" not in str(error.value)


@pytest.mark.parametrize("package", [None, object()])
def test_without_llguidance_the_error_says_what_to_install(bytes_only, monkeypatch, package):
    monkeypatch.setitem(sys.modules, "llguidance", package)
    with pytest.raises(BackendError, match=r"need llguidance: pip install 'flatlm\[json\]'"):
        answers(bytes_only, None, regex="a")
    assert answers(bytes_only, None, n=2).text


def test_a_model_without_an_end_token_cannot_be_held_to_a_form(tmp_path):
    folder = write_folder(tmp_path, byte_level(), config={"eos_token": None})
    with pytest.raises(UsageError, match="no end token"):
        answers(load_tokenizer(folder), None, regex="a")


# ---- the command


@pytest.fixture
def machine(monkeypatch, bytes_only, tmp_path):
    def opened(*given, **options):
        return LLM.of(FakeBackend(vocab=VOCABULARY, context=256), bytes_only, CHATML)

    monkeypatch.setattr("flatlm.runtime.llm.LLM", opened)


def test_generate_takes_a_schema_as_text_or_from_a_file(machine, tmp_path, capsys):
    schema = tmp_path / "schema.json"
    schema.write_text('{"const": "from a file"}')
    for text, said in ((str(schema), "from a file"), ('{"const": "as text"}', "as text")):
        assert cli.main(["generate", "m", "-p", "x", "--json-schema", text]) == 0
        assert json.loads(capsys.readouterr().out) == said


def test_a_grammar_that_is_neither_text_nor_file_is_an_error(machine, tmp_path, capsys):
    assert cli.main(["generate", "m", "-p", "x", "--grammar", str(tmp_path / "absent")]) == 2
    assert "is neither a file nor what it should hold" in capsys.readouterr().err
    (tmp_path / "g.gbnf").write_bytes(b"\xff")
    assert cli.main(["generate", "m", "-p", "x", "--grammar", str(tmp_path / "g.gbnf")]) == 2
    assert "g.gbnf cannot be read" in capsys.readouterr().err
    (tmp_path / "g.gbnf").write_text('root ::= "yes" | "no"')
    assert cli.main(["generate", "m", "-p", "x", "--grammar", str(tmp_path / "g.gbnf")]) == 0
    assert capsys.readouterr().out.strip() in ("yes", "no")


class Some:
    """A constraint of any ids."""

    failed = ""

    def __init__(self, ids):
        self.ids = np.array(sorted(ids))

    def allowed(self, history):
        return self.ids

    def takes(self, history, ids):
        return len(list(itertools.takewhile(lambda number: number in self.ids, ids)))

    def forced(self, history):
        return []


@settings(max_examples=300, deadline=None)
@given(
    st.sets(st.integers(0, 39), min_size=1),
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.4, 1.0, 3.0]),
    st.sampled_from([0, 1, 2, 5]),
    st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    st.sampled_from([0.0, 0.2, 1.0]),
    st.booleans(),
)
def test_the_law_is_that_of_the_logits_that_may_follow(ids, seed, temp, top_k, top_p, min_p, penalized):
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(40) * rng.uniform(0.5, 9)).astype(np.float32)
    options = SamplingOptions(temp=temp, top_k=top_k, top_p=top_p, min_p=min_p, presence_penalty=penalized)
    constraint = Some(ids)
    found = held_law(constraint, logits, [3, 4, 5], options)
    expected = next_law(logits[constraint.ids], [3, 4, 5], options, constraint.ids)
    assert found[0].tolist() == expected[0].tolist() and found[1].tolist() == expected[1].tolist()
