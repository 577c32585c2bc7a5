"""flatlm.runtime.text.tokenizer: special tokens by Hugging Face's rules, and detokenizing as ids come in."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from flatlm.runtime.errors import ContextError, IntegrityError, TokenizerError, UsageError
from flatlm.runtime.text.tokenizer import LONGEST, MOST_HELD, Detokenizer, load_tokenizer
from tests.tiny_text import byte_level, sentencepiece, write_folder

TEXTS = (
    "Hello wörld",
    "漢字かな交じり",
    "👩‍👩‍👧 family",
    "tab\tnewline\n\n  spaces ",
    "",
    "é",
    "ends with 🙂",
)


@pytest.fixture
def bytes_tokenizer(tmp_path):
    return load_tokenizer(write_folder(tmp_path, byte_level()))


@pytest.fixture
def words_tokenizer(tmp_path):
    words = ["▁hello", "▁world", "lo", "hel", "▁a", "▁b", "ab", "c"]
    return load_tokenizer(write_folder(tmp_path, sentencepiece(words)))


def pieces(tokenizer, ids, **options):
    stream = Detokenizer(tokenizer, **options)
    return [*(stream.push(number) for number in ids), stream.finish()]


@pytest.mark.parametrize("text", TEXTS)
def test_streamed_pieces_together_are_the_text(bytes_tokenizer, text):
    assert "".join(pieces(bytes_tokenizer, bytes_tokenizer.encode(text))) == text


@pytest.mark.parametrize("text", TEXTS)
def test_no_piece_holds_half_a_character(bytes_tokenizer, text):
    assert "\ufffd" not in "".join(pieces(bytes_tokenizer, bytes_tokenizer.encode(text))[:-1])


def test_a_character_appears_with_its_last_byte(bytes_tokenizer):
    assert pieces(bytes_tokenizer, bytes_tokenizer.encode("字🙂")) == ["", "", "字", "", "", "", "🙂", ""]


def test_an_unfinished_character_is_replaced_at_the_end_only(bytes_tokenizer):
    ids = bytes_tokenizer.encode("a字")[:-1]
    assert pieces(bytes_tokenizer, ids) == ["a", "", "", "\ufffd"]


def test_bytes_that_are_no_text_are_not_held_for_ever(bytes_tokenizer):
    broken = bytes_tokenizer.encode("字")[1:2] * 50
    stream = Detokenizer(bytes_tokenizer)
    longest = run = 0
    for number in broken:
        run = 0 if stream.push(number) else run + 1
        longest = max(longest, run)
    assert longest == MOST_HELD - 1


@pytest.mark.parametrize("text", ["hello world", "hello  world", "a b ab c", "日本 hello"])
def test_the_space_of_the_first_word_is_dropped_and_no_other(words_tokenizer, text):
    ids = words_tokenizer.encode(text, special=False)
    assert "".join(pieces(words_tokenizer, ids)) == text == words_tokenizer.decode(ids)


def test_a_continued_prompt_keeps_the_space_of_the_next_word(words_tokenizer):
    prompt, answer = (words_tokenizer.encode(text, special=False) for text in ("hello", "world"))
    assert "".join(pieces(words_tokenizer, answer, before=prompt)) == " world"
    assert "".join(pieces(words_tokenizer, answer)) == "world"


def test_special_tokens_are_silent_and_do_not_disturb_the_spaces(words_tokenizer):
    hello, world = (words_tokenizer.encode(text, special=False) for text in ("hello", "world"))
    assert "".join(pieces(words_tokenizer, [1, *hello, 2, *world, 0])) == "hello world"


def test_special_tokens_can_be_shown(bytes_tokenizer):
    ids = bytes_tokenizer.encode("<|start|>hi<|end|>")
    assert "".join(pieces(bytes_tokenizer, ids, skip_special=False)) == "<|start|>hi<|end|>"


def test_any_stream_of_ids_gives_what_decoding_it_whole_gives(bytes_tokenizer):
    rng = random.Random(0)
    for _ in range(50):
        text = "".join(rng.choice("aé字🙂 \n") for _ in range(rng.randrange(40)))
        assert "".join(pieces(bytes_tokenizer, bytes_tokenizer.encode(text))) == text


def test_a_push_decodes_no_more_late_in_an_answer_than_early(bytes_tokenizer, monkeypatch):
    lengths = []
    decode = Detokenizer._decode
    monkeypatch.setattr(
        Detokenizer, "_decode", lambda self, ids: lengths.append(len(ids)) or decode(self, ids)
    )
    pieces(bytes_tokenizer, bytes_tokenizer.encode("some text " * 100))
    assert max(lengths) <= 2 * MOST_HELD


def test_an_id_beyond_the_vocabulary_is_silent(bytes_tokenizer):
    assert pieces(bytes_tokenizer, [10_000]) == ["", ""]


def test_end_tokens_come_from_both_configurations(tmp_path):
    folder = write_folder(
        tmp_path, byte_level(), {"eos_token": {"content": "<|end|>"}}, {"eos_token_id": [2, 1]}
    )
    assert load_tokenizer(folder).eos_ids == {0, 1, 2}


def test_one_end_token_may_stand_alone(tmp_path):
    folder = write_folder(tmp_path, byte_level(), {"eos_token": None}, {"eos_token_id": 2})
    assert load_tokenizer(folder).eos_ids == {2}


def test_a_begin_token_is_added_where_the_file_says_so(words_tokenizer):
    assert words_tokenizer.encode("hello")[0] == 1
    assert words_tokenizer.encode("hello", special=False)[0] != 1


@pytest.mark.parametrize("config", [{}, {"add_bos_token": True}, {"add_bos_token": False}])
@pytest.mark.parametrize("make", [byte_level, lambda: sentencepiece(["▁hello", "lo"])])
def test_ids_are_those_of_transformers(tmp_path, make, config):
    transformers = pytest.importorskip("transformers")
    folder = write_folder(tmp_path, make(), {"tokenizer_class": "PreTrainedTokenizerFast", **config})
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder))
    ours = load_tokenizer(folder)
    for text in ("hello hello", "<|start|>hello<|end|>\n", "漢字"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.encode(text, special=False) == theirs.encode(text, add_special_tokens=False)


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path):
    tokenizer = byte_level()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=10)
    assert len(load_tokenizer(write_folder(tmp_path, tokenizer)).encode("hello")) == 5


def test_a_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(IntegrityError, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff\xfe", b'{"model": {"type": "BPE"}}'])
def test_a_corrupt_tokenizer_is_an_error_that_names_the_file(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_corrupt_configuration_is_an_error_that_names_the_file(tmp_path, name, content):
    (write_folder(tmp_path, byte_level()) / name).write_text(content)
    with pytest.raises(TokenizerError, match=name):
        load_tokenizer(tmp_path)


def test_a_panic_of_the_tokenizers_package_is_an_error_that_names_the_file(tmp_path):
    folder = write_folder(tmp_path, byte_level())
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] |= {"continuing_subword_prefix": "a b", "vocab": {"a": 0, "é": 1, "x": 2}}
    content["model"]["merges"] = [["x", "é"]]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is damaged"):
        load_tokenizer(folder)


def test_an_end_token_that_is_no_number_is_an_error(tmp_path):
    with pytest.raises(TokenizerError, match="eos_token_id"):
        load_tokenizer(write_folder(tmp_path, byte_level(), generation={"eos_token_id": ["x"]}))


def test_text_that_is_no_unicode_is_wrong_use(bytes_tokenizer):
    with pytest.raises(UsageError, match="Unicode"):
        bytes_tokenizer.encode("a\udc80")


def test_a_text_far_too_long_is_refused_on_its_beginning(bytes_tokenizer):
    read = []

    class Counting:
        def encode(self, text, **options):
            read.append(len(text))
            return bytes_tokenizer.hf.encode(text, **options)

    counting = replace(bytes_tokenizer, hf=Counting())
    with pytest.raises(ContextError, match="more than 320 tokens long, the context holds 10"):
        counting.encode("a" * 10**6, most=10)
    assert read == [10 * LONGEST]


@pytest.mark.parametrize("locale", ["ascii", "utf-8"])
def test_an_argument_in_utf8_is_text_in_any_locale(bytes_tokenizer, locale):
    argument = "Köln 漢".encode().decode(locale, "surrogateescape")
    assert bytes_tokenizer.encode(argument) == bytes_tokenizer.encode("Köln 漢")


@pytest.mark.parametrize("text", ["caf\udce9", "\ud800"])
def test_what_is_no_text_in_any_encoding_is_wrong_use(bytes_tokenizer, text):
    with pytest.raises(UsageError, match="not valid Unicode"):
        bytes_tokenizer.encode(text)
