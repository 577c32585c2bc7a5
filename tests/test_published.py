"""The sampling a model was published with: read, kept by export, shown, and overridden by flags."""

from __future__ import annotations

import argparse
import json

import pytest

from flatlm.export.sources.gguf_tokenizer import _sampling
from flatlm.runtime.cli import main, parser_of
from flatlm.runtime.commands.common import sampling_of
from flatlm.runtime.errors import TokenizerError
from flatlm.runtime.generation.published import TALK, in_words, published
from flatlm.runtime.options import SamplingOptions
from flatlm.runtime.settings import Settings
from scripts import loops
from tests.tiny_models import tiny_model

QWEN = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1}
READ = SamplingOptions(temp=0.7, top_p=0.8, top_k=20, min_p=0.0, repeat_penalty=1.1, repeat_last_n=-1)


def folder(tmp_path, **config):
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (QWEN, READ),
        ({"temperature": 0.6, "top_p": 0.9}, SamplingOptions(temp=0.6, top_k=50, top_p=0.9, min_p=0.0)),
        ({"do_sample": True}, SamplingOptions(temp=1.0, top_k=50, top_p=1.0, min_p=0.0)),
        ({"do_sample": True, "min_p": 0.1}, SamplingOptions(temp=1.0, top_k=50, top_p=1.0, min_p=0.1)),
        ({"do_sample": False, "temperature": 0.6}, None),
        ({"eos_token_id": 2}, None),
    ],
)
def test_what_a_model_was_published_with(tmp_path, config, expected):
    assert published(folder(tmp_path, **config)) == expected


def test_no_file_is_no_settings(tmp_path):
    assert published(tmp_path) is None


@pytest.mark.parametrize(
    "config", [{"temperature": "hot"}, {"do_sample": True, "top_p": 2}, {"do_sample": 1}]
)
def test_a_value_that_is_none_names_the_file(tmp_path, config):
    with pytest.raises(TokenizerError, match=r"generation_config\.json"):
        published(folder(tmp_path, **config))


def chosen(tmp_path, *flags, talk=True, verb="generate"):
    args = parser_of(verb).parse_args(["m", *flags])
    assert isinstance(args, argparse.Namespace)
    return sampling_of(args, tmp_path, talk)


def test_flags_come_first_then_the_model_then_the_talk(tmp_path):
    assert chosen(tmp_path) == TALK
    assert chosen(tmp_path, talk=False) == SamplingOptions()
    assert chosen(tmp_path, "--top-k", "7").top_k == 7
    folder(tmp_path, **QWEN)
    assert chosen(tmp_path) == chosen(tmp_path, talk=False) == READ
    assert chosen(tmp_path, "--temp", "1.5", "-s", "3").temp == 1.5
    assert chosen(tmp_path, "--temp", "1.5").repeat_penalty == 1.1


def test_a_temperature_of_0_takes_nothing_from_the_model(tmp_path):
    folder(tmp_path, **QWEN)
    assert chosen(tmp_path, "--temp", "0") == SamplingOptions()
    assert chosen(tmp_path, "--temp", "0", "--repeat-penalty", "1.2") == SamplingOptions(repeat_penalty=1.2)


def test_in_words():
    assert in_words(READ) == "temperature 0.7, top-k 20, top-p 0.8, repeat penalty 1.1"
    assert in_words(SamplingOptions()) == "the likeliest token"


def test_a_gguf_says_it_in_its_own_words():
    metadata = {
        "general.sampling.temp": 0.6,
        "general.sampling.top_k": 30,
        "general.sampling.penalty_repeat": 1.05,
    }
    found = _sampling(Settings(metadata, "m.gguf", TokenizerError))
    assert found == {"do_sample": True, "temperature": 0.6, "top_k": 30, "repetition_penalty": 1.05}
    assert _sampling(Settings({}, "m.gguf", TokenizerError)) == {}


def test_export_keeps_it_and_info_shows_it(tmp_path, capsys):
    source = tiny_model(tmp_path / "tiny")
    config = json.loads((source / "generation_config.json").read_text())
    folder(source, **config, **QWEN)
    assert main(["export", str(source), "--recipe", "quick"]) == 0
    assert main(["info", "tiny"]) == 0
    assert "temperature 0.7, top-k 20, top-p 0.8, repeat penalty 1.1 (published" in capsys.readouterr().out
    answers = set()
    for _ in range(2):
        assert main(["generate", "tiny", "-p", "a", "-n", "8", "-s", "1"]) == 0
        answers.add(capsys.readouterr().out)
    assert main(["generate", "tiny", "-p", "a", "-n", "8", "--temp", "0"]) == 0
    assert len(answers) == 1 and capsys.readouterr().out not in answers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b c d e f g h " * 4, True),
        ("a b c d e f g h " * 3, False),
        ("one two three " * 6, True),
        (" ".join(map(str, range(200))), False),
        ("", False),
    ],
)
def test_an_answer_loops_where_eight_words_stand_four_times(text, expected):
    assert loops.loops(text) is expected
