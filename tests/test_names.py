"""Models by name: what a word means, and the verbs on the models' folder."""

from __future__ import annotations

import io
import json
import os
import stat
from types import SimpleNamespace

import pytest

from flatlm import LLM
from flatlm.export import shelve
from flatlm.export.recipe import RECIPES
from flatlm.export.shelve import Talk, name_for
from flatlm.runtime import models, names
from flatlm.runtime.cli import main
from flatlm.runtime.commands.shelf import ago
from flatlm.runtime.errors import IntegrityError, UsageError
from flatlm.runtime.format.artifact import read_manifest
from tests.tiny_models import tiny_model

SILENT = Talk(lambda stage: lambda done, total: None, None)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("source") / "Tiny Model")


@pytest.fixture
def tiny(source, models_folder):
    """A model `tiny` of the models' folder."""
    shelve.shelve(str(source), RECIPES["quick"], SILENT, "tiny")
    return models_folder / "tiny"


def test_the_folder_follows_the_environment():
    assert str(names.folder({"FLATLM_MODELS": "/m"})) == "/m"
    assert str(names.folder({"XDG_DATA_HOME": "/d"})) == "/d/flatlm/models"
    assert names.folder({}).parts[-4:] == (".local", "share", "flatlm", "models")


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
        ("models/My Model.Q4_K_M.gguf", "my-model.q4_k_m"),
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("folder/", "folder"),
    ],
)
def test_a_source_gives_a_name(word, name):
    assert name_for(word) == name


def test_a_source_without_a_name_needs_one():
    with pytest.raises(UsageError, match="--name"):
        name_for("…")


@pytest.mark.parametrize("word", ["..", ".used", "a/b", "-x", "", "a b", "x" * 129])
def test_what_leaves_the_folder_is_no_name(word):
    assert not names.is_name(word)


def test_every_verb_takes_a_name(tiny, capsys):
    assert main(["info", "tiny"]) == 0
    assert main(["verify", "-m", "tiny"]) == 0
    assert main(["generate", "tiny", "-p", "Hello", "-n", "2", "--draft", "tiny"]) == 0
    with LLM("tiny") as llm:
        assert llm.generate("a", n=1).tokens
    assert str(tiny) in capsys.readouterr().out


def test_a_folder_comes_before_a_name(tiny, tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert str(names.resolve("tiny")) == "tiny"
    (tmp_path / "tiny").rmdir()
    assert names.resolve("tiny") == tiny


def test_what_is_no_model_is_told_what_to_do(tiny, source, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "a.txt").write_bytes(b"")
    for word, hint in (
        ("tinny", "did you mean 'tiny'"),
        ("another-one", "there are: tiny .`flatlm run NAME` fetches"),
        ("owner/model", "`flatlm run owner/model` fetches it"),
        (source, "`flatlm export"),
        (tmp_path / "a.gguf", "it is a GGUF file: `flatlm run"),
        (tmp_path / "b.gguf", "there is no such file"),
        (tmp_path / "a.txt", "it is a file"),
    ):
        with pytest.raises(IntegrityError, match="no exported model at .*" + hint):
            LLM(word)


def test_run_exports_once_and_then_answers(source, models_folder, capsys):
    arguments = ["run", str(source), "Hello", "-n", "3", "--temp", "0", "--json"]
    assert main(arguments) == 0
    first = capsys.readouterr()
    assert (
        "exported in" in first.err
        and "It loses about twice what edge does, which takes minutes: flatlm export" in first.err
    )
    assert read_manifest(models_folder / "tiny-model").recipe == "quick"
    assert main(arguments) == 0
    second = capsys.readouterr()
    assert "exported in" not in second.err
    assert json.loads(second.out)["tokens"] == json.loads(first.out)["tokens"]
    assert main(["run", "tiny-model", "Hello", "-n", "3"]) == 0


def test_run_without_a_prompt_is_a_conversation(tiny, monkeypatch, capsys):
    monkeypatch.setattr("flatlm.export.run.piped_in", lambda: False)
    lines = iter(["Hello", "/quit"])
    monkeypatch.setattr("flatlm.runtime.commands.chat._read_line", lambda: next(lines))
    assert main(["run", "tiny", "-n", "2"]) == 0
    assert "answer 2 tokens" in capsys.readouterr().err


def test_another_source_does_not_take_a_name_that_is_given(tiny, tmp_path):
    other = tiny_model(tmp_path / "tiny")
    with pytest.raises(UsageError, match=r"is the name of .*--name NAME makes another"):
        shelve.shelve(str(other), RECIPES["quick"], SILENT)


def test_missing_packages_end_in_one_sentence(source, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "flatlm.export.exporter", None)
    assert main(["run", str(source), "Hello"]) == 1
    said = capsys.readouterr().err
    assert "has to be exported first" in said and "pip install 'flatlm[export]'" in said


def test_export_without_a_folder_makes_a_name(source, models_folder, capsys):
    assert main(["export", str(source), "--recipe", "quick"]) == 0
    assert main(["export", str(source), "--recipe", "quick", "--name", "other"]) == 0
    assert names.named() == ["other", "tiny-model"]
    assert main(["export", str(source), "x", "--name", "y"]) == 2


def test_a_ready_artifact_is_fetched_verified_and_used_as_it_is(tiny, models_folder, monkeypatch, capsys):
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def snapshot(repo_id, allow_patterns, local_dir):
        for name in allow_patterns:
            (local_dir / name).write_bytes((tiny / name).read_bytes())

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert main(["pull", "owner/Ready"]) == 0
    assert capsys.readouterr().out.strip() == str(models_folder / "ready")
    assert read_manifest(models_folder / "ready") == read_manifest(tiny)
    assert models.origin("ready") == "owner/Ready"
    damaged = tiny / "tokenizer.json"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b" ")
    assert main(["pull", "owner/Broken"]) == 1
    assert names.named() == ["ready", "tiny"]
    assert [name for name in os.listdir(models_folder) if name.startswith(".")] == [".used"]


def test_list_shows_the_last_used_first(tiny, capsys):
    assert main(["cp", "tiny", "other"]) == 0
    os.utime(models.folder() / ".used" / "tiny", (1, 1))
    capsys.readouterr()
    assert main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["models"]
    assert [row["name"] for row in rows] == ["other", "tiny"]
    assert rows[0]["recipe"] == "quick" and rows[0]["size"] == rows[1]["size"] > 0
    assert main(["list"]) == 0
    assert "other" in capsys.readouterr().out.splitlines()[2]


def test_list_of_an_empty_folder_says_how_to_begin(capsys):
    assert main(["list"]) == 0
    assert "flatlm run smollm2-135m-instruct" in capsys.readouterr().err


def test_rm_deletes_models_and_nothing_else(tiny, models_folder, capsys):
    (tiny / "mine.txt").write_text("x")
    assert main(["rm", "tiny"]) == 2
    assert "holds mine.txt" in capsys.readouterr().err and tiny.is_dir()
    (tiny / "mine.txt").unlink()
    assert main(["rm", "tiny"]) == 0
    assert names.named() == [] and not (models_folder / ".used" / "tiny").exists()
    assert main(["rm", "../tiny"]) == 2


def test_cp_keeps_what_is_there(tiny, capsys):
    assert main(["cp", "tiny", "tiny"]) == 2
    assert "there is a model tiny already" in capsys.readouterr().err
    assert main(["cp", str(tiny), "a/b"]) == 2


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A PATH with an ssh and an scp that write down how they are called."""
    (tmp_path / "bin").mkdir()
    log = tmp_path / "log"
    for name in ("ssh", "scp"):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\ncase "$*" in *rsync*) exit 1;; esac\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    monkeypatch.setattr("flatlm.runtime.commands.shelf._has_rsync", lambda host: False)
    return log


def test_push_sends_the_files_to_where_the_name_is_looked_for(tiny, programs, capsys):
    assert main(["push", "tiny", "pi@raspberry"]) == 0
    calls = programs.read_text().splitlines()
    assert calls[0] == "ssh -- pi@raspberry mkdir -p .local/share/flatlm/models/tiny"
    assert calls[1].startswith("scp -p --") and calls[1].endswith(
        "pi@raspberry:.local/share/flatlm/models/tiny/"
    )
    assert all(name in calls[1] for name in ("flatlm.json", "model.onnx.data", "tokenizer.json"))
    assert capsys.readouterr().out == "ssh pi@raspberry flatlm run tiny\n"
    assert main(["push", "tiny", "raspberry:~/models/small"]) == 0
    assert programs.read_text().splitlines()[2] == "ssh -- raspberry mkdir -p models/small"


@pytest.mark.parametrize(
    "target", ["-oProxyCommand=x", "a b", "host:a;b", "host:$(x)", "host:-x", "@host", ""]
)
def test_push_takes_no_target_that_a_shell_would_act_on(tiny, target, programs, capsys):
    assert main(["push", "tiny", "--", target]) == 2
    assert not programs.exists()


def test_push_that_fails_says_which_program(tiny, programs, monkeypatch, capsys):
    monkeypatch.setattr("subprocess.run", lambda *a, **k: SimpleNamespace(returncode=255))
    assert main(["push", "tiny", "pi@raspberry"]) == 1
    assert "ssh to pi@raspberry ended with status 255" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "words"), [(3, "just now"), (61, "1 minute ago"), (7300, "2 hours ago"), (9e5, "10 days ago")]
)
def test_ago(seconds, words):
    assert ago(seconds) == words


def test_an_exported_model_is_no_source(tiny, capsys):
    assert main(["export", str(tiny), "--name", "again"]) == 1
    assert "is an exported model already: `flatlm run" in capsys.readouterr().err


def test_an_empty_pipe_is_no_prompt(tiny, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    assert main(["generate", "tiny"]) == 2
    assert "standard input is empty" in capsys.readouterr().err
