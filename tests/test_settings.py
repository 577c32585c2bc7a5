"""Settings from outside: whatever a file holds, its reader gives a result or flatlm's own error."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flatlm.export.archs import build_graph
from flatlm.export.registry import architecture
from flatlm.export.sources import open_source
from flatlm.export.sources.gguf_archs import ARCHITECTURES
from flatlm.export.sources.gguf_config import Facts
from flatlm.export.sources.gguf_tokenizer import tokenizer_files
from flatlm.runtime import settings as outside
from flatlm.runtime.errors import FlatlmError, FormatError, SourceError, UsageError
from flatlm.runtime.evaluation import comparison, summary
from flatlm.runtime.evaluation.run_file import MAGIC, read_run
from flatlm.runtime.format.artifact import Manifest
from flatlm.runtime.settings import Settings
from flatlm.runtime.text.prompt import load_template
from flatlm.runtime.text.tokenizer import load_tokenizer
from tests.tiny_models import TinyShape, tiny_config, tiny_model

SOME = {"a": 1, "b": 2.5, "c": "x", "d": True, "e": None, "f": [1, 2], "g": {"h": 3}, "i": [{"j": "k"}]}


def some(**changes: Any) -> Settings:
    return Settings({**SOME, **changes}, "x.json", SourceError)


def test_values_are_those_of_the_kind_asked_for():
    s = some()
    assert (s.need("a", int), s.need("b", float), s.need("c", str), s.need("d", bool)) == (1, 2.5, "x", True)
    assert s.need("a", float) == 1.0 and type(s.need("a", float)) is float
    assert s.get("e", int, 7) == s.get("absent", int, 7) == 7 and s.get("e", int) is None
    assert s.each("f", int) == [1, 2] and s.each("e", int) == s.each("absent", int) == []
    assert (
        s.one_or_more("f", int) == [1, 2] and s.one_or_more("a", int) == [1] and s.one_or_more("e", int) == []
    )
    assert s.table("g").need("h", int) == 3 and len(s.table("absent")) == 0
    assert [one.need("j", str) for one in s.tables("i")] == ["k"]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s.need("c", int), "x.json has c = 'x', expected an integer"),
        (lambda s: s.need("d", int), "x.json has d = True, expected an integer"),
        (lambda s: s.need("b", int), "x.json has b = 2.5, expected an integer"),
        (lambda s: s.need("d", float), "x.json has d = True, expected a number"),
        (lambda s: s.need("a", bool), "x.json has a = 1, expected true or false"),
        (lambda s: s.get("a", str, "y"), "x.json has a = 1, expected a text"),
        (lambda s: s.need("e", str), "x.json has e = None, expected a text"),
        (lambda s: s.need("no", str), "x.json has no no, expected a text"),
        (lambda s: s.need("a", int, low=2), "x.json has a = 1, expected an integer at least 2"),
        (
            lambda s: s.need("a", int, low=-3, high=0),
            "x.json has a = 1, expected an integer at least -3 at most 0",
        ),
        (lambda s: s.need("a", float, above=1), "x.json has a = 1, expected a number above 1"),
        (lambda s: s.each("f", str), "x.json has f[0] = 1, expected a text"),
        (lambda s: s.each("a", int), "x.json has a = 1, expected a list, each element an integer"),
        (lambda s: s.table("f"), "x.json has f = [1, 2], expected an object"),
        (lambda s: s.table("g").need("h", str), "x.json has g.h = 3, expected a text"),
        (lambda s: s.tables("f"), "x.json has f = [1, 2], expected a list of objects"),
        (lambda s: s.tables("i")[0].need("j", int), "x.json has i[0].j = 'k', expected an integer"),
        (lambda s: some(a=10**400).need("a", float), "expected a number"),
        (lambda s: some(a=float("nan")).need("a", float), "x.json has a = nan, expected a number"),
        (lambda s: some(a=float("inf")).need("a", float), "x.json has a = inf, expected a number"),
    ],
)
def test_a_value_of_another_kind_is_an_error_that_names_file_key_and_value(ask, message):
    with pytest.raises(SourceError) as error:
        ask(some())
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"\xff{}", "is not valid JSON"),
        (b"[" * 100_000, "nested without end"),
        (b'{"a":' * 80 + b"1" + b"}" * 80, "nested more than 64 deep"),
        (b'{"a": 1, "a": 2}', "'a' stands there twice with different values"),
        (b'{"a": "\\ud800"}', "is not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b"[]", "holds a JSON list, expected an object"),
        (b"null", "holds a JSON null, expected an object"),
        (b'"text"', "holds a JSON text, expected an object"),
        (b"", "is not valid JSON"),
    ],
)
def test_text_that_is_no_object_is_an_error_that_names_its_file(tmp_path, text, message):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(FormatError, match=r"x\.json .*; do this") as error:
        outside.read(tmp_path / "x.json", FormatError, "do this")
    assert message in str(error.value)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path):
    for path in (tmp_path, tmp_path / "absent", tmp_path / ("x" * 400)):
        with pytest.raises(SourceError, match=str(tmp_path)):
            outside.read(path, SourceError)


def test_a_byte_order_mark_emoji_and_a_key_twice_with_one_value_are_read():
    text = b'\xef\xbb\xbf{"a": "\\ud83d\\ude42", "b": 1, "b": 1}'
    assert outside.parse(text, "x", SourceError).values == {"a": "🙂", "b": 1}


# ---- every reader, with any JSON in the place of what it expects

LEAVES = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    st.sampled_from(
        [0, 1, -1, 2.0, 4294967295, 10**400, "1", "llama3", "yarn", "sliding_attention", "default"]
    ),
)
KEYS = st.text(max_size=5) | st.sampled_from(["rope_type", "type", "factor", "name", "template", "content"])
ANY = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
CONFIG = [*tiny_config(TinyShape()), "rope_parameters", "sliding_window", "layer_types", "max_window_layers"]
SMALL = ["eos_token_id", "bos_token", "eos_token", "chat_template", "added_tokens_decoder"]
COMMON = settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


def holds(work: Callable[[], object]) -> None:
    """No error, or one of flatlm's."""
    with contextlib.suppress(FlatlmError):
        work()


def text_of(value: object) -> bytes:
    return json.dumps(value).encode()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model"), shards=2)


def with_file(folder: Path, name: str, content: bytes, work: Callable[[], object]) -> None:
    path = folder / name
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    try:
        holds(work)
    finally:
        path.unlink()
        if before is not None:
            path.write_bytes(before)


@COMMON
@given(st.sampled_from([*FILES, "model.safetensors.index.json"]), st.binary(max_size=8) | ANY.map(text_of))
@example("config.json", b"[" * 100_000)
@example("model.safetensors.index.json", b'{"weight_map": {"a": "x\\u0000y"}}')
def test_any_bytes_in_the_place_of_a_file_of_a_model_folder(model, name, content):
    with_file(model, name, content, lambda: build_graph(open_source(str(model))))


@COMMON
@given(st.dictionaries(st.sampled_from(CONFIG), ANY, max_size=3))
@example({"head_dim": 20.0})
@example({"rope_scaling": {"rope_type": "llama3", "factor": 0}})
def test_any_values_in_config_json(model, changes):
    content = json.loads((model / "config.json").read_text()) | changes
    with_file(model, "config.json", text_of(content), lambda: build_graph(open_source(str(model))))


@COMMON
@given(st.sampled_from(FILES[1:]), st.dictionaries(st.sampled_from(SMALL), ANY, max_size=2))
def test_any_values_in_the_small_files(model, name, changes):
    content = json.loads((model / name).read_text()) if (model / name).exists() else {}
    with_file(model, name, text_of(content | changes), lambda: open_source(str(model)))
    with_file(model, name, text_of(content | changes), lambda: load_tokenizer(model))
    with_file(model, name, text_of(content | changes), lambda: load_template(model))


@COMMON
@given(ANY, st.sampled_from(["weight_map", "entry", "header"]))
def test_any_values_in_an_index_and_in_the_header_of_a_shard(model, value, where):
    if where == "weight_map":
        content = text_of({"weight_map": value})
        with_file(model, "model.safetensors.index.json", content, lambda: open_source(str(model)))
        return
    shard = model / "model-00001-of-00002.safetensors"
    raw = shard.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = text_of(
        {**json.loads(raw[8 : 8 + length]), "model.norm.weight": value} if where == "entry" else value
    )
    changed = len(header).to_bytes(8, "little") + header + raw[8 + length :]
    with_file(model, shard.name, changed, lambda: build_graph(open_source(str(model))))


MANIFEST = json.loads(Manifest("tiny", "llama", "edge", 53, 24, 1000, 4.25, {}).to_json())


@COMMON
@given(st.dictionaries(st.sampled_from([*MANIFEST, "more"]), ANY, max_size=2), ANY)
@example({}, "[" * 3)
def test_any_values_in_a_manifest(changes, whole):
    holds(lambda: Manifest.from_json(text_of(MANIFEST | changes)))
    holds(lambda: Manifest.from_json(text_of(whole)))


COST = {
    "prompt_tokens": 1,
    "reused_tokens": 0,
    "prefill_seconds": 0.5,
    "generated_tokens": 3,
    "decode_seconds": 1.0,
}
RECORD = {
    "id": "0",
    "answers": [{"text": "a", "finish_reason": "stop"}],
    "target": "1",
    "answer": "1",
    "right": True,
    "authors_answer": "1",
    "authors_right": True,
    "cost": COST,
}


def compared(path: Path) -> None:
    """What `flatlm compare` asks of a run."""
    a, b = comparison.matched(read_run(path), read_run(path))
    for by in ("right", "authors_right") if "authors_right" in a.records[0] else ("right",):
        comparison.paired_text(comparison.pair(a, b, by=by))
    summary.lines(summary.summarize(a.records))
    comparison.differing(a, b)


@COMMON
@given(ANY, st.dictionaries(st.sampled_from([*RECORD]), ANY, max_size=2), ANY)
@example(5, {}, {})
@example({}, {"cost": {**COST, "prompt_tokens": None}}, RECORD)
@example({}, {"answers": []}, RECORD)
def test_any_lines_in_a_run_that_is_compared(tmp_path, head, changes, last):
    path = tmp_path / "run.jsonl"
    lines = [text_of(RECORD), text_of({**RECORD, "id": "1", **changes}), text_of(last)]
    path.write_bytes(MAGIC + text_of(head) + b"}\n" + b"\n".join(lines) + b"\n")
    holds(lambda: compared(path))


def test_a_whole_run_is_compared_and_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "run.jsonl"
    whole = MAGIC + b'{"task": "x"}}\n' + text_of(RECORD) + b"\n"
    path.write_bytes(whole)
    compared(path)
    path.write_bytes(whole + text_of({**RECORD, "id": "1", "right": "yes"}) + b"\n")
    with pytest.raises(UsageError, match=r"run\.jsonl: line 3 has right = 'yes', expected true or false"):
        read_run(path)


METADATA = {
    "general.architecture": "llama",
    "llama.embedding_length": 60,
    "llama.feed_forward_length": 84,
    "llama.block_count": 2,
    "llama.context_length": 128,
    "llama.attention.head_count": 3,
    "llama.attention.head_count_kv": 1,
    "llama.attention.key_length": 20,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
    "llama.rope.scaling.type": "linear",
    "llama.rope.scaling.factor": 0.0,
    "llama.attention.scale": 0.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<s>"],
    "tokenizer.ggml.token_type": [1, 1, 1, 3],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 3,
    "tokenizer.ggml.eos_token_id": 3,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "{{ messages }}",
}


def config_of(metadata: Settings) -> dict[str, Any]:
    """The config that the metadata of a Llama says, whose embedding has four rows."""
    shapes = {"model.embed_tokens.weight": (4, 64)}
    return Facts(metadata, ARCHITECTURES["llama"], architecture("llama"), shapes, {}).config("llama")


@COMMON
@given(st.dictionaries(st.sampled_from([*METADATA]), ANY, max_size=2))
@example({"tokenizer.ggml.bos_token_id": 4294967295})
@example({"llama.attention.head_count": [3, 3]})
def test_any_values_in_the_metadata_of_a_gguf_file(changes):
    metadata = Settings(METADATA | changes, "tiny.gguf", SourceError)
    holds(lambda: config_of(metadata))
    holds(lambda: tokenizer_files(metadata, 128))


def test_the_metadata_that_is_changed_above_is_read():
    metadata = Settings(METADATA, "tiny.gguf", SourceError)
    assert config_of(metadata)["num_key_value_heads"] == 1
    assert tokenizer_files(metadata, 128)["chat_template.jinja"] == b"{{ messages }}"
